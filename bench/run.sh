#!/usr/bin/env bash
# Starts a cluster of its own (and with "peer" upstream's servers beside it) on
# loopback, measures, and takes all of it away again.
#
#   run.sh alone|peer|node "SCENARIO..." [FLAG...]
#
# With "node" each side has one: upstream's is a kubelet with containerd and runc.
#
# Environment: NAME of the cluster; SKIFF, BENCH_PROGRAM, UPSTREAM: the programs.
set -euo pipefail
cd "$(dirname "$0")/.."
mode=$1 scenarios=$2
shift 2
skiff=${SKIFF:-$PWD/bin/skiff}
bench=${BENCH_PROGRAM:-$PWD/out/bench}
upstream=${UPSTREAM:-$PWD/out/upstream}
name=${NAME:-bench-$$}
tmp=$(mktemp -d)
peer= failed=0
cleanup() {
	code=$?
	trap - EXIT INT TERM
	if [ -n "$peer" ]; then
		kill "$peer" 2>/dev/null || true
		wait "$peer" 2>/dev/null || true
	fi
	"$skiff" reset --yes --name "$name" --data-dir "$tmp/skiff" >/dev/null || true
	rm -rf "$tmp"
	exit $code
}
trap cleanup EXIT INT TERM

# start_peer FLAG... starts upstream's servers, out of the reach of an interrupt, so
# that bench can clean up in them first.
start_peer() {
	setsid "$bench" peer --bin "$upstream" --dir "$tmp/peer" "$@" >"$tmp/peer.out" 2>"$tmp/peer.err" &
	peer=$!
	for _ in $(seq 600); do
		grep -q '^ready' "$tmp/peer.out" && break
		kill -0 "$peer" 2>/dev/null || { echo "upstream did not start:" >&2; tail -n 20 "$tmp"/peer.err "$tmp"/peer/*.log >&2; exit 1; }
		sleep 0.2
	done
	flags+=(--peer "$tmp/peer/admin.kubeconfig" --peer-pid "@$tmp/peer/pids")
}

flags=(--skiff "$skiff" --json "${BENCH_JSON:-out/bench.json}")
mkdir -p out
# What starts programs of its own runs before anything else does.
case " $scenarios " in *" start "*)
	against=()
	if [ "$mode" != alone ]; then against=(--upstream "$upstream"); fi
	"$bench" --skiff "$skiff" --json "${BENCH_JSON:-out/bench.json}.start" "${against[@]}" "$@" start || failed=1
	scenarios=$(echo " $scenarios " | sed 's/ start / /')
	;;
esac
[ -n "${scenarios// /}" ] || exit $failed

role=up
if [ "$mode" = peer ]; then
	# A control plane on each side, and no node.
	role=server
	start_peer
fi
if [ $role = up ]; then
	"$skiff" up --name "$name" --data-dir "$tmp/skiff" >/dev/null
	# busybox:1 for podstart, from the host's static one.
	mkdir -p "$tmp/root/bin"
	cp "$(command -v busybox)" "$tmp/root/bin/busybox"
	for a in sh sleep; do ln -s busybox "$tmp/root/bin/$a"; done
	tar -C "$tmp/root" -c . | "$skiff" image import --name "$name" --data-dir "$tmp/skiff" --rootfs --cmd /bin/sh - busybox:1 >/dev/null
	if [ "$mode" = node ]; then
		# The same for the peer, and what its pods are held by.
		gcc -static -Os -s -o "$tmp/pause" test/conformance/images/pause.c
		tar -C "$tmp" -c pause | "$skiff" image import --name "$name" --data-dir "$tmp/skiff" --rootfs --cmd /pause - registry.k8s.io/pause:3.10.2 >/dev/null
		"$skiff" image export --name "$name" --data-dir "$tmp/skiff" --format oci -o "$tmp/images.tar" busybox:1 registry.k8s.io/pause:3.10.2
		start_peer --node "$tmp/images.tar"
		flags+=(--peer-bin "$(realpath "$upstream")")
	fi
else
	: >"$tmp/skiff.log"
	setsid "$skiff" server --name "$name" --data-dir "$tmp/skiff" >"$tmp/skiff.log" 2>&1 &
	for _ in $(seq 600); do
		grep -q '^Ready' "$tmp/skiff.log" && break
		sleep 0.1
	done
	grep -q '^Ready' "$tmp/skiff.log" || { echo "skiff did not start:" >&2; cat "$tmp/skiff.log" >&2; exit 1; }
fi
"$bench" --kubeconfig "$tmp/skiff/admin.kubeconfig" --data-dir "$tmp/skiff" "${flags[@]}" "$@" $scenarios || failed=1
exit $failed
