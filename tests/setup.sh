#!/bin/bash
# Installs what is missing for `setup.sh build` (compile and run), `setup.sh package` (also pack a .deb), `setup.sh rpm`
# (pack an .rpm), `setup.sh test` (compile, pack a .deb, test and measure) or `setup.sh packages` (all of it).
# Nothing is installed, and no package manager is called, if everything is there. No service is ever started by it.
set -euo pipefail
cd "$(dirname "$0")/.."

log=$(mktemp)
trap 'rm -f "$log"' EXIT

# One requirement a line: what for, the check, the Debian package, the Fedora package (-: done on Debian only). A check and not a package query,
# because a compiler from elsewhere is as good.
requirements() {
	cat <<-'END'
		build|command -v cc|gcc|gcc
		build|header stdio.h|libc6-dev|glibc-devel
		build|command -v make|make|make
		build|command -v pkg-config|pkg-config|pkgconf-pkg-config
		build|header libelf.h|libelf-dev|elfutils-libelf-devel
		build|header zlib.h|zlib1g-dev|zlib-devel
		build|some_clang|clang|clang
		build|command -v protoc|protobuf-compiler|protobuf-compiler
		package|command -v mmdebstrap|mmdebstrap|mmdebstrap
		package|command -v objdump|binutils|binutils
		package|command -v dpkg-buildpackage|dpkg-dev|-
		package|command -v dh|debhelper|-
		package|command -v apt-ftparchive|apt-utils|-
		package|command -v gpg|gnupg|gnupg2
		package|command -v lintian|lintian|-
		rpm|command -v mmdebstrap|mmdebstrap|mmdebstrap
		rpm|command -v objdump|binutils|binutils
		rpm|command -v rpmbuild|rpm|rpm-build
		rpm|command -v createrepo_c|createrepo-c|createrepo_c
		rpm|command -v gpg|gnupg|gnupg2
		rpm|command -v rpmlint|rpmlint|rpmlint
		rpm|command -v dnf|dnf|dnf
		test|command -v ip|iproute2|iproute
		test|command -v nft|nftables|nftables
		test|command -v bpftool|bpftool/linux-tools-common|bpftool
		test|command -v conntrack|conntrack|conntrack-tools
		test|command -v curl|curl|curl
		test|command -v python3|python3|python3
		test|command -v jq|jq|jq
		test|command -v strace|strace|strace
		test|command -v shellcheck|shellcheck|ShellCheck
		test|command -v unshare|util-linux|util-linux
		test|command -v dbus-daemon|dbus-daemon|dbus-daemon
		test|command -v systemd-nspawn|systemd-container|systemd-container
		test|cni_plugins|containernetworking-plugins|containernetworking-plugins
		test|command -v dockerd|docker.io|moby-engine
		test|command -v docker|docker-cli/docker.io|docker-cli/moby-engine
		test|command -v podman|podman|podman
		test|podman_networks|netavark|netavark
		test|command -v containerd|containerd|containerd
		test|command -v runc|runc|runc
		test|static_busybox|busybox-static|busybox
		test|command -v clang-format|clang-format|clang-tools-extra
		test|command -v qemu-system-x86_64|qemu-system-x86|qemu-system-x86-core
		test|command -v mke2fs|e2fsprogs|e2fsprogs
		test|command -v modprobe|kmod|kmod
		test|command -v cpio|cpio|cpio
		test|command -v xz|xz-utils|xz
		test|command -v zstd|zstd|zstd
		test|command -v pkill|procps|procps-ng
		test|test -e /usr/share/keyrings/debian-archive-keyring.gpg|debian-archive-keyring|-
	END
}

header() {
	echo "#include <$1>" | cc -E - >/dev/null 2>&1
}

# bpf/build.rs takes what NETSKOOP_CLANG names, clang, or the newest clang-NN.
some_clang() {
	[ -n "${NETSKOOP_CLANG:-}" ] || command -v clang || compgen -c clang- | grep -qx 'clang-[0-9]*'
}

# Where Debian and Fedora put them.
cni_plugins() {
	[ -x /usr/lib/cni/bridge ] || [ -x /usr/libexec/cni/bridge ]
}

# Only recommended by podman, but nothing with a network of its own starts without it.
podman_networks() {
	[ -x /usr/lib/podman/netavark ] || [ -x /usr/libexec/podman/netavark ]
}

# Containers of the tests have nothing else in them, no libc either.
static_busybox() {
	command -v busybox && ! ldd "$(command -v busybox)"
}

