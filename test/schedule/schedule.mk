# Included by the Makefile: skiff's scheduler beside upstream's code, in one process.
#
#   make schedule     verdicts, scores and victims of random clusters; what is wrong with configurations

.PHONY: schedule
schedule: check-go
	@cd test/schedule && $(GO) test -count=1 ./...
