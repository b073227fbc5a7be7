#!/bin/bash
# package.sh KERNEL DEB: installs the package in a kernel of the lab, under a real systemd, and looks at what the probes are
# inside the unit's sandbox, those above all for which this kernel has fentry, kprobes and no better.
set -euo pipefail
# shellcheck source=tests/vm/lab.sh
. "$(dirname "$0")/lab.sh"

kernel=$1 deb=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM HUP
mkdir "$work/share"
cp "$deb" "$work/share/netskoop.deb"
cp "$here/package.guest.sh" "$work/share/package.sh"
tar -cf "$work/share.tar" -C "$work/share" .
truncate -s %4096 "$work/share.tar"
"$here/boot.sh" -a lab.systemd -f "$work/share.tar" -t 240 "$kernel" 'bash /package.sh'
