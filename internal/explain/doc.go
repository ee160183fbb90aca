// Package explain says why an object is not as it should be, and which smallest
// changes would help.
//
// It is pure: it judges a World, the objects as they were read at one moment, and
// asks the scheduler's own core about what would be if: the pod with one change, the
// node without its taint, one more node. A remedy that is Proven is one after which
// that core places the pod; nothing is guessed there. Where the API server, the
// kubelet or a controller would have to act, remedies are advice and not proven.
//
// Read collects a World over the API, with the rights of who asks: what one may not
// read is not told, and Notes say what was missing. Text writes an explanation for a
// person.
package explain
