#!/bin/bash
# The guestbook example from nothing, on the cluster that `make up` started (or
# that this starts): a base image from Debian packages, three images built from
# Dockerfiles, three tiers behind Services, and the answers that come through
# them. It can be run again: what is there already is kept.
#
#	examples/demo.sh [--name NAME] [--data-dir DIR]
#
# SKIFF is the binary, bin/skiff unless set; NODE_PORT the front's node port.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
SKIFF=${SKIFF:-$here/../bin/skiff}
NODE_PORT=${NODE_PORT:-30080}
flags=("$@")
book=$here/guestbook
began=$SECONDS

skiff() { "$SKIFF" "$@" "${flags[@]}"; }
kubectl() { "$SKIFF" kubectl "${flags[@]}" "$@"; }
step() { printf '\n\033[1m%s\033[0m\n' "$*"; }

# get_host prints what http://ADDRESS:PORT/PATH answers, asked from this host; no
# client but the shell is needed. With a fourth argument that is posted.
get_host() {
	local address=$1 port=$2 path=$3 line
	exec 3<>"/dev/tcp/$address/$port"
	if [ $# -gt 3 ]; then
		printf 'POST %s HTTP/1.0\r\nHost: %s\r\nContent-Length: %d\r\n\r\n%s' "$path" "$address" "${#4}" "$4" >&3
	else
		printf 'GET %s HTTP/1.0\r\nHost: %s\r\n\r\n' "$path" "$address" >&3
	fi
	IFS= read -r line <&3
	case $line in
	*" 200 "*) ;;
	*) echo "http://$address:$port$path says $line" >&2; exec 3>&-; return 1 ;;
	esac
	while IFS= read -r line <&3 && [ "$line" != $'\r' ]; do :; done
	cat <&3
	exec 3>&-
}

# get_pod prints what a URL answers, asked from a pod of the web tier.
get_pod() {
	kubectl -n guestbook exec deployment/web -- python3 -c \
		'import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=20).read().decode().strip())' "$1"
}

step "A cluster"
skiff up

step "Images"
# Listed whole first: a reader that stops early would end the writer.
images=$(skiff image ls)
if grep -q '^guestbook/base:1 \|/guestbook/base:1 ' <<<"$images"; then
	echo "guestbook/base:1 is there"
else
	base=$(mktemp -t guestbook-base.XXXXXX)
	trap 'rm -f "$base"' EXIT
	echo "guestbook/base:1 from Debian packages"
	sh "$book/base.sh" "$base"
	skiff image import --rootfs "$base" guestbook/base:1
fi
for tier in redis web front; do
	built=$(skiff build -t "guestbook/$tier:1" "$book/$tier" 2>&1) || { echo "$built" >&2; exit 1; }
	echo "guestbook/$tier:1 built from examples/guestbook/$tier/Dockerfile"
done

step "Three tiers"
sed "s/nodePort: 30080/nodePort: $NODE_PORT/" "$book/guestbook.yaml" | kubectl apply -f -
for tier in redis web front; do
	kubectl -n guestbook rollout status "deployment/$tier" --timeout=120s
done
kubectl -n guestbook get pods,services -o wide

step "Answers"
node=$(kubectl get nodes -o 'jsonpath={.items[0].status.addresses[?(@.type=="InternalIP")].address}')
cluster_ip=$(kubectl -n guestbook get service front -o 'jsonpath={.spec.clusterIP}')
get_host "$node" "$NODE_PORT" /api/messages "hello from the demo" >/dev/null
answer() { printf '%-10s %-54s %s\n' "$1" "$2" "$3"; }
a=$(get_pod "http://$cluster_ip/api/messages")
answer ClusterIP "http://$cluster_ip/api/messages" "$a"
a=$(get_host "$node" "$NODE_PORT" /api/messages)
answer NodePort "http://$node:$NODE_PORT/api/messages" "$a"
a=$(get_pod http://front.guestbook.svc.cluster.local/api/messages)
answer "DNS name" http://front.guestbook.svc.cluster.local/api/messages "$a"
printf '\nThe guestbook is at http://%s:%s/ (%d s).\n' "$node" "$NODE_PORT" $((SECONDS - began))
