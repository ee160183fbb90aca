# Included by the Makefile: a large cluster in one process.
#
#   make scale    5,000 hollow nodes and 150,000 pods; some 10 GiB of memory, minutes
#
# SCALE="-nodes 1000 -pods 30000 -store mem" for other sizes.

SCALE ?=

.PHONY: scale

scale: check-go
	@$(LOCK) $(GO) build -o out/scale ./test/scale
	@out/scale $(SCALE)
