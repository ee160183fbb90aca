# Included by the Makefile: a cluster that is killed and upgraded again and again.
#
#   make endure   fifty rounds, and a kill at each step of a pod's start and end
#
# ENDURE_ROUNDS=n for another number; SKIFF_ENDURE_SEED=n repeats a run.

ENDURE_ROUNDS ?= 50

.PHONY: endure

endure: build
	@SKIFF=$(CURDIR)/bin/skiff SKIFF_ENDURE_ROUNDS=$(ENDURE_ROUNDS) SKIFF_E2E_TIMEOUT=60m \
	  $(LOCK) $(GO) test -count=1 -timeout 70m -v -run 'TestUpgrade|TestEndure|TestKillAtEachStep' ./test/e2e
