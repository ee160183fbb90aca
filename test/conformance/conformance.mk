# The official conformance tests, unmodified, on a development cluster.
#
#	make conformance                                  all of them
#	make conformance FOCUS='Deployment|StatefulSet' NODES=2
#
# Builds the suite (minutes, once), its images with skiff build, starts a cluster
# with NODES nodes, and writes out/conformance/report.md.

FOCUS ?=
SKIP  ?=
NODES ?= 1
PROCS ?= 4
.PHONY: conformance conformance-build
conformance-build: build
	@$(LOCK) test/conformance/suite.sh out/conformance
	@$(LOCK) test/conformance/images/build.sh bin/skiff out/conformance

conformance: conformance-build
	@out/conformance/run -skiff bin/skiff -out out/conformance -focus '$(FOCUS)' -skip '$(SKIP)' -nodes $(NODES) -procs $(PROCS)
