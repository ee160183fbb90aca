// Package diff compares skiff's API server with upstream's, request by request.
//
// Upstream's kube-apiserver and etcd and skiff's API server over its own etcd
// start on loopback with the same PKI, the same ranges and the same admission, and
// without controllers, so that nothing but requests changes an object. One script
// of requests goes to both. Codes, warnings and bodies, managedFields included,
// must be equal once what cannot be equal is masked (see mask.go): uids, times of
// this run, resource versions, allocated addresses and ports, generated names,
// tokens.
//
// The script has two sources:
//
//   - cases/*.txt: sequences of requests written by hand, one namespace each; those
//     of dual/ go to servers of two IP families
//   - objects/*.yaml: valid objects of every kind, from which one mistake per
//     field and kind of mistake is generated over the Go type (see mutate.go),
//     each sent as a dry run of a create, an update and a status update
//
// known.yaml lists the differences that stay, with the reason of each. An entry
// that no longer occurs fails the test: the list holds nothing stale.
//
// The tests need SKIFF_UPSTREAM, the directory of upstream's programs; `make diff`
// builds them and sets it.
package diff
