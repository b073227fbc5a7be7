#!/bin/bash
# Installs, upgrades, downgrades and removes the .rpm with dnf from a signed repository, into a directory. There is no Fedora
# here: a package that only says it provides what a Fedora has stands for it, and scriptlets, which need its shell, are
# checked but not run; tests/cases/packages_rpm.rs runs them. `rpm.sh PACKAGE.rpm STAGE`: STAGE is what the package was made of.
set -euo pipefail

package=$(realpath "$1")
stage=$(realpath "$2")
source=$(realpath "$(dirname "$0")/../..")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root

fail() {
	echo "$*" >&2
	exit 1
}

expect() {
	[ "$1" = "$2" ] || fail "$3: expected '$2', found '$1'"
}

# As a user would, but into a directory.
in_root() {
	dnf --quiet --assumeyes --installroot="$root" --releasever=1 --setopt=reposdir="$work/repos" \
		--setopt=cachedir="$work/cache" --setopt=tsflags=noscripts --disableplugin='*' "$@" >"$work/log" 2>&1 ||
		fail "dnf $*: $(cat "$work/log")"
}

version() {
	rpm --root "$root" -q --qf '%{VERSION}' netskoop
}

repo=$work/repo
"$(dirname "$0")/rpm-repository.sh" "$package" "$stage" "$repo"
mkdir -p "$work/repos" "$root"
cp "$repo/yum/netskoop.repo" "$work/repos/"
rpmlint -c "$source/packaging/rpm/rpmlint.toml" "$repo/yum/$(basename "$package")" >"$work/lint" 2>&1 || true
grep -q ' 0 errors, 0 warnings' "$work/lint" || fail "rpmlint: $(cat "$work/lint")"
for part in preinstall postinstall preuninstall postuninstall posttrans; do
	rpm -qp --scripts "$package" | sed -n "/^$part scriptlet/,/^[a-z]* scriptlet/p" | grep -v ' scriptlet ' >"$work/$part"
	[ -s "$work/$part" ] || fail "there is no $part scriptlet"
	sh -n "$work/$part" || fail "the $part scriptlet is no shell"
	! grep -q '%{\|%systemd' "$work/$part" || fail "a macro was not expanded: $(cat "$work/$part")"
done

in_root install netskoop-0.1.0
expect "$(version)" 0.1.0 "installed"
rpm --root "$root" -V netskoop >"$work/log" || fail "files are not as packed: $(cat "$work/log")"
"$root/usr/sbin/netskoopd" --version >/dev/null
"$root/usr/sbin/netskoopd" --config "$root/etc/netskoop/netskoopd.toml" --check-config
echo '# mine' >>"$root/etc/netskoop/netskoopd.toml"
in_root upgrade
expect "$(version)" 0.1.1 "upgraded"
expect "$(tail -1 "$root/etc/netskoop/netskoopd.toml")" '# mine' "an edited configuration"
expect "$(tail -1 "$root/etc/netskoop/netskoopd.toml.rpmnew")" '# new in this version' "what the new version has"
in_root downgrade netskoop-0.1.0
expect "$(version)" 0.1.0 "downgraded"
in_root remove netskoop
[ ! -e "$root/usr/sbin/netskoopd" ] || fail "the daemon stayed"
expect "$(tail -1 "$root/etc/netskoop/netskoopd.toml.rpmsave")" '# mine' "the configuration of who removed it"
left=$(find "$root/usr" "$root/etc" -name '*netskoop*' ! -path '*/etc/netskoop*' | head)
[ -z "$left" ] || fail "something stayed: $left"
in_root install netskoop
expect "$(version)" 0.1.1 "installed again"

# Somebody else's package is refused.
echo x >>"$repo/yum/repodata/repomd.xml"
rm -rf "$work/cache"
if (in_root reinstall netskoop) 2>/dev/null; then
	fail "a repository with a wrong signature was accepted"
fi
echo "dnf installs, upgrades, downgrades and removes it"
