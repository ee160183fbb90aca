#!/usr/bin/env bash
# Builds a node of Kubernetes into out/upstream (or the directory given): kubelet,
# containerd with its shim and ctr, runc. It takes some minutes, once.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here/../../out/upstream}
mkdir -p "$out"
out=$(cd "$out" && pwd)
export GOFLAGS=-buildvcs=false
build() { # module's directory, program, package, flags
	cd "$1"
	[ -x "$out/$2" ] && [ "$out/$2" -nt go.sum ] && return
	echo "building $2"
	${GO:-go} build ${BUILD_P:+-p "$BUILD_P"} "${@:4}" -o "$out/.$2.new" "$3"
	mv "$out/.$2.new" "$out/$2"
}
if ! dpkg -s libseccomp-dev pkg-config containernetworking-plugins gcc >/dev/null 2>&1; then
	apt-get install -y --no-install-recommends libseccomp-dev pkg-config containernetworking-plugins gcc libc6-dev >/dev/null
fi
v=k8s.io/component-base/version
build "$here/../conformance" kubelet k8s.io/kubernetes/cmd/kubelet -ldflags "-s -w -X $v.gitVersion=v1.37.2 -X $v.gitMajor=1 -X $v.gitMinor=37"
c=github.com/containerd/containerd/v2/cmd
for p in containerd containerd-shim-runc-v2 ctr; do
	build "$here" $p $c/$p -ldflags "-s -w"
done
build "$here" runc github.com/opencontainers/runc -tags seccomp -ldflags "-s -w -X main.version=1.5.2"
