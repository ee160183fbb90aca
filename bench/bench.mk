# Included by the Makefile: measuring skiff, and upstream beside it.
#
#   make bench        skiff alone, all scenarios
#   make bench-peer   skiff and upstream in turns; builds upstream first
#   make compare      all of it beside upstream, with a node on either side, into
#                     docs/benchmarks.md
#
# BENCH="schedule deployment" picks scenarios, BENCH_FLAGS="--rounds 1 --nodes 100"
# sizes. Results are in out/bench.json, those of start in out/bench.json.start.

BENCH       ?= start idle list api watch schedule deployment podstart
BENCH_PEER  ?= start idle list api watch schedule deployment
BENCH_FLAGS ?=
BENCH_NAME  := bench-$(shell echo $$PPID)

# compare measures what needs a node on either side first, then control planes. LIST
# comes before other load: the memory after it is to be that of 10,000 pods.
COMPARE_NODE    ?= idle podstart
COMPARE_CONTROL ?= start list api watch bind bind-near bind-apart bind-spread preempt deployment rollout jobs

.PHONY: bench bench-peer bench-program upstream upstream-node compare

bench-program: build
	@$(GO) build -o out/bench ./bench

# Kubernetes' servers and etcd, from their modules; once.
upstream: check-go
	@$(LOCK) test/conformance/build.sh out/upstream

bench: bench-program
	@NAME=$(BENCH_NAME) bench/run.sh alone "$(BENCH)" $(BENCH_FLAGS)

bench-peer: bench-program upstream
	@NAME=$(BENCH_NAME) bench/run.sh peer "$(BENCH_PEER)" $(BENCH_FLAGS)

# A kubelet, containerd and runc, from their modules; once.
upstream-node: upstream
	@$(LOCK) test/peernode/build.sh out/upstream

compare: bench-program upstream-node
	@NAME=$(BENCH_NAME) BENCH_JSON=out/compare-node.json bench/run.sh node "$(COMPARE_NODE)" $(BENCH_FLAGS)
	@NAME=$(BENCH_NAME) BENCH_JSON=out/compare.json bench/run.sh peer "$(COMPARE_CONTROL)" $(BENCH_FLAGS)
	@out/bench markdown out/compare.json.start out/compare-node.json out/compare.json >out/benchmarks.md
	@mv out/benchmarks.md docs/benchmarks.md && echo docs/benchmarks.md
