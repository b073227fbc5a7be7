#!/bin/bash
# `rpm-repository.sh PACKAGE.rpm STAGE DIR`: a signed repository in DIR with the package, a next version of it (0.1.1, with
# another configuration), and a package that stands for a Fedora: it only says that it provides what the other one requires.
# STAGE is what the package was made of.
set -euo pipefail

package=$(realpath "$1")
stage=$(realpath "$2")
repo=$(realpath -m "$3")
source=$(realpath "$(dirname "$0")/../..")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

stand_in() {
	local provides
	provides=$(rpm -qp --requires "$package" | grep -v -E '^(rpmlib|config)\(' | sort -u | sed 's/^/Provides: /')
	cat >"$work/base.spec" <<-END2
		Name: base
		Version: 1
		Release: 1
		Summary: What a Fedora has
		License: MIT
		BuildArch: noarch
		$provides
		%description
		It stands for a Fedora.
		%files
	END2
	rpmbuild -bb --define "_topdir $work/base" "$work/base.spec" >/dev/null 2>&1
}

next_version() {
	cp -r "$stage" "$work/stage"
	echo '# new in this version' >>"$work/stage/netskoopd.toml"
	rpmbuild -bb --define "_topdir $work/next" --define 'version 0.1.1' --define "stage $work/stage" \
		--define '_prefix /usr' "$source/packaging/rpm/netskoop.spec" >/dev/null 2>&1
}

stand_in
next_version
"$source/packaging/repo.sh" "$repo" "$package" "$work"/next/RPMS/*/*.rpm "$work"/base/RPMS/*/*.rpm >/dev/null
