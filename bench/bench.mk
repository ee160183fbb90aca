# Included by the Makefile: measuring skiff, and upstream beside it.
#
#   make bench        skiff alone, all scenarios
#   make bench-peer   skiff and upstream in turns; builds upstream first
#
# BENCH="schedule deployment" picks scenarios, BENCH_FLAGS="--rounds 1 --nodes 100"
# sizes. Results are in out/bench.json, those of start in out/bench.json.start.

BENCH       ?= start idle api list watch schedule deployment podstart
BENCH_PEER  ?= start idle api list watch schedule deployment
BENCH_FLAGS ?=
BENCH_NAME  := bench-$(shell echo $$PPID)

.PHONY: bench bench-peer bench-program upstream

bench-program: build
	@$(GO) build -o out/bench ./bench

# Kubernetes' servers and etcd, from their modules; once.
upstream: check-go
	@$(LOCK) test/conformance/build.sh out/upstream

bench: bench-program
	@NAME=$(BENCH_NAME) bench/run.sh alone "$(BENCH)" $(BENCH_FLAGS)

bench-peer: bench-program upstream
	@NAME=$(BENCH_NAME) bench/run.sh peer "$(BENCH_PEER)" $(BENCH_FLAGS)
