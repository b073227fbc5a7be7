#!/bin/bash
# Packs what is built a second time: both packages must have the same bytes again. Whether the compiler's output is the same
# wherever and whenever it runs is asked with `reproduce.sh compile`, which builds everything twice and takes its time.
set -euo pipefail
cd "$(dirname "$0")/.."

out=$(realpath -m "${CARGO_TARGET_DIR:-target}/package")
sums() {
	(cd "$out" && sha256sum netskoop_*.deb netskoop-*.rpm)
}

packaging/deb/build.sh
packaging/rpm/build.sh
before=$(sums)
if [ "${1:-}" = compile ]; then
	mkdir -p "$out/again"
	CARGO_TARGET_DIR=$out/again packaging/build.sh "$out/again/bin"
	cmp "$out/bin/netskoopd" "$out/again/bin/netskoopd"
	cmp "$out/bin/netskoopctl" "$out/again/bin/netskoopctl"
	rm -rf "$out/again"
fi
packaging/deb/build.sh
packaging/rpm/build.sh
after=$(sums)
if [ "$before" != "$after" ]; then
	printf '%s\nis not\n%s\n' "$before" "$after" >&2
	exit 1
fi
echo "$after"
