#!/usr/bin/env bash
# Builds the conformance suite, its runner and the driver into a directory, once.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
out=$(cd "$1" && pwd)
cd "$here"
export GOFLAGS=-buildvcs=false
go=${GO:-go}
v=k8s.io/component-base/version
if [ ! -x "$out/e2e.test" ] || [ go.sum -nt "$out/e2e.test" ]; then
	echo "building the conformance suite"
	$go test -c -ldflags "-s -w -X $v.gitVersion=v1.37.2 -X $v.gitMajor=1 -X $v.gitMinor=37" -o "$out/.e2e.test" k8s.io/kubernetes/test/e2e
	mv "$out/.e2e.test" "$out/e2e.test"
fi
[ -x "$out/ginkgo" ] && [ "$out/ginkgo" -nt go.sum ] || $go build -o "$out/ginkgo" github.com/onsi/ginkgo/v2/ginkgo
$go build -o "$out/run" ./run
