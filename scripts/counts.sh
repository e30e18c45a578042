#!/usr/bin/env bash
# Counts what the hot paths cost in instructions and allocations, and fails when one costs over 5 % more than it did.
#
#   scripts/counts.sh            compares with benches/counts.baseline
#   scripts/counts.sh --update   writes benches/counts.baseline
#
# What is counted does not depend on how fast or busy a machine is: valgrind runs the work of benches/counts.rs on a CPU of
# its own making, which has AVX2 on any machine that has it. The compiler does matter: the baseline says which it was, and
# with another one only allocations are compared.
# Needs Debian's valgrind and a Rust toolchain, and builds the library as a release without optimisation across crates.
set -euo pipefail
cd "$(dirname "$0")/.."

baseline=benches/counts.baseline
tolerance=1.05

fail() { printf 'scripts/counts.sh: %s\n' "$*" >&2; exit 1; }
if ! command -v valgrind >/dev/null; then
    command -v apt-get >/dev/null && [ "$(id -u)" -eq 0 ] || fail "valgrind is missing (Debian: apt-get install valgrind)"
    DEBIAN_FRONTEND=noninteractive apt-get -qq update
    DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends valgrind >/dev/null
fi

built=$(cargo bench --locked --profile counts --bench counts --no-run --message-format=json)
counts=$(python3 -c '
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("target", {}).get("name") == "counts" and message.get("executable"):
        print(message["executable"])
' <<<"$built")
[ -n "$counts" ] || fail "the benchmark was not built"

# Of the whole process: what one unit of work costs is the difference between many of them and few.
instructions() {
    valgrind --tool=cachegrind --cache-sim=no --cachegrind-out-file=/dev/null "$counts" "$1" "$2" 2>&1 |
        awk '/I +refs/ { gsub(",", "", $NF); print $NF }'
}

allocations=$("$counts" --allocations)
now=$(mktemp)
trap 'rm -f "$now"' EXIT
echo "# what;instructions;allocations;per   $(rustc --version | cut -d' ' -f1,2)" >"$now"
# What one unit costs: the least of three, because work that wakes another thread does not cost the same each time.
cost() {
    local least= less more
    for _ in 1 2 3; do
        less=$(instructions "$1" "$2")
        more=$(instructions "$1" "$3")
        [ -n "$least" ] && [ "$least" -le $((more - less)) ] || least=$((more - less))
    done
    echo "$least"
}
while IFS=';' read -r name unit divisor; do
    few=20 many=60
    # Of units as small as one request it takes more until the other thread's part is the same each time, within 1 %.
    [ "$divisor" -gt 1 ] || { few=100; many=600; }
    counted=$(cost "$name" "$few" "$many")
    allocated=$(awk -F';' -v name="$name" '$1 == name { print $2 }' <<<"$allocations")
    awk -v name="$name" -v unit="$unit" -v allocated="$allocated" -v count="$counted" -v units="$(((many - few) * divisor))" \
        'BEGIN { printf "%s;%.0f;%s;%s\n", name, count / units, allocated, unit }' >>"$now"
done < <("$counts" --list)

if [ "${1:-}" = --update ]; then
    cp "$now" "$baseline"
    cat "$baseline"
    exit
fi
same_compiler=1
if [ "$(head -1 "$now")" != "$(head -1 "$baseline")" ]; then
    echo "instructions are not compared: $baseline was made by another compiler, $(head -1 "$baseline" | grep -o 'rustc .*')"
    same_compiler=0
fi
# An allocation is one too many where there was none; a hundredth is what a container that grows takes.
awk -F';' -v tolerance="$tolerance" -v same_compiler="$same_compiler" '
    /^#/ { next }
    NR == FNR { instructions[$1] = $2; allocations[$1] = $3; next }
    {
        verdict = "ok"
        if (!($1 in instructions)) { verdict = "is not in the baseline: scripts/counts.sh --update"; failed = 1 }
        else if ((same_compiler && $2 > instructions[$1] * tolerance) || $3 > allocations[$1] * tolerance + 0.01) { verdict = "COSTS MORE"; failed = 1 }
        printf "%-28s %8d instructions (%d), %7.3f allocations (%.3f) per %-20s %s\n",
            $1, $2, instructions[$1], $3, allocations[$1], $4, verdict
    }
    END { exit failed }' "$baseline" "$now" || fail "a hot path costs more than $baseline says; if that is meant, scripts/counts.sh --update"
