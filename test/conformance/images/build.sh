#!/usr/bin/env bash
# Makes the images that the suite's tests run, under the names that they use, and
# writes them into one archive:
#
#	images/build.sh SKIFF OUT
#
# Programs come from the Kubernetes module, everything else from Debian packages,
# the images from `skiff build`. Once: OUT/images.tar stays until a file here is
# newer.
set -euo pipefail
skiff=$(realpath "$1")
mkdir -p "$2"
out=$(cd "$2" && pwd)
here=$(cd "$(dirname "$0")" && pwd)
archive=$out/images.tar
if [ -e "$archive" ] && [ -z "$(find "$here" "$here/../go.sum" -newer "$archive" -print -quit)" ]; then
	exit 0
fi
cd "$here/.."
export GOFLAGS=-buildvcs=false CGO_ENABLED=0
go=${GO:-go}
context=$out/context
work=$out/store
mkdir -p "$context"
kubernetes=$($go list -m -f '{{.Dir}}' k8s.io/kubernetes)

build() { # file, package, linker flags
	$go build -trimpath -ldflags "-s -w ${3:-}" -o "$context/$1" "$2"
}
echo "building the programs of the images"
build agnhost k8s.io/kubernetes/test/images/agnhost
build sample-apiserver k8s.io/sample-apiserver
build etcd go.etcd.io/etcd/server/v3
build nnp "$here/nnp"
# Not of this module: it would choose the versions of everything else here.
[ -x "$context/coredns" ] || GOFLAGS=-buildvcs=false GOBIN=$context $go install -ldflags "-s -w" github.com/coredns/coredns@v1.12.4
gcc -static -Os -s -o "$context/pause" "$here/pause.c"
cp "$kubernetes"/test/images/agnhost/porter/localhost.{crt,key} "$here/nginx.conf" "$context/"
for n in kitten nautilus; do
	cp "$kubernetes/test/images/$n/html/$n.jpg" "$context/$n.jpg"
	cp "$kubernetes/test/images/$n/html/data.json" "$context/$n.json"
done
chmod -R u+w "$context"

local_skiff() { "$skiff" --name conformance-images --data-dir "$work" "$@"; }
trap 'local_skiff reset --yes >/dev/null 2>&1 || true' EXIT

echo "base images from Debian packages"
base=$here/../../../examples/guestbook/base.sh
[ -e "$out/base.tar" ] || "$base" "$out/base.tar" bash bind9-dnsutils ca-certificates curl findutils iperf iproute2 netcat-openbsd passwd procps socat tar util-linux
[ -e "$out/nginx.tar" ] || "$base" "$out/nginx.tar" nginx-light
# Debian's own build of busybox hides environment variables whose names are no
# identifiers from what its shell starts: the tests look for them. So: its source.
if [ ! -x "$out/busybox" ]; then
	source=$(mktemp -d)
	mkdir -p "$source/parts" "$source/lists/partial"
	for f in /etc/apt/sources.list.d/*.sources; do
		sed 's/^Types:.*/Types: deb-src/' "$f" >"$source/parts/$(basename "$f")"
	done
	(
		cd "$source"
		apt="apt-get -q -o Dir::Etc::sourcelist=/dev/null -o Dir::Etc::sourceparts=$source/parts -o Dir::State::lists=$source/lists -o APT::Sandbox::User=root"
		$apt update >/dev/null
		$apt source --download-only busybox >/dev/null
		tar -x -f busybox_*.orig.tar.* --strip-components=1
		make defconfig >/dev/null
		sed -i 's/# CONFIG_STATIC is not set/CONFIG_STATIC=y/; s/CONFIG_TC=y/# CONFIG_TC is not set/' .config
		yes '' | make oldconfig >/dev/null || true
		echo "building busybox"
		make -j2 busybox >/dev/null 2>&1
	)
	mv "$source/busybox" "$out/busybox"
	rm -rf "$source"
fi
root=$(mktemp -d)
mkdir -p "$root"/{bin,etc,tmp,root,home,var,usr/bin,usr/sbin,sbin,dev,proc,sys}
chmod 755 "$root"
chmod 1777 "$root/tmp"
install -m 755 "$out/busybox" "$root/bin/busybox"
for a in $("$out/busybox" --list); do
	[ -e "$root/bin/$a" ] || ln -s busybox "$root/bin/$a"
done
printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/false\n' >"$root/etc/passwd"
printf 'root:x:0:\nmail:x:8:\nnogroup:x:65534:\n' >"$root/etc/group"
tar -c -C "$root" --numeric-owner --owner=0 --group=0 -f "$out/busybox.tar" .
rm -rf "$root"
local_skiff image import --rootfs "$out/base.tar" conformance/base:1
local_skiff image import --rootfs "$out/nginx.tar" conformance/nginx-base:1
local_skiff image import --rootfs "$out/busybox.tar" conformance/busybox:1

names=()
make_image() { # Dockerfile, names
	local file=$1 tags=()
	shift
	for n in "$@"; do
		tags+=(-t "$n")
		names+=("$n")
	done
	local_skiff build -q -f "$here/$file.Dockerfile" "${tags[@]}" "$context" >/dev/null
	echo "built $*"
}
test=registry.k8s.io/e2e-test-images
make_image agnhost $test/agnhost:2.66.1 $test/agnhost:2.55
make_image busybox $test/busybox:1.37.0-2 $test/busybox:1.36.1-1
make_image pause registry.k8s.io/pause:3.10.2
make_image nginx $test/nginx:1.27.0-2 $test/nginx:1.28.0-2
make_image kitten $test/kitten:1.8
make_image nautilus $test/nautilus:1.8
make_image glibc-dns-testing $test/glibc-dns-testing:2.1.1
make_image nonroot $test/nonroot:1.5
make_image nonewprivs $test/nonewprivs:1.4
make_image etcd registry.k8s.io/etcd:3.7.0-0
make_image sample-apiserver $test/sample-apiserver:1.29.2
local_skiff image export -o "$archive.part" "${names[@]}"
mv "$archive.part" "$archive"
