// Package v2 tests the node half on a machine whose controllers are in cgroup v2
// alone: Debian's cloud kernel, emulated, with skiff and its tests in an
// initramfs. The tests that run there are those of the packages that know about
// cgroups, and the ones of test/e2e that look at limits; on a newer kernel, pods with
// a user namespace of their own. See v2.mk.
package v2
