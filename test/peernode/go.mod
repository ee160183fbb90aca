// A node's runtime, to compare skiff with: containerd and runc, in a module of their
// own, since they and Kubernetes' servers need not agree about what they require.
module skiff/test/peernode

go 1.26.8

tool (
	github.com/containerd/containerd/v2/cmd/containerd
	github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2
	github.com/containerd/containerd/v2/cmd/ctr
	github.com/opencontainers/runc
)

require (
	github.com/containerd/containerd/v2 v2.4.2
	github.com/opencontainers/runc v1.5.2
)
