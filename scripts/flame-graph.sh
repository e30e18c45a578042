#!/usr/bin/env bash
# Draws where the time goes, docs/flame-graph.svg, from samples of the running program.
#
#   cargo build --profile profiling
#   cargo bench --bench whole -- grpc --runs 1 --seconds 20 --program "$PWD/target/profiling/spanledger" &
#   scripts/flame-graph.sh PID [SECONDS]
#
# Needs perf, and `cargo install inferno`. Frames that only lead from one function to the next (closures, futures, the
# runtime) are left out.
set -euo pipefail
cd "$(dirname "$0")/.."
pid=${1:?the process}
seconds=${2:-6}
samples=$(mktemp)
trap 'rm -f "$samples"' EXIT

perf record --quiet --output "$samples" --call-graph dwarf,16384 --freq 797 --pid "$pid" -- sleep "$seconds"
perf script --no-inline --input "$samples" 2>/dev/null |
    inferno-collapse-perf |
    python3 -c '
import re, sys
plumbing = re.compile(r"^<?(&mut |alloc::boxed::Box<)?(core|std|alloc|tokio::(?!fs)|futures_util|hyper_util|tracing|clone3|start_thread|\[unknown\]|__libc_start)|_start$|entry_SYSCALL|do_syscall|catch_unwind|__GI_")
closure = re.compile(r"(::\{\{closure\}\}|::\{closure#\d+\}|::\{async_\w+#\d+\}| \(inlined\))+")
generic = re.compile(r"<[^<>]*>")
for line in sys.stdin:
    stack, _, count = line.rstrip().rpartition(" ")
    kept = []
    for frame in stack.split(";"):
        frame = closure.sub("", frame)
        if kept and plumbing.match(frame):
            continue
        while len(frame) > 70 and generic.search(frame):
            frame = generic.sub("", frame)
        if not frame.startswith("::") and frame not in kept[-1:]:
            kept.append(frame)
    print(";".join(kept), count)
' |
    inferno-flamegraph --title "spanledger: gRPC in, derive, forward" --minwidth 0.4 --width 1200 >docs/flame-graph.svg
