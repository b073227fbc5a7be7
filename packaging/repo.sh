#!/bin/bash
# `repo.sh DIR PACKAGE...`: puts packages into signed repositories below DIR, apt/ for *.deb and yum/ for *.rpm. Those
# that are there already stay, so that a release can be added and an older one installed.
#
# NETSKOOP_SIGNING_KEY names the key of the caller's keyring to sign with. Without it a key is made beside the
# repositories and used: good for trying, not for giving away. NETSKOOP_REPOSITORY_URL is where the folder will be served;
# without it that is the folder itself.
set -euo pipefail

dir=$(realpath -m "${1:?usage: repo.sh DIR PACKAGE...}")
shift
url=${NETSKOOP_REPOSITORY_URL:-file://$dir}
here=$(realpath "$(dirname "$0")")

# Everything of a key that nobody keeps.
make_key() {
	export GNUPGHOME=$dir.key
	key="netskoop for trying"
	[ ! -d "$GNUPGHOME" ] || return 0
	mkdir -p "$GNUPGHOME"
	chmod 700 "$GNUPGHOME"
	printf 'quiet\nno-auto-check-trustdb\n' >"$GNUPGHOME/gpg.conf"
	gpg --batch --quiet --pinentry-mode loopback --passphrase '' --quick-generate-key "$key" rsa3072 sign never 2>/dev/null
}

sign() {
	gpg --batch --quiet --yes --local-user "$key" --digest-algo SHA256 "$@"
}

apt_repository() {
	local root=$dir/apt arch release
	mkdir -p "$root/pool"
	cp "$@" "$root/pool/"
	cd "$root"
	arch=$(dpkg-deb -f "$1" Architecture)
	mkdir -p "dists/stable/main/binary-$arch"
	apt-ftparchive packages pool >"dists/stable/main/binary-$arch/Packages"
	gzip -9nkf "dists/stable/main/binary-$arch/Packages"
	release=$(apt-ftparchive -o APT::FTPArchive::Release::Origin=netskoop -o APT::FTPArchive::Release::Suite=stable \
		-o APT::FTPArchive::Release::Codename=stable -o APT::FTPArchive::Release::Components=main \
		-o "APT::FTPArchive::Release::Architectures=$arch" release dists/stable)
	echo "$release" >dists/stable/Release
	sign --clearsign --output dists/stable/InRelease dists/stable/Release
	sign --armor --detach-sign --output dists/stable/Release.gpg dists/stable/Release
	cd - >/dev/null
}

yum_repository() {
	local root=$dir/yum
	mkdir -p "$root"
	cp "$@" "$root/"
	local copies=("${@##*/}")
	GPG_TTY='' rpmsign --define "__gpg $(command -v gpg)" --define "_gpg_name $key" --define '_gpg_digest_algo sha256' --addsign "${copies[@]/#/$root/}" >/dev/null
	createrepo_c --quiet --update "$root"
	sign --armor --detach-sign --output "$root/repodata/repomd.xml.asc" "$root/repodata/repomd.xml"
	sed "s,@URL@,$url,g" "$here/rpm/netskoop.repo" >"$root/netskoop.repo"
}

debs=() rpms=()
for package; do
	case $package in
	*.deb) debs+=("$package") ;;
	*.rpm) rpms+=("$package") ;;
	*) echo "$package is neither a .deb nor an .rpm" >&2 && exit 1 ;;
	esac
done
key=${NETSKOOP_SIGNING_KEY:-}
[ -n "$key" ] || make_key
mkdir -p "$dir"
# apt takes the bare form, dnf the armored one.
gpg --batch --export "$key" >"$dir/netskoop.gpg"
gpg --batch --armor --export "$key" >"$dir/netskoop.asc"
[ ${#debs[@]} = 0 ] || apt_repository "${debs[@]}"
[ ${#rpms[@]} = 0 ] || yum_repository "${rpms[@]}"
signer=$(gpg --batch --with-colons --list-keys "$key" | cut -d: -f1,10 | sed -n 's/^uid://p' | head -1)
echo "signed by '$signer' in $dir"
