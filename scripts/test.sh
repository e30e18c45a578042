#!/usr/bin/env bash
# Installs what the tests need, at pinned versions, and runs all tests.
#
#   scripts/test.sh                        everything
#   scripts/test.sh --test e2e kill_loop   arguments go to `cargo test`
#   scripts/test.sh --install-only         only the installing
#
# Needs a Rust toolchain. The rest comes from Debian (apt-get, as root), and at pinned versions from PyPI, npm, the Go
# module proxy, Maven Central and crates.io into tests/sdk and tests/browser. Nothing is installed or built a second time
# while the pinned versions stay the same.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
fail() { printf 'scripts/test.sh: %s\n' "$*" >&2; exit 1; }
has() { command -v "$1" >/dev/null 2>&1; }

has cargo || fail "cargo is missing; install Rust from https://rustup.rs (the version is in Cargo.toml, rust-version)"

# --- Debian packages -------------------------------------------------------------------------------------------------

missing=()
has cc || missing+=(build-essential)
{ has python3 && python3 -c 'import ensurepip, venv' 2>/dev/null; } || missing+=(python3 python3-venv)
# Node.js 18 is what Debian 12 has; the exporter under test needs at least that.
{ has node && [ "$(node -p 'parseInt(process.versions.node)')" -ge 18 ]; } || missing+=(nodejs)
has npm || missing+=(npm)
{ has postgres || compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null; } || missing+=(postgresql)
{ has pgbouncer || [ -x /usr/sbin/pgbouncer ]; } || missing+=(pgbouncer)
{ has promtool && has prometheus; } || missing+=(prometheus)
{ has chromium || has google-chrome; } || missing+=(chromium)
{ has javac && has java; } || missing+=(openjdk-17-jdk-headless)
has mvn || missing+=(maven)

if [ ${#missing[@]} -gt 0 ]; then
    say "Debian packages: ${missing[*]}"
    has apt-get || fail "these programs are missing and there is no apt-get to install them with: ${missing[*]} (Debian's package names)"
    [ "$(id -u)" -eq 0 ] || fail "not root; run first: sudo apt-get install --no-install-recommends ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get -qq update
    apt-get -qq install -y --no-install-recommends "${missing[@]}" >/dev/null
fi

# --- Python and Node.js packages --------------------------------------------------------------------------------------

# `up_to_date STAMP FILE...`: whether STAMP was written for exactly these files.
up_to_date() { local stamp=$1; shift; [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(cat "$@" | cksum)" ]; }

venv=tests/sdk/.venv
pins=tests/sdk/requirements.txt
if ! up_to_date "$venv/installed" "$pins" || ! "$venv/bin/python" -c '' 2>/dev/null; then
    say "Python packages into $venv"
    rm -rf "$venv"
    python3 -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --requirement "$pins"
    cksum <"$pins" >"$venv/installed"
fi

for node in tests/sdk/node tests/browser; do
    if ! up_to_date "$node/node_modules/installed" "$node/package-lock.json"; then
        say "npm packages into $node/node_modules"
        (cd "$node" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error)
        cksum <"$node/package-lock.json" >"$node/node_modules/installed"
    fi
done

# --- Senders that are compiled -----------------------------------------------------------------------------------------

# The tests of a language whose toolchain cannot be had say that they are skipped, and why.
go=tests/sdk/go
rm -f "$go/unavailable"
go_version=$(has go && go env GOVERSION | sed 's/^go//' || true)
go_needed=$(sed -n 's/^go //p' "$go/go.mod")
if ! printf '%s\n' "$go_needed" "${go_version:-0}" | sort --version-sort --check=quiet; then
    echo "Go $go_needed or newer is needed and Debian has an older one; found: ${go_version:-none}" | tee "$go/unavailable" >&2
elif ! up_to_date "$go/built" "$go/go.sum" "$go/send.go"; then
    say "Go sender"
    (cd "$go" && go build -mod=readonly -o send .)
    cat "$go/go.sum" "$go/send.go" | cksum >"$go/built"
fi

java=tests/sdk/java
if ! up_to_date "$java/target/built" "$java/pom.xml" "$java/Send.java"; then
    say "Java sender"
    rm -rf "$java/target"
    (cd "$java" && mvn --quiet --batch-mode org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies \
        -DoutputDirectory=target/lib -DincludeScope=runtime)
    javac -cp "$java/target/lib/*" -d "$java/target/classes" "$java/Send.java"
    cat "$java/pom.xml" "$java/Send.java" | cksum >"$java/target/built"
fi

rust=tests/sdk/rust
if ! up_to_date "$rust/target/built" "$rust/Cargo.lock" "$rust/src/main.rs"; then
    say "Rust sender"
    (cd "$rust" && CARGO_TARGET_DIR=target cargo build --quiet --locked)
    cat "$rust/Cargo.lock" "$rust/src/main.rs" | cksum >"$rust/target/built"
fi

[ "${1:-}" = --install-only ] && exit 0

# --- Tests -----------------------------------------------------------------------------------------------------------

say "cargo test"
if [ $# -gt 0 ]; then
    exec cargo test "$@"
fi
exec cargo test --all-targets
