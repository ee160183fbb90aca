// Package framework has what the scheduling cycle and its plugins share: pods
// reduced to what scheduling needs of them (Pod, Class), nodes with what they
// hold (Node), the set of all of them (Snapshot), and the extension points.
//
// Nothing here does I/O, reads a clock or starts a goroutine, and nothing is
// safe for concurrent use: a Snapshot belongs to one goroutine.
//
// # Classes
//
// Pods of one template are alike to every plugin: they share a *Class. Plugins
// therefore see classes, never pods, where a node is judged: what they compute
// for a class holds for all its pods. A plugin that needs one more field of a
// pod adds it to Class and to its key.
package framework
