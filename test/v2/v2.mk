# make test-v2: the node half on a machine with cgroup v2 alone.
#
# Debian's cloud kernel in an emulated machine (no KVM needed), with skiff and its
# tests in an initramfs. The kernel's package is unpacked, not installed: nothing
# about this machine's boot changes. KERNEL and KERNEL_NEW name directories that have
# them already: Debian's own kernel (6.1), and that of its backports for what needs a
# newer one (pods with a user namespace: 6.3).

V2_PKGS    := qemu-system-x86 busybox-static xz-utils
KERNEL     ?= out/v2/kernel
KERNEL_NEW ?= out/v2/kernel-new
# apt with the backports alone, and with directories of its own.
V2_APT      = $(abspath out/v2/apt)
V2_APT_NEW  = -o Dir::Etc::sourcelist=$(V2_APT)/list -o Dir::Etc::sourceparts=- -o Dir::State::lists=$(V2_APT)/lists -o Dir::Cache=$(V2_APT)/cache
# v2_kernel DIRECTORY,APT-OPTIONS: unpacks the newest cloud kernel there, if none is.
define v2_kernel
[ -d $(1)/boot ] || { rm -rf out/v2/deb && mkdir -p out/v2/deb && cd out/v2/deb && \
  apt-get $(2) download -q $$(apt-cache $(2) depends linux-image-cloud-amd64 | sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p' | head -1) && \
  dpkg-deb -x linux-image-*.deb $(abspath $(1)) && find $(abspath $(1))/lib -name '*.ko.xz' -exec unxz {} +; }
endef
.PHONY: test-v2
test-v2: build
	@sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
	for p in $(V2_PKGS); do dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ] || ! [ -d $(KERNEL)/boot ]; then $$sudo apt-get update -q; fi; \
	if [ -n "$$missing" ]; then DEBIAN_FRONTEND=noninteractive $$sudo apt-get install -y -q --no-install-recommends $$missing; fi
	@$(call v2_kernel,$(KERNEL),)
	@[ -d $(KERNEL_NEW)/boot ] || { mkdir -p $(V2_APT)/lists/partial $(V2_APT)/cache/archives/partial && \
	  echo 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian bookworm-backports main' >$(V2_APT)/list && \
	  apt-get $(V2_APT_NEW) update -q; }
	@$(call v2_kernel,$(KERNEL_NEW),$(V2_APT_NEW))
	@SKIFF=$(CURDIR)/bin/skiff SKIFF_V2_KERNEL=$(abspath $(KERNEL)) SKIFF_V2_KERNEL_NEW=$(abspath $(KERNEL_NEW)) $(LOCK) $(GO) test -count=1 -timeout 25m -v ./test/v2
