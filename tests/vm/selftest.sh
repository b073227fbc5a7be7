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
expect "no line" 3 "half a line" "$boot" 6.1 'printf "half a line"; exit 3'
expect "pretended end" 125 "went down while the command ran" "$boot" 6.1 \
	'echo "[vm] exit code 0"; echo c >/proc/sysrq-trigger; sleep 100'
expect "hung boot" 125 "did not come up within 3 s" "$boot" -b 3 -q -S 6.1 true
expect "no answer" 124 "did not end within 15 s" "$boot" -t 15 6.1 'echo begun; sleep 1000'
expect "no root" 125 "did not come up" "$boot" -a rdinit=/none 6.1 true
expect "unknown kernel" 1 "has no kernel 1.0" "$boot" 1.0 true
expect "no such suite" 1 "does not have all of none" env NETSKOOP_KERNELS="$(matrix none)" "$here/kernel.sh" 6.1
expect "no mirror" 1 "could not be reached" \
	env NETSKOOP_KERNELS="$(matrix bookworm)" DEBIAN_MIRROR=http://127.0.0.1:9/debian "$here/kernel.sh" 6.1
expect "kernel gone" 0 "the archive has moved on from 6.1.0-1-none" \
	env NETSKOOP_KERNELS="$(matrix "$(kernel_key 6.1 suites)")" "$here/kernel.sh" 6.1
rm -f "$lab/kernels/6.1.0-1-none.moved"

# shellcheck disable=SC2016 # they are variables of the shell inside
expect "no space" 125 "needs 1 GiB" unshare -m sh -c 'mount -t tmpfs -o size=9m none "$TMPDIR" && "$0" 6.1 true' "$boot"

# What is left of a preparation that did not come to its end, in a lab of its own.
nothing_left() {
	# Those that have it locked are about to die.
	if ! flock -w 20 "$own/root.lock" true || pgrep -f -- "$own" >/dev/null; then
		echo "$1: something goes on:"
		pgrep -af -- "$own"
		wrong=1
	fi
	if grep -F "$own" /proc/self/mountinfo || ls -d "$TMPDIR"/* 2>/dev/null; then
		echo "$1: this is left"
		wrong=1
	fi
}
own=$work/lab
mkdir -p "$own" "$work/bin"
# shellcheck disable=SC2016 # they are variables of the shell inside
printf '#!/bin/sh\nfor last; do case $last in */root-*) mkdir -p "$last/etc";; esac; done; exit 1\n' >"$work/bin/mmdebstrap"
chmod 755 "$work/bin/mmdebstrap"
expect "half a root" 1 "mmdebstrap cannot make a system" env NETSKOOP_LAB="$own" PATH="$work/bin:$PATH" "$here/image.sh" tree
[ "$(ls "$own")" = root.lock ] || { echo "half a root: it is kept: $(ls "$own")" && wrong=1; }

# Ctrl-C on a terminal, where the shell has everything that it starts with & ignore it.
NETSKOOP_LAB=$own timeout 300 python3 - "$here/kernels.sh" "$own" >"$work/out" 2>&1 <<'END'
import glob, os, pty, select, sys, time
pid, terminal = pty.fork()
if pid == 0:
    os.execv(sys.argv[1], [sys.argv[1], "6.1"])
sent = False
while True:
    # By then mmdebstrap has mounted what it mounts and installs.
    if not sent and glob.glob(sys.argv[2] + "/root-*.new/etc/passwd"):
        os.write(terminal, b"\x03")
        sent = True
    try:
        if select.select([terminal], [], [], 0.1)[0]:
            sys.stdout.write(os.read(terminal, 4096).decode(errors="replace"))
    except OSError:
        break
code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
sys.exit(f"Ctrl-C: ended with {code}, pressed: {sent}" if not sent or code != 130 else 0)
END
# shellcheck disable=SC2181
[ $? = 0 ] || { cat "$work/out" && wrong=1; }
nothing_left "Ctrl-C"
[ "$(ls "$own")" = root.lock ] || { echo "Ctrl-C: half a root is kept: $(ls "$own")" && wrong=1; }

# What ends without a word leaves files at most.
NETSKOOP_LAB=$own "$here/image.sh" tree >"$work/out" 2>&1 </dev/null &
script=$!
tries=0
until [ -n "$(find "$own"/root-*.new -path '*/etc/passwd' 2>/dev/null)" ] || [ $tries -ge 3000 ]; do
	sleep 0.1
	tries=$((tries + 1))
done
{
	kill -9 $script
	wait $script
} 2>/dev/null
nothing_left "killed while it prepares"

# Whatever ends the script ends the machine.
setsid "$boot" 6.1 'echo begun; sleep 1000' >"$work/out" 2>&1 </dev/null &
script=$!
tries=0
until grep -q begun "$work/out" || [ $tries -ge 600 ]; do
	sleep 0.1
	tries=$((tries + 1))
done
machine=$(pgrep -f -- "path=$TMPDIR")
{
	kill -9 $script
	wait $script
} 2>/dev/null
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
