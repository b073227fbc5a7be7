#!/bin/bash
# kernels.sh [NAME...]: in each kernel of kernels.toml, or in those named (or in KERNEL), starts netskoopd with every probe
# on, provokes what each probe is for, and compares how the probes stand with what kernels.toml expects. One line per
# kernel and probe. docs/kernels.md is written if it was all of them. ONLY=tcpreset,qdisc provokes only what these probes are for.
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=tests/vm/lab.sh
. tests/vm/lab.sh
PATH=$PATH:${HOME:-/root}/.cargo/bin

# Time that one kernel may take: emulated machines are slow, two run at a time, and a scenario that fails is patient twice.
limit=1200
at_once=${AT_ONCE:-2}

mapfile -t names < <(if [ $# -gt 0 ]; then printf '%s\n' "$@"; else tr ' ' '\n' <<<"${KERNEL:-$(kernel_names)}"; fi)
for name in "${names[@]}"; do
	kernel_names | grep -qxF -- "$name" || die "There is no kernel $name in tests/vm/kernels.toml, but: $(kernel_names | paste -sd ' ')"
done
[ "$(id -u)" = 0 ] || cannot "Making root file systems is only for root: sudo make test-kernels"
[ "$(uname -m)" = x86_64 ] || cannot "The kernel lab emulates x86_64 machines, and what is built here runs on $(uname -m) only."
tests/setup.sh test

results=$lab/results
work=$(mktemp -d)
cleanup() {
	local jobs
	end_awaited
	mapfile -t jobs < <(jobs -p)
	[ ${#jobs[@]} = 0 ] || kill "${jobs[@]}" 2>/dev/null || true
	wait
	rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM HUP

# The archive is slow and the compiler busy: both at once.
setpriv --pdeathsig TERM tests/vm/prepare.sh "${names[@]}" &
prepared=$!

# Programs as cargo has built them for the other tests, without what only a debugger wants; inside they are where they are
# here, because tests know the paths.
alone env TMPDIR="$work" cargo test --workspace --locked -q --no-run --message-format=json >"$work/built" 2>"$work/cargo" || {
	cat "$work/cargo" >&2
	die "cargo test --no-run failed"
}
python3 -c 'import json, sys
for line in sys.stdin:
    found = json.loads(line)
    target = found.get("target", {})
    if found.get("executable") and (target["kind"] == ["bin"] and not found["profile"]["test"] or target["name"] == "daemon"):
        print(target["name"], found["executable"])' <"$work/built" >"$work/programs"
while read -r name path; do
	mkdir -p "$work/share$(dirname "$path")"
	strip --strip-debug -o "$work/share$path" "$path"
	declare "program_$name=$path"
done <"$work/programs"
mkdir -p "$work/share/usr/local/bin" "$work/share$PWD/tests/vm" "$work/share$PWD/daemon"
ln -s "${program_netskoopctl:?}" "$work/share/usr/local/bin/netskoopctl"
cp -r tests/fixtures "$work/share$PWD/tests/"
cp tests/vm/kernels.toml "$work/share$PWD/tests/vm/"
tar -cf "$work/share.tar" -C "$work/share" .
truncate -s %4096 "$work/share.tar"
rm -r "$work/share"
wait $prepared || exit

# boot_one NAME COMMAND OUT: it ends when this does, and takes its machine along.
boot_one() {
	setpriv --pdeathsig TERM tests/vm/boot.sh -f "$work/share.tar" -t $limit -o "$3" "$1" "$2" >"$3/log" 2>&1
}

# met_a_ghost CODE OUT: the emulator's fault, not ours. Now and then it goes on seeing the breakpoint with which a kernel rewrites
# its own code after that is gone. Then both processors run into it for ever, or the kernel says that it knows of none, and dies.
met_a_ghost() {
	{ [ "$1" = 124 ] && grep -q asm_exc_int3 "$2/log"; } || grep -qs 'int3: 0000 \[#1\]' "$2/console.log"
}

test_one() {
	local name=$1 out=$results/$1 code=0 began=$SECONDS command test
	command="cd '$PWD/daemon'; export NETSKOOP_LAB_KERNEL='$name' NETSKOOP_LAB_ONLY='${ONLY:-}' NETSKOOP_NO_SKIP=1 NETSKOOP_PATIENCE=6"
	# shellcheck disable=SC2016 # they are variables of the shell inside
	command+='; code=0; twice() { "$@" || { echo "once more"; "$@"; } || code=1; }'
	# The scenarios come last: after that of IPVS, 5.10 may take for ever to end a namespace, and makes none meanwhile. Each of
	# them is tried twice by itself.
	for test in lab::ways:: lab::kernel::; do
		command+="; twice '${program_daemon:?}' --ignored --test-threads=1 $test"
	done
	command+="; '$program_daemon' --ignored --test-threads=1 lab::every_probe || code=1"
	# Tests that run on little nodes elsewhere have the whole machine for themselves.
	for test in $(kernel_key "$name" tests); do
		command+="; mkdir -p /run/netns; NETSKOOP_TEST_NODE='$test' '$program_daemon' --exact '$test' || code=1"
	done
	# shellcheck disable=SC2016 # it is that of the shell inside
	command+='; exit $code'
	rm -rf "$out"
	mkdir -p "$out"
	boot_one "$name" "$command" "$out" || code=$?
	if [ $code != 0 ] && met_a_ghost "$code" "$out"; then
		echo "$name ran into a breakpoint that is not there, and is started once more; what it had said is in $out.still"
		rm -rf "$out.still"
		mv "$out" "$out.still"
		mkdir "$out"
		code=0
		boot_one "$name" "$command" "$out" || code=$?
	fi
	# A filter that finds no test is content with that.
	if [ $code = 0 ] && { [ ! -s "$out/probes.tsv" ] || grep -qx 'running 0 tests' "$out/log"; }; then
		echo "A test that kernels.sh or kernels.toml asks for is not there." >>"$out/log"
		code=1
	fi
	cat "$lab/kernels/$(kernel_key "$name" release)/release" >"$out/release" 2>/dev/null ||
		sed -n 's/^\[vm\] up: \([^ ]*\) .*/\1/p' "$out/log" >"$out/release"
	echo "$((SECONDS - began)) $code" >"$out/end"
	# In one piece: two may end at the same time.
	flock "$work" python3 tests/vm/report.py lines "$results" "$name"
	return $code
}

failed=0 running=0
for name in "${names[@]}"; do
	if [ $running -ge "$at_once" ]; then
		wait -n || failed=1
		running=$((running - 1))
	fi
	test_one "$name" &
	running=$((running + 1))
done
while [ $running -gt 0 ]; do
	wait -n || failed=1
	running=$((running - 1))
done
if [ $failed = 0 ] && [ -z "${ONLY:-}" ] && [ "$(printf '%s\n' "${names[@]}" | sort)" = "$(kernel_names | sort)" ]; then
	python3 tests/vm/report.py document "$results" "${names[@]}" >docs/kernels.md
fi
exit $failed
