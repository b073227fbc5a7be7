#!/bin/bash
# `make rpm`: builds the programs and packs them; the package is in target/package/. Needs what tests/setup.sh rpm
# installs.
set -euo pipefail
cd "$(dirname "$0")/../.."

target=${CARGO_TARGET_DIR:-$PWD/target}
out=$(realpath -m "$target/package")
work=$out/rpm
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)

packaging/build.sh "$out/bin"
rm -rf "$work"
mkdir -p "$work"
packaging/stage.sh "$out/bin" "$work/stage"
if ! rpmbuild -bb --define "_topdir $work" --define "version $version" --define "stage $work/stage" \
	--define "_prefix /usr" packaging/rpm/netskoop.spec >"$work/log" 2>&1; then
	cat "$work/log" >&2
	exit 1
fi
rm -f "$out"/netskoop-*.rpm
mv "$work"/RPMS/*/netskoop-*.rpm "$out/"
echo "packed $(ls "$out"/netskoop-*.rpm)"
