#!/usr/bin/env bash
# Builds the servers of Kubernetes and etcd into out/upstream (or the directory
# given), for bench and for the comparison of answers. It takes a while, once.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here/../../out/upstream}
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$here"
export GOFLAGS=-buildvcs=false
v=k8s.io/component-base/version
flags="-s -w -X $v.gitVersion=v1.37.2 -X $v.gitMajor=1 -X $v.gitMinor=37"
build() { # program, package
	[ -x "$out/$1" ] && [ "$out/$1" -nt go.sum ] && return
	echo "building $1"
	${GO:-go} build ${BUILD_P:+-p "$BUILD_P"} -ldflags "$flags" -o "$out/.$1.new" "$2"
	mv "$out/.$1.new" "$out/$1"
}
build etcd go.etcd.io/etcd/server/v3
build kube-apiserver k8s.io/kubernetes/cmd/kube-apiserver
build kube-controller-manager k8s.io/kubernetes/cmd/kube-controller-manager
build kube-scheduler k8s.io/kubernetes/cmd/kube-scheduler
