#!/bin/bash
# kernel.sh NAME: fetches a kernel of kernels.toml and makes it bootable; prints the directory with
#   vmlinux      the kernel, unpacked: so it need not unpack itself on a slow emulated machine
#   boot.cpio    busybox and the modules that reach the root disk
#   modules.ext4 the modules that tests may want
#   release      what `uname -r` will say
# apt's state for this is kept apart from the machine's own; mirrors and proxies are those that the machine uses.
set -euo pipefail
# shellcheck source=tests/vm/lab.sh
. "$(dirname "$0")/lab.sh"

name=$1
release=$(kernel_key "$name" release)
suites=$(kernel_key "$name" suites)
[ -n "$release" ] || die "tests/vm/kernels.toml has no kernel $name; it has: $(kernel_names | paste -sd ' ')"
state=$lab/apt/$name

# mirror SUITE: where this machine gets Debian's packages from, as its apt has found it in the lists that it has: the main
# archive, or security updates. Other repositories have suites of the same names.
mirror() {
	local releases='bullseye|bookworm|trixie|forky|duke|sid|stable|testing|unstable'
	case $1 in
	*-security) releases="($releases)-security" ;;
	*) [ -z "${DEBIAN_MIRROR:-}" ] || { echo "$DEBIAN_MIRROR" && return; } ;;
	esac
	# shellcheck disable=SC2016 # apt fills it in
	apt-get indextargets --format '$(ORIGIN) $(RELEASE) $(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
		sed -nE "s/^Debian ($releases) //p" | head -1 || true
}

# The isolated apt of this kernel's suites.
configure_apt() {
	local suite uri keys=/usr/share/keyrings/debian-archive-keyring.gpg
	[ -e $keys ] || cannot "The kernels are Debian's, and its keys are not here: apt-get install debian-archive-keyring"
	remove "$state"
	mkdir -p "$state"/{lists/partial,cache/archives/partial,parts}
	: >"$state/status"
	for suite in $suites; do
		uri=$(mirror "$suite")
		# Security updates are the archive's, too, once a point release has taken them up.
		if [ -n "$uri" ]; then
			echo "deb [signed-by=$keys] $uri $suite main" >>"$state/sources.list"
		fi
	done
	[ -s "$state/sources.list" ] ||
		cannot "The kernels are Debian's, and the package lists of this machine are of no Debian mirror, or have not been" \
			"fetched. Run apt-get update, or name a mirror in DEBIAN_MIRROR (http://HOST/debian)."
	cat >"$state/apt.conf" <<-END
		Dir::State "$state";
		Dir::State::lists "$state/lists";
		Dir::State::status "$state/status";
		Dir::Cache "$state/cache";
		Dir::Etc::sourcelist "$state/sources.list";
		Dir::Etc::sourceparts "$state/parts";
		APT::Sandbox::User "root";
		APT::Architecture "amd64";
		APT::Architectures { "amd64"; };
		Acquire::Languages "none";
		Acquire::Retries "3";
		Acquire::http::Timeout "60";
		APT::Update::Error-Mode "any";
		# The machine may have hooks that tidy its own state.
		#clear APT::Update::Post-Invoke;
		#clear APT::Update::Post-Invoke-Success;
	END
}

# Everything in one language, because fetch_lists reads it.
apt_get=(env -C "$state/cache" LC_ALL=C apt-get -qq -c "$state/apt.conf")

apt_show() {
	apt-cache -c "$state/apt.conf" show --no-all-versions "$@" 2>/dev/null
}

fetch_lists() {
	local mirrors
	mirrors=$(awk '{ print $3 }' "$state/sources.list" | sort -u | paste -sd ' ')
	quietly "${apt_get[@]}" update && return
	if grep -q 'does not have a Release file' /dev/fd/8; then
		die "The mirror ($mirrors) does not have all of $suites. Choose other suites for $name in tests/vm/kernels.toml."
	fi
	die "The mirror ($mirrors) could not be reached, or does not deliver its lists of $suites; apt says above why." \
		"Does apt-get update work on this machine?"
}

# The pinned release, or the newest of the suite when the archive has moved on.
available() {
	local newest
	if apt_show "linux-image-$release" | grep -q '^Package:'; then
		echo "$release"
		return
	fi
	newest=$(apt_show linux-image-amd64 | sed -n 's/^Depends:.*\blinux-image-\([0-9][^ ,]*\).*/\1/p' | head -1)
	[ -n "$newest" ] || die "The archive has neither linux-image-$release nor any other kernel in $suites." \
		"Choose another suite for $name in tests/vm/kernels.toml."
	echo "$newest"
}

# Packages that a kernel consists of: since 7.0 the image is an empty package that needs the others.
packages_of() {
	echo "linux-image-$1"
	apt_show "linux-image-$1" | sed -n 's/^Depends: //p' | tr ',|' '\n\n' |
		sed -n 's/^ *\(linux-\(base\|binary\|modules\)-[0-9][^ ]*\).*/\1/p' | sort -u
}

