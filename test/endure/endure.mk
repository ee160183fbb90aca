# Included by the Makefile: a cluster that is killed and upgraded again and again.
#
#   make endure   fifty rounds, and a kill at each step of a pod's start and end
#   make full     200 pods for ten minutes, then all deleted
#
# ENDURE_ROUNDS=n for another number; SKIFF_ENDURE_SEED=n repeats a run.

ENDURE_ROUNDS ?= 50

.PHONY: endure full

endure: build
	@SKIFF=$(CURDIR)/bin/skiff SKIFF_ENDURE_ROUNDS=$(ENDURE_ROUNDS) SKIFF_E2E_TIMEOUT=60m \
	  $(LOCK) $(GO) test -count=1 -timeout 70m -v -run 'TestUpgrade|TestEndure|TestKillAtEachStep' ./test/e2e

full: build
	@SKIFF=$(CURDIR)/bin/skiff SKIFF_FULL_SECONDS=600 SKIFF_E2E_TIMEOUT=18m $(LOCK) $(GO) test -count=1 -timeout 20m -v -run TestFullNode ./test/e2e
