#!/bin/sh
# Makes the root file system of the guestbook's base image from Debian packages,
# for machines that reach no image registry:
#
#	base.sh OUT.tar [PACKAGE...]
#	skiff image import --rootfs OUT.tar guestbook/base:1
#
# The packages are resolved against an empty system by apt, with this machine's
# own sources and keys, downloaded, verified and unpacked; no maintainer script
# runs, so nothing of this machine changes and no chroot is needed. What those
# scripts would do that matters here is at the end. Needs apt, dpkg-deb and tar;
# as root, so that files keep their owners.
set -eu

out=${1:?usage: base.sh OUT.tar [PACKAGE...]}
shift
[ $# -gt 0 ] || set -- nginx-light redis-server python3-minimal libpython3-stdlib passwd

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM HUP
mkdir -p "$work/archives/partial" "$work/lists/partial" "$work/root"
: >"$work/status"

apt() {
	apt-get -q -y \
		-o Dir::State::status="$work/status" \
		-o Dir::Cache::archives="$work/archives/" \
		-o Dir::Cache::pkgcache="" -o Dir::Cache::srcpkgcache="" \
		-o APT::Install-Recommends=false -o APT::Sandbox::User=root \
		-o Debug::NoLocking=true "$@" >"$work/log" 2>&1 || {
		cat "$work/log" >&2
		return 1
	}
}

# Essential packages, less those that only a booted or upgraded system needs; the
# merged /usr is made below.
essential="base-files base-passwd dash coreutils sed grep hostname libc-bin mawk usr-is-merged usrmerge-"
download() { apt "$@" --download-only install $essential $packages; }
packages="$*"
# The machine's own package lists do, unless it has none or they are too old.
if ! download 2>/dev/null; then
	apt -o Dir::State::lists="$work/lists/" update
	download -o Dir::State::lists="$work/lists/"
fi

root=$work/root
for d in bin sbin lib lib64; do
	mkdir -p "$root/usr/$d"
	ln -s "usr/$d" "$root/$d"
done
for deb in "$work"/archives/*.deb; do
	dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$root" --keep-directory-symlink \
		--exclude='./usr/share/doc/*' --exclude='./usr/share/man/*' --exclude='./usr/share/info/*' \
		--exclude='./usr/share/locale/*' --exclude='./usr/share/lintian/*' --exclude='./usr/share/bug/*'
done

cp "$root/usr/share/base-passwd/passwd.master" "$root/etc/passwd"
cp "$root/usr/share/base-passwd/group.master" "$root/etc/group"
[ -e "$root/usr/bin/awk" ] || ln -s mawk "$root/usr/bin/awk"
[ -e "$root/usr/bin/sh" ] || ln -s dash "$root/usr/bin/sh"
mkdir -p "$root/proc" "$root/sys" "$root/dev" "$root/run" "$root/tmp" "$root/var/tmp" "$root/root"
chmod 1777 "$root/tmp" "$root/var/tmp"

# The same packages give the same file: what was made here gets the time of the
# newest file that was not.
newest=$(find "$root" ! -newer "$work/status" -printf '%Ts\n' | sort -n | tail -n 1)
tar -c -C "$root" --sort=name --numeric-owner --clamp-mtime --mtime="@$newest" -f "$out.part" .
mv "$out.part" "$out"