# Of the names in each argument, the first that the package manager knows: docker's client is a package of its own in
# newer releases.
existing() {
	local names name
	for names in "$@"; do
		while [[ $names == */* ]]; do
			name=${names%%/*}
			if [ "$column" = deb ]; then
				apt-cache show "$name" >/dev/null 2>&1 && break
			else
				dnf -q info "$name" >/dev/null 2>&1 && break
			fi
			names=${names#*/}
		done
		echo "${names%%/*}"
	done
}

# Units that start at the next boot.
enabled_units() {
	find /etc/systemd/system -type l -path '*.wants/*' -printf '%f\n' 2>/dev/null | sort -u
}

# Runs a command that installs, and no package may start its service, now or at the next boot; Docker's would.
without_services() {
	local policy=/usr/sbin/policy-rc.d own='' status=0 before units
	before=$(enabled_units)
	if [ ! -e $policy ]; then
		own=$policy
		printf '#!/bin/sh\nexit 101\n' >$policy
		chmod 755 $policy
	fi
	"$@" || status=$?
	[ -z "$own" ] || rm -f "$own"
	mapfile -t units < <(comm -13 <(echo "$before") <(enabled_units))
	if [ ${#units[@]} -gt 0 ] && command -v systemctl >/dev/null; then
		systemctl --quiet disable "${units[@]}" >/dev/null 2>&1 || true
	fi
	return $status
}

# What a level needs besides its own.
levels() {
	case $1 in
	build) echo build ;;
	package) echo build package ;;
	rpm) echo build rpm ;;
	test) echo build package test ;;
	packages) echo build package rpm test ;;
	*) echo "setup.sh knows build, package, rpm, test and packages, not $1" >&2 && exit 2 ;;
	esac
}

# The names of the missing packages, for the level $1 and the column $2.
missing() {
	local level check deb rpm
	while IFS='|' read -r level check deb rpm; do
		[[ " $(levels "$1") " == *" $level "* ]] || continue
		[ "$2" = deb ] || [ "$rpm" != - ] || continue
		# The checks are the words of the table above.
		$check >/dev/null 2>&1 || if [ "$2" = deb ]; then echo "$deb"; else echo "$rpm"; fi
	done < <(requirements)
}

# Runs quietly; what it printed matters only if it failed.
quietly() {
	"$@" >"$log" 2>&1 </dev/null && return
	cat "$log" >&2
	echo "failed: $*" >&2
	return 1
}

install_packages() {
	local packages column=deb
	command -v apt-get >/dev/null || ! command -v dnf >/dev/null || column=rpm
	mapfile -t packages < <(missing "$1" $column)
	[ ${#packages[@]} -gt 0 ] || return 0
	if command -v apt-get >/dev/null; then
		need_root "apt-get update && apt-get install --no-install-recommends ${packages[*]%%/*}"
		echo "installing ${packages[*]}"
		quietly apt-get update
		mapfile -t packages < <(existing "${packages[@]}" | sort -u)
		DEBIAN_FRONTEND=noninteractive without_services \
			quietly apt-get -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "${packages[@]}"
	elif command -v dnf >/dev/null; then
		need_root "dnf install ${packages[*]%%/*}"
		echo "installing ${packages[*]}"
		mapfile -t packages < <(existing "${packages[@]}" | sort -u)
		quietly dnf install -y "${packages[@]}"
	else
		echo "Neither apt-get nor dnf is here. Install what Debian calls: ${packages[*]}" >&2
		exit 1
	fi
	mapfile -t packages < <(missing "$1" $column)
	[ ${#packages[@]} = 0 ] && return
	echo "Still missing after the installation: ${packages[*]}" >&2
	exit 1
}

need_root() {
	[ "$(id -u)" = 0 ] && return
	echo "Packages are missing. Run this as root, then try again:" >&2
	echo "  $1" >&2
	exit 1
}

check_rust() {
	local wanted found
	wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
	found=$(rustc --version 2>/dev/null | cut -d' ' -f2) || found=
	if [ -n "$found" ] && command -v cargo >/dev/null &&
		[ "$(printf '%s\n%s\n' "$wanted" "${found%%-*}" | sort -V | head -1)" = "$wanted" ]; then
		return
	fi
	echo "Rust $wanted or newer is needed, ${found:-none} is here. To get it:" >&2
	how_to_get_rust >&2
	exit 1
}

how_to_get_rust() {
	if command -v rustup >/dev/null; then
		echo "  rustup update stable && rustup default stable"
	elif LC_ALL=C apt-cache policy rustup 2>/dev/null | grep -q 'Candidate: [0-9]'; then
		echo "  apt-get install rustup && rustup default stable"
	elif grep -qs '^ID=fedora' /etc/os-release; then
		echo "  dnf install rust cargo clippy rustfmt"
	else
		echo "  curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y && . ~/.cargo/env"
		echo "  (the packages of this distribution are older; see https://rustup.rs)"
	fi
}

# promtool checks the metrics, prometheus scrapes them. Their package would start its service, so it is only unpacked.
get_prometheus() {
	local tools=target/tools download
	command -v promtool >/dev/null && command -v prometheus >/dev/null && return
	[ ! -x $tools/usr/bin/promtool ] || [ ! -x $tools/usr/bin/prometheus ] || return 0
	if ! command -v apt-get >/dev/null; then
		echo "note: no promtool or no prometheus; put both into the PATH to have the metrics checked by them"
		return
	fi
	echo "unpacking promtool and prometheus into $tools"
	mkdir -p $tools
	download=$(mktemp -d)
	[ -n "$(ls /var/lib/apt/lists/*_Packages* 2>/dev/null)" ] || quietly apt-get update
	(cd "$download" && quietly apt-get download prometheus)
	quietly dpkg-deb -x "$download"/prometheus_*.deb $tools
	rm -r "$download"
}

PATH=$PATH:${HOME:-/root}/.cargo/bin
install_packages "${1:-build}"
check_rust
if [[ ${1:-build} == test || ${1:-build} == packages ]]; then
	get_prometheus
fi
