#!/bin/bash
# image.sh tree|disk: a Debian (or Ubuntu) root of this machine's own release, so that what is built here runs there.
# Made once; prints the directory, or the disk image made of it. Nothing of the project is in it.
set -euo pipefail
# shellcheck source=tests/vm/lab.sh
. "$(dirname "$0")/lab.sh"

# For systemd in containers, and for what tests do inside of kernels.
packages=systemd,systemd-sysv,dbus,iproute2,libelf1,zlib1g,procps,kmod,nftables,conntrack,ipvsadm,ethtool
packages+=,containerd,runc,containernetworking-plugins,busybox-static,strace

suite=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
[ -n "$suite" ] || cannot "No Debian system can be made: /etc/os-release has no VERSION_CODENAME."
tree=$lab/root-$suite
disk=$lab/root-$suite.ext4

# It is called where the shell goes on after a failure, so each step says what that means.
make_tree() {
	local lists=() list
	# What the machine itself installs from.
	for list in sources.list sources.list.d/debian.sources sources.list.d/ubuntu.sources; do
		[ ! -e "/etc/apt/$list" ] || lists+=("/etc/apt/$list")
	done
	remove "$tree.new" "$tree.tmp"
	mkdir "$tree.tmp"
	quietly env TMPDIR="$tree.tmp" timeout 600 mmdebstrap -q --variant=minbase --include="$packages" \
		--aptopt='Apt::Install-Recommends "false"' --aptopt='Acquire::Languages "none"' \
		--dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
		--dpkgopt='path-exclude=/usr/share/locale/*' "$suite" "$tree.new" "${lists[@]}" || return 1
	# Started by the tests that want it.
	rm -f "$tree.new"/etc/systemd/system/multi-user.target.wants/{containerd,ipvsadm,nftables}.service || return 1
	echo "$packages" >"$tree.new/etc/lab-packages"
}

make_disk() {
	local size
	size=$(du -sm "$tree" | cut -f1)
	rm -f "$disk.new"
	truncate -s $((size + 700))M "$disk.new"
	quietly mke2fs -q -F -t ext4 -O ^has_journal -m 0 -E lazy_itable_init=0,root_owner=0:0 -d "$tree" "$disk.new"
	mv "$disk.new" "$disk"
}

trap end_awaited EXIT
trap 'exit 130' INT TERM HUP
lock "$lab/root.lock" "the root file system"
trap 'end_awaited; remove "$tree.new" "$tree.tmp" "$disk.new"' EXIT
if [ "$(cat "$tree/etc/lab-packages" 2>/dev/null)" != "$packages" ]; then
	[ "$(id -u)" = 0 ] || cannot "Making root file systems is only for root."
	# An archive may be busy once.
	make_tree || make_tree || die "mmdebstrap cannot make a system of $suite."
	remove "$tree" "$disk"
	mv "$tree.new" "$tree"
fi
case $1 in
tree) echo "$tree" ;;
disk)
	[ -e "$disk" ] || make_disk
	echo "$disk"
	;;
*) die "image.sh knows tree and disk, not $1" ;;
esac
