#!/bin/bash
# `check-glibc.sh 2.31 PROGRAM`: fails if the program wants symbols of a newer glibc, and names them.
set -euo pipefail

newest=$1
program=$2
symbols=$(objdump -T "$program" | sed -n 's/.*(\{0,1\}GLIBC_\([0-9.]*\))\{0,1\} *\(.*\)/\1 \2/p')
[ -n "$symbols" ] || { echo "$program: no symbols of glibc were found; is it a dynamic program?" >&2 && exit 1; }
wanted=$(cut -d' ' -f1 <<<"$symbols" | sort -Vu | tail -1)
if [ "$(printf '%s\n%s\n' "$wanted" "$newest" | sort -V | tail -1)" != "$newest" ]; then
	echo "$program wants glibc $wanted, but $newest must do:" >&2
	grep "^$wanted " <<<"$symbols" >&2
	exit 1
fi
echo "$(basename "$program") runs with glibc $wanted and newer"
