// Package network is the data plane of a node: the pod network (pod), the
// services (service) and network policy (policy). Only this tree knows netlink
// and nftables.
//
// Its input is plain values, compiled by the app from API objects; its output is
// kernel state. Each part keeps what it last wrote and applies the difference,
// and takes over what a former run left: nothing that is right is written again
// at a restart, so that no packet notices one.
//
// What is put on the host stands in the journal; Undo takes an entry back.
// Beneath the parts are ns (doing things in a network namespace), nft (transactions
// and rules of nftables) and conntrack (forgetting flows); nettest makes networks
// for tests.
package network
