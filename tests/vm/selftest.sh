#!/bin/bash
# selftest.sh: what the kernel lab does when something goes wrong: a clear message, in bounded time, nothing left behind.
set -uo pipefail
# shellcheck source=tests/vm/lab.sh
. "$(dirname "$0")/lab.sh"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export TMPDIR=$work/tmp
mkdir "$TMPDIR"
wrong=0

# expect WHAT CODE WORDS COMMAND...: the command ends with the code, and says the words.
expect() {
	local what=$1 code=$2 words=$3 got=0
	shift 3
	"$@" >"$work/out" 2>&1 </dev/null || got=$?
	if [ $got != "$code" ] || ! grep -q -- "$words" "$work/out"; then
		echo "$what: ended with $got instead of $code, or did not say '$words':"
		sed 's/^/    /' "$work/out"
		wrong=1
	fi
	if [ -n "$(ls "$TMPDIR")" ] || pgrep -f -- "file=$TMPDIR\|path=$TMPDIR" >/dev/null; then
		echo "$what: something is left in $TMPDIR"
		wrong=1
		rm -rf "${TMPDIR:?}"/*
	fi
}

# matrix SUITES: one with a kernel called 6.1 that is not in the archive.
matrix() {
	printf '[kernels."6.1"]\nsuites = "%s"\nrelease = "6.1.0-1-none"\n' "$1" >"$work/kernels.toml"
	echo "$work/kernels.toml"
}

boot=$here/boot.sh
expect "exit code" 7 "hello from" "$boot" 6.1 'echo hello from $(uname -r); exit 7'
expect "panic" 125 "went down while the command ran" "$boot" 6.1 'echo c >/proc/sysrq-trigger; sleep 100'
grep -q 'sysrq' "$work/out" || { echo "panic: the console is not shown" && wrong=1; }
expect "hung boot" 125 "did not come up within 3 s" "$boot" -b 3 -q -S 6.1 true
expect "no answer" 124 "did not end within 15 s" "$boot" -t 15 6.1 'echo begun; sleep 1000'
expect "no root" 125 "did not come up" "$boot" -a rdinit=/none 6.1 true
expect "unknown kernel" 1 "has no kernel 1.0" "$boot" 1.0 true
expect "unreachable suite" 1 "cannot be fetched" env NETSKOOP_KERNELS="$(matrix none)" "$here/kernel.sh" 6.1
expect "kernel gone" 0 "the archive has moved on from 6.1.0-1-none" \
	env NETSKOOP_KERNELS="$(matrix "$(kernel_key 6.1 suites)")" "$here/kernel.sh" 6.1
rm -f "$lab/kernels/6.1.0-1-none.moved"

# Whatever ends the script ends the machine.
setsid "$boot" 6.1 'echo begun; sleep 1000' >"$work/out" 2>&1 </dev/null &
script=$!
tries=0
until grep -q begun "$work/out" || [ $tries -ge 600 ]; do
	sleep 0.1
	tries=$((tries + 1))
done
machine=$(pgrep -f -- "path=$TMPDIR")
kill -9 $script
wait $script 2>/dev/null
tries=0
while [ -n "$machine" ] && [ -e "/proc/$machine" ] && [ $tries -lt 50 ]; do
	sleep 0.1
	tries=$((tries + 1))
done
if [ -z "$machine" ] || [ -e "/proc/$machine" ]; then
	echo "killed: the emulated machine lives on, or never was: $machine"
	wrong=1
fi
exit $wrong
