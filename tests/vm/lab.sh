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

# Runs quietly; what it printed is shown only if it failed.
quietly() {
	local log
	log=$(mktemp)
	if "$@" >"$log" 2>&1 </dev/null; then
		rm -f "$log"
		return 0
	fi
	cat "$log" >&2
	rm -f "$log"
	echo "failed: $*" >&2
	return 1
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
