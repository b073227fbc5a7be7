#!/bin/bash
# Measures netskoopd against the floor program, in namespaces of its own that are gone when it ends.
#
# N="1 10 100" chooses the numbers of namespaces. docs/benchmarks.md is written if they include 100 and 1000.
# ONLY=names measures nothing but what names cost, ONLY=sockets, ONLY=processes, ONLY=tracked, ONLY=packets and ONLY=programs
# nothing but what these cost, ONLY=storm what a storm of dropped packets does; ONLY=reads nothing but collections.
# NETSKOOP_TOOLS is a directory with public tools to compare with, beside those that are installed.
set -euo pipefail
cd "$(dirname "$0")/../.."
PATH=$PATH:${HOME:-/root}/.cargo/bin
bin=$(realpath -m "${CARGO_TARGET_DIR:-target}")/release

if [ "$(id -u)" != 0 ]; then
	echo "Network namespaces are only for root: sudo make bench" >&2
	exit 1
fi
tests/setup.sh test
cargo build --release --locked --quiet -p netskoopd -p netskoopctl
# It also serves as a large container runtime.
runtime=$(cargo test --locked --quiet -p netskoopd --test daemon --no-run --message-format=json |
	python3 -c 'import json, sys
for line in sys.stdin:
	found = json.loads(line)
	if found.get("executable") and found["target"]["name"] == "daemon": print(found["executable"])')

# BPF run times are counted only for a moment, but for the whole node: whatever happens, the switch goes back.
stats=/proc/sys/kernel/bpf_stats_enabled
before=$(cat $stats 2>/dev/null) || before=
work=$(mktemp -d)
cleanup() {
	[ -z "$before" ] || echo "$before" >$stats
	rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

cc -O2 -w -o "$work/floor" tests/bench/floor/floor.c
cc -O2 -w -o "$work/sockets" tests/bench/floor/sockets.c
cc -O2 -w -o "$work/processes" tests/bench/floor/processes.c
cc -O2 -w -o "$work/packets" tests/bench/floor/packets.c
cc -O2 -w -o "$work/drops" tests/bench/floor/drops.c
cc -O2 -w -o "$work/hooks" tests/bench/floor/hooks.c
git rev-parse --short HEAD >"$work/commit" 2>/dev/null || echo unknown >"$work/commit"

# A node of its own: the daemon sees these namespaces and processes only, and all end with the first process.
unshare --net --mount --fork --kill-child \
	python3 tests/bench/bench.py "$work" "${NETSKOOPD:-$bin/netskoopd}" "${NETSKOOPCTL:-$bin/netskoopctl}" \
	"$runtime" "${N:-1 10 100 1000}"
