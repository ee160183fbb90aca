// Package schedule compares what skiff's scheduler says of nodes and pods with what
// upstream's says, plugin by plugin, in random clusters: see its test.
package schedule
