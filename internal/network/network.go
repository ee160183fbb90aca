// Package network is the data plane of a node: the pod network (pod, cni), the
// services (service) and network policy (policy). Only this tree knows netlink
// and nftables.
//
// Its input is plain values, compiled by the app from API objects; its output is
// kernel state. Each part keeps what it last wrote and applies the difference.
package network
