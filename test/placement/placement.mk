# Included by the Makefile: where skiff's scheduler and upstream's put the same pods.
#
#   make placement    prints the table of docs/placement.md; fails where skiff is worse

.PHONY: placement

placement: check-go upstream
	@$(GO) build -o out/placement ./test/placement
	@out/placement -scheduler out/upstream/kube-scheduler
