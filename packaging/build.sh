#!/bin/bash
# Builds netskoopd and netskoopctl as they are packaged: optimised, for glibc 2.31 and newer (Debian 11, Ubuntu 20.04,
# RHEL 9). `build.sh DIR` puts them into DIR. They are linked against the libraries of Debian 11, which mmdebstrap unpacks
# into target/package/; compilers, and all that runs during the build, are the machine's own.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PATH:${HOME:-/root}/.cargo/bin

suite=bullseye
newest_glibc=2.31
out=${1:?usage: build.sh DIR}
target=${CARGO_TARGET_DIR:-$PWD/target}
root=$target/package/$suite

# Headers and libraries, nothing that runs.
make_root() {
	[ ! -d "$root" ] || return 0
	echo "unpacking the libraries of Debian's $suite"
	rm -rf "$root.new"
	mkdir -p "$target/package"
	# An archive may be busy once.
	unpack "$root.new" || { rm -rf "$root.new" && unpack "$root.new"; }
	relative_links "$root.new"
	# The machine's own libgcc_s wants a newer glibc; this one must be found before it.
	(cd "$root.new/lib" && for library in */libgcc_s.so.1; do ln -s "../../../lib/$library" "../usr/lib/$library"; done)
	mv "$root.new" "$root"
}

unpack() {
	timeout 300 mmdebstrap --quiet --variant=extract --include=libc6-dev,libelf-dev,zlib1g-dev,linux-libc-dev "$suite" "$1"
}

# A linker follows links of the root as if they were the machine's.
relative_links() {
	local link to
	while read -r link; do
		to=$(readlink "$link")
		ln -sfn "$(realpath -ms --relative-to="$(dirname "$link")" "$1$to")" "$link"
	done < <(find "$1/lib" "$1/usr/lib" "$1/lib64" -type l -lname '/*')
}

build() {
	local triple libraries flags c_flags
	triple=$(rustc -vV | sed -n 's/^host: //p')
	libraries=$root/usr/lib/${triple/-unknown/}
	c_flags="--sysroot=$root -isystem $root/usr/include/${triple/-unknown/}"
	flags="-Clink-arg=--sysroot=$root -Clink-arg=-B$libraries -Clink-arg=-L$libraries"
	# The same bytes wherever it is built.
	flags+=" --remap-path-prefix=$PWD=/netskoop --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo"
	flags+=" --remap-path-prefix=$target=/target"
	c_flags+=" -ffile-prefix-map=$target=/target -ffile-prefix-map=${CARGO_HOME:-$HOME/.cargo}=/cargo -g0 -O2"
	# With a target named, the flags do not hold for build scripts, which run on this machine.
	env "CFLAGS_${triple//-/_}=$c_flags" RUSTFLAGS="$flags" \
		cargo build --release --locked --quiet --target "$triple" -p netskoopd -p netskoopctl
	mkdir -p "$out"
	for program in netskoopd netskoopctl; do
		install -m 755 "$target/$triple/release/$program" "$out/$program"
		packaging/check-glibc.sh "$newest_glibc" "$out/$program"
	done
}

# What the loader of the old system says counts.
try_in_root() {
	if [ "$(id -u)" != 0 ]; then
		echo "note: only root can try the programs with the libraries of $suite"
		return
	fi
	for program in netskoopd netskoopctl; do
		install -m 755 "$out/$program" "$root/$program"
		chroot "$root" "/$program" --version
		rm "$root/$program"
	done
}

make_root
echo "building for glibc $newest_glibc; the first time this takes some minutes"
build
try_in_root
