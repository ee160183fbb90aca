# make test-v2: the node half on a machine with cgroup v2 alone.
#
# Debian's cloud kernel in an emulated machine (no KVM needed), with skiff and its
# tests in an initramfs. The kernel's package is unpacked, not installed: nothing
# about this machine's boot changes. KERNEL names a directory that has it already.

V2_PKGS := qemu-system-x86 busybox-static
KERNEL  ?= out/v2/kernel
.PHONY: test-v2
test-v2: build
	@sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
	for p in $(V2_PKGS); do dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ] || ! [ -d $(KERNEL)/boot ]; then $$sudo apt-get update -q; fi; \
	if [ -n "$$missing" ]; then DEBIAN_FRONTEND=noninteractive $$sudo apt-get install -y -q --no-install-recommends $$missing; fi
	@[ -d $(KERNEL)/boot ] || { mkdir -p out/v2/deb && rm -f out/v2/deb/*.deb && cd out/v2/deb && \
	  apt-get download -q $$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p' | head -1) && \
	  dpkg-deb -x linux-image-*.deb $(abspath $(KERNEL)); }
	@SKIFF=$(CURDIR)/bin/skiff SKIFF_V2_KERNEL=$(abspath $(KERNEL)) $(LOCK) $(GO) test -count=1 -timeout 15m -v ./test/v2
