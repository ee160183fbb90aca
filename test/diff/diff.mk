# make diff: the answers of upstream's API server and of skiff's, compared.
#
#   make diff                          everything
#   make diff ONLY=objects/pods        a part (a regular expression)
#
# The programs come from test/conformance; UPSTREAM names a directory that has
# them already. What differs is in out/diff, by request and by cause.

UPSTREAM ?= out/upstream
.PHONY: diff
diff: check-go programs
	@[ -x $(UPSTREAM)/kube-apiserver ] && [ -x $(UPSTREAM)/etcd ] || $(LOCK) test/conformance/build.sh $(UPSTREAM)
	@SKIFF_UPSTREAM=$(abspath $(UPSTREAM)) SKIFF_DIFF_OUT=$(CURDIR)/out/diff SKIFF_DIFF_ONLY='$(ONLY)' \
	  $(LOCK) $(GO) test -count=1 -timeout 30m ./test/diff
