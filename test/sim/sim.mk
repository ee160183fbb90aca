# Included by the Makefile: simulation of whole clusters.
#
#   make sim        a hundred thousand steps, a minute or two: part of make test
#   make sim-long   a million steps; SIM_STEPS=n for another number
#
# Of a failure, the last line is the command that does it again.

SIM_STEPS ?= 1000000

.PHONY: sim sim-long

sim: check-go
	@$(LOCK) $(GO) test -count=1 -timeout 15m ./internal/testcluster/... ./test/sim/... -args -steps 100000

sim-long: check-go
	@$(LOCK) $(GO) test -count=1 -timeout 120m -v ./test/sim/... -args -steps $(SIM_STEPS)