# unpack RELEASE DIRECTORY
unpack() {
	local package
	for package in $(packages_of "$1"); do
		quietly "${apt_get[@]}" download "$package" ||
			die "The archive lists $package but does not deliver it. Try again later, or change tests/vm/kernels.toml."
	done
	for package in "$state"/cache/*.deb; do
		dpkg-deb -x "$package" "$2"
	done
	rm -f "$state"/cache/*.deb
}

# Of a tree of all modules those that tests may want, not compressed, in the same layout below $2.
choose_modules() {
	local from=$1 to=$2 part
	mkdir -p "$to"
	for part in net lib crypto arch fs/ext4 fs/jbd2 fs/mbcache.ko fs/overlayfs fs/fuse fs/9p fs/netfs fs/fscache \
		drivers/net/{dummy,ifb,macvlan,tap,tun,veth,virtio_net,net_failover,vrf,nlmon}.ko \
		drivers/net/{bonding,ipvlan,vxlan,geneve.ko,wireguard,mdio.ko} net/core/failover.ko drivers/virtio \
		drivers/block/{virtio_blk,loop}.ko drivers/char/{virtio_console.ko,hw_random} drivers/infiniband/{core,sw} \
		drivers/ptp drivers/pps drivers/dma/ioat; do
		(cd "$from" && find kernel -path "kernel/$part*" -name '*.ko*' -print0) |
			(cd "$from" && xargs -0 -r cp --parents -t "$to")
	done
	find "$to" -name '*.ko.xz' -print0 | xargs -0 -r -n64 -P"$(nproc)" xz -dqf
	find "$to" -name '*.ko.zst' -print0 | xargs -0 -r -n64 -P"$(nproc)" zstd -dqf --rm
	cp "$from"/modules.{order,builtin,builtin.modinfo} "$to"
}

# The initial files: busybox, and in load order what reaches the disks and the ports to the outside.
make_boot_cpio() {
	local modules=$1 release=$2 out=$3 tree=$1/boot module file
	mkdir -p "$tree"/{bin,modules}
	cp "$(command -v busybox)" "$tree/bin/busybox"
	for module in virtio_pci virtio_blk ext4 virtio_console; do
		modprobe -d "$modules" -S "$release" --show-depends "$module" | awk '$1 == "insmod" { print $2 }'
	done | awk '!seen[$0]++' >"$tree/list"
	while read -r file; do
		cp "$file" "$tree/modules/"
		basename "$file" >>"$tree/modules/order"
	done <"$tree/list"
	(cd "$tree" && find bin modules | LC_ALL=C sort | cpio -o -H newc --quiet) >"$out"
}

# make_kernel RELEASE: everything, into a directory that gets its name last.
make_kernel() {
	local release=$1 all size
	new=$lab/kernels/$1.new
	remove "$new"
	mkdir -p "$new/all" "$new/tree/lib/modules"
	unpack "$release" "$new/all"
	all=$(find "$new/all" -type d -path "*lib/modules/$release" | head -1)
	local image
	image=$(find "$new/all" \( -name "vmlinuz-$release" -o -path "*/modules/$release/vmlinuz" \) | head -1)
	[ -n "$all" ] && [ -n "$image" ] || die "The packages of $release do not hold a kernel where it is looked for."
	python3 "$here/vmlinux.py" "$image" "$new/vmlinux"
	choose_modules "$all" "$new/tree/lib/modules/$release"
	depmod -b "$new/tree" "$release"
	make_boot_cpio "$new/tree" "$release" "$new/boot.cpio"
	size=$(du -sm "$new/tree/lib/modules" | cut -f1)
	truncate -s $((size * 115 / 100 + 8))M "$new/modules.ext4"
	quietly mke2fs -q -F -t ext4 -O ^has_journal -m 0 -d "$new/tree/lib/modules" "$new/modules.ext4"
	echo "$release" >"$new/release"
	rm -rf "$new/all" "$new/tree" "$lab/kernels/$release"
	mv "$new" "$lab/kernels/$release"
}

mkdir -p "$lab/kernels"
new=
trap end_awaited EXIT
trap 'exit 130' INT TERM HUP
# Two runs at a time make it once.
lock "$lab/kernels/$name.lock" "kernel $name"
trap 'end_awaited; remove "$state" ${new:+"$new"}' EXIT
moved=$lab/kernels/$release.moved
found=$release
if [ -e "$moved" ] && [ ! -e "$lab/kernels/$release/release" ]; then
	found=$(cat "$moved")
fi
if [ ! -e "$lab/kernels/$found/release" ]; then
	[ "$(id -u)" = 0 ] || cannot "Fetching kernels is only for root."
	configure_apt
	fetch_lists
	found=$(available)
	[ "$found" = "$release" ] || echo "$found" >"$moved"
	if [ ! -e "$lab/kernels/$found/release" ]; then
		make_kernel "$found"
	fi
fi
if [ "$found" != "$release" ]; then
	echo "note: the archive has moved on from $release; kernel $name is $found. Change tests/vm/kernels.toml." >&2
fi
echo "$lab/kernels/$found"
