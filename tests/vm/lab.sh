# shellcheck shell=bash
# What the scripts of the kernel lab share; to be sourced. All that they make is kept in $lab, an ignored folder.

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
lab=${NETSKOOP_LAB:-$here/../../target/lab}
matrix=${NETSKOOP_KERNELS:-$here/kernels.toml}
mkdir -p "$lab"
lab=$(cd "$lab" && pwd)

# die SENTENCE: ends the script.
die() {
	echo "$*" >&2
	exit 1
}

# cannot SENTENCE: ends a script that this machine cannot run.
cannot() {
	echo "$*" >&2
	exit 77
}

awaited=
# await COMMAND...: it ends when this script does, whatever ends that; and signals to the script need not wait for it.
await() {
	local code=0
	setpriv --pdeathsig TERM "$@" &
	awaited=$!
	wait "$awaited" || code=$?
	awaited=
	return $code
}

# Ends what is awaited, and lets it tidy up; for a script that ends before.
end_awaited() {
	[ -n "$awaited" ] || return 0
	if [ "$(cat "/proc/$awaited/comm" 2>/dev/null)" = unshare ]; then
		# It ends when what it has started does, and not before.
		pkill -KILL -P "$awaited" || kill -KILL "$awaited" 2>/dev/null || true
	else
		kill "$awaited" 2>/dev/null || true
	fi
	wait "$awaited" 2>/dev/null || true
	awaited=
}

# alone COMMAND...: the same, and none of its processes and none of its mounts outlives it, or this script.
alone() {
	await setpriv --pdeathsig KILL unshare --mount-proc --pid --fork --kill-child "$@"
}

# quietly COMMAND...: alone; what it printed is shown only if it failed; and it is at file descriptor 8, in a file without a name.
quietly() {
	local log
	log=$(mktemp)
	exec 8<>"$log"
	rm -f "$log"
	if alone "$@" >&8 2>&1 </dev/null; then
		return 0
	fi
	cat /dev/fd/8 >&2
	echo "failed: $*" >&2
	return 1
}

# lock FILE WHAT: others that make the same wait until this script and all that it started have ended.
lock() {
	exec 9>"$1"
	flock -n 9 && return
	echo "waiting for another run that prepares $2 (it has locked $1)" >&2
	await flock 9
}

# remove PATH...: and nothing that is mounted below it.
remove() {
	rm -rf --one-file-system -- "$@" ||
		die "Not all of $* can be removed. If something is mounted there (findmnt), unmount it and try again."
}

# The names of all kernels of the matrix.
kernel_names() {
	grep -v '\.probes\]' "$matrix" | sed -n 's/^\[kernels\."\{0,1\}\([^]"]*\)"\{0,1\}\]$/\1/p'
}

# kernel_key NAME KEY: a value in the table of a kernel.
kernel_key() {
	awk -v "name=$1" -v "key=$2" '
		/^\[/ { gsub(/"/, ""); inside = ($0 == "[kernels." name "]") }
		inside && $1 == key && $2 == "=" { sub(/^[^"]*"/, ""); sub(/".*/, ""); print; exit }
	' "$matrix"
}
