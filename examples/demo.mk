# The guestbook on the cluster that `make up` starts; see examples/demo.sh.
.PHONY: demo
demo: build
	@SKIFF=$(CURDIR)/bin/skiff examples/demo.sh
