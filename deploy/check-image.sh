#!/usr/bin/env bash
# Follows the Dockerfile without a container engine: builds the same static binary, lays out the same files, and starts
# it as the image would be started: as user 10001, on a read-only root that holds nothing else, with a volume.
#
#   deploy/check-image.sh                 build for musl (needs musl-tools and the rustup target) and check; as root
#   deploy/check-image.sh BINARY          check this static binary
#
# It says what the image weighs and how long the program takes until it is ready. Needs util-linux and coreutils.
set -euo pipefail
cd "$(dirname "$0")/.."
here=$PWD/deploy/check-image.sh
fail() { printf 'check-image: %s\n' "$*" >&2; exit 1; }

if [ "${1:-}" = --inside ]; then
    # In namespaces of our own: the root is read-only, the volume is all there is to write to.
    root=$2
    shift 2
    mount --bind "$root" "$root"
    mount --bind "$root.volume" "$root/var/lib/spanledger"
    mount -o remount,bind,ro "$root"
    ip link set lo up
    exec env -i "$@"
fi

[ "$(id -u)" -eq 0 ] || fail "needs root for chroot and mounts"
binary=${1:-}
if [ -z "$binary" ]; then
    target=$(uname -m)-unknown-linux-musl
    command -v musl-gcc >/dev/null || fail "musl-gcc is missing: apt-get install musl-tools"
    cargo build --release --locked --bin spanledger --target "$target"
    binary=${CARGO_TARGET_DIR:-target}/$target/release/spanledger
fi

# What the Dockerfile promises, read from it.
final_stage() { sed -n '/^FROM scratch/,$p' Dockerfile; }
instruction() { final_stage | sed -n "s/^$1 //p" | tail -n 1; }
[ "$(instruction USER)" = 10001:10001 ] || fail "the Dockerfile's user is $(instruction USER)"
volume=$(instruction VOLUME)
[ "$volume" = /var/lib/spanledger ] || fail "the Dockerfile's volume is $volume"
final_stage | grep -q '^HEALTHCHECK .* CMD \["/spanledger", "healthcheck"\]$' || fail "no HEALTHCHECK by the binary"
[ "$(instruction ENTRYPOINT) $(instruction CMD)" = '["/spanledger"] ["run"]' ] || fail "another command"
# ENV with its continuation lines: all of NAME=value.
mapfile -t environment < <(final_stage | sed -n '/^ENV /,/[^\\]$/p' | grep -oE '\b[A-Z][A-Z_]*=[^ ]+')
for name in SPANLEDGER_LISTEN_HOST SPANLEDGER_DATA SQLITE_TMPDIR; do
    [[ " ${environment[*]}" = *" $name="* ]] || fail "the Dockerfile sets no $name: ${environment[*]}"
done

if readelf -lW "$binary" | grep -q INTERP; then
    fail "$binary is not static: it would not start on an empty root"
fi

work=$(mktemp -d)
root=$work/root
pid=
cleanup() {
    [ -z "$pid" ] || kill -KILL "$pid" 2>/dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT
chmod 755 "$work"
install -D -m 0755 "$binary" "$root/spanledger"
install -d -m 0755 "$root$(instruction WORKDIR)" "$root/var/lib"
install -d -m 0750 -o 10001 -g 10001 "$root$volume" "$root.volume"
printf 'image: %s bytes in %s file(s)\n' "$(stat -c %s "$root/spanledger")" "$(find "$root" -type f | wc -l)"

as_user=(setpriv --no-new-privs chroot --userspec=10001:10001 --groups=10001 "$root")
path=PATH=/usr/sbin:/usr/bin:/sbin:/bin

# The network namespace is new too, so the fixed ports are free and nothing outside is reached.
unshare --mount --net --ipc "$here" --inside "$root" "$path" "${environment[@]}" "${as_user[@]}" /spanledger run \
    >"$work/log" 2>&1 &
pid=$!
started=$(date +%s%N)
inside() { nsenter --target "$pid" --mount --net env -i "$path" "${environment[@]}" "$@"; }
until inside "${as_user[@]}" /spanledger healthcheck >"$work/health" 2>&1; do
    kill -0 "$pid" 2>/dev/null || { cat "$work/log"; fail "the program ended"; }
    [ $(($(date +%s%N) - started)) -lt 20000000000 ] || { cat "$work/log" "$work/health"; fail "not ready in 20 s"; }
    sleep 0.02
done
printf 'ready after %s ms, asked by the HEALTHCHECK\n' $((($(date +%s%N) - started) / 1000000))

[ "$(stat -c %u "/proc/$pid")" = 10001 ] || fail "runs as user $(stat -c %u "/proc/$pid")"
grep -q '^CapEff:\s*0*$' "/proc/$pid/status" || fail "has capabilities: $(grep CapEff "/proc/$pid/status")"
if inside touch "$root/written" 2>/dev/null; then fail "the root can be written to"; fi

inside "${as_user[@]}" /spanledger demo --rate 50 --duration 3s >"$work/demo" 2>&1 || { cat "$work/demo"; fail "demo"; }
kill -TERM "$pid"
code=0
wait "$pid" || code=$?
pid=
[ "$code" -eq 0 ] || { cat "$work/log"; fail "exit code $code after SIGTERM"; }
[ -n "$(find "$root.volume/journal" -type f -size +0)" ] || fail "no journal in the volume"
[ -s "$root.volume/executions.db" ] || fail "no rows in the volume"
[ -z "$(find "$root.volume/journal" -type f -perm /077)" ] || fail "journal files that others can read"
[ -z "$(find "$root.volume" ! -uid 10001)" ] || fail "files of another user in the volume"
echo "read-only root, user 10001 without capabilities, spans taken, rows written, exit 0 after SIGTERM: good"
