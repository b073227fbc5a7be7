#!/bin/bash
# `make deb`: builds the programs and packs them; the package is in target/package/. Needs what tests/setup.sh package
# installs.
set -euo pipefail
cd "$(dirname "$0")/../.."

target=${CARGO_TARGET_DIR:-$PWD/target}
out=$target/package
work=$out/deb
programs=$out/bin

version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
packaged=$(sed -n '1s/.*(\(.*\)).*/\1/p' packaging/deb/changelog)
if [ "$version" != "$packaged" ]; then
	echo "packaging/deb/changelog is of version $packaged and Cargo.toml of $version; add an entry to it" >&2
	exit 1
fi

packaging/build.sh "$programs"
rm -rf "$work"
mkdir -p "$work/netskoop"
cp -r packaging/deb "$work/netskoop/debian"
rm "$work/netskoop/debian/build.sh"
packaging/stage.sh "$programs" "$work/netskoop/stage"
cp packaging/common/netskoop.{sysusers,tmpfiles} "$work/netskoop/debian/"
log=$work/log
if ! (cd "$work/netskoop" && dpkg-buildpackage --build=binary --no-sign) >"$log" 2>&1; then
	cat "$log" >&2
	exit 1
fi
rm -f "$out"/netskoop_*.deb
mv "$work"/netskoop_*.deb "$work"/netskoop_*.changes "$work"/netskoop_*.buildinfo "$out/"
echo "packed $(ls "$out"/netskoop_*.deb)"
