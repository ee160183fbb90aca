# skiff: Kubernetes, whole, in one small program.
#
#   make up      build skiff and start a cluster on this machine
#   make demo    the guestbook example on it, from nothing
#   make test    everything that CI runs
#
# Heavy targets wait for each other: one build or race test at a time.

SHELL   := /bin/bash
GO      ?= go
NEED_GO := 1.26
export GOFLAGS := -buildvcs=false -tags=fieldsv1string
K8S     := v1.37.2
LOCK    := flock $(or $(TMPDIR),/tmp)/skiff-make.lock
PKGS    := zstd gcc libc6-dev libseccomp-dev pkg-config busybox-static ca-certificates nftables iproute2 \
           containernetworking-plugins iptables

.PHONY: all build programs up down reset test unit race e2e lint demo clean deps check-go

all: build

check-go:
	@command -v $(GO) >/dev/null || { echo "skiff needs Go $(NEED_GO) or newer: install it from https://go.dev/dl (Debian's package is too old)"; exit 1; }
	@v=$$($(GO) env GOVERSION | sed 's/^go//'); \
	printf '%s\n%s\n' "$(NEED_GO)" "$$v" | sort -V -C || \
	{ echo "skiff needs Go $(NEED_GO) or newer; this is go$$v. Install it from https://go.dev/dl (Debian's package is too old)"; exit 1; }

# What a fresh Debian lacks, through apt, and only that.
deps: check-go
	@missing=$$(for p in $(PKGS); do dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || echo $$p; done); \
	if [ -n "$$missing" ]; then \
	  sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
	  $$sudo apt-get update -q && DEBIAN_FRONTEND=noninteractive $$sudo apt-get install -y -q --no-install-recommends $$missing; \
	fi

BIN := internal/runtime/programs/bin

programs: deps $(BIN)/skiff-pod.zst $(BIN)/kubectl.zst

$(BIN)/skiff-pod.zst: $(wildcard cmd/skiff-pod/*.c cmd/skiff-pod/*.h cmd/skiff-start/*.go internal/runtime/programs/compile/patch/* internal/runtime/startspec/*.go internal/runtime/programs/*/*.go) go.mod
	@$(LOCK) $(GO) run ./internal/runtime/programs/build
	@touch $@

$(BIN)/kubectl.zst: cmd/kubectl/main.go cmd/kubectl/go.mod
	@cd cmd/kubectl && GOFLAGS=-buildvcs=false CGO_ENABLED=0 $(LOCK) $(GO) build -trimpath \
	  -ldflags "-s -w -X k8s.io/component-base/version.gitVersion=$(K8S) -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=37" \
	  -o ../../out/kubectl .
	@zstd -q -f -19 --long=26 out/kubectl -o $@ && rm out/kubectl

build: programs
	@mkdir -p bin
	@$(LOCK) $(GO) build -trimpath -ldflags "-s -w" -o bin/skiff ./cmd/skiff

up: build
	@bin/skiff up

down:
	@bin/skiff down

reset:
	@bin/skiff reset --yes

# The tests that CI runs: house rules, unit and contract tests under the race
# detector, a real cluster, and simulated ones.
test: build lint race e2e sim

lint: check-go
	@$(LOCK) $(GO) vet ./...
	@test -z "$$(gofmt -l cmd internal test 2>/dev/null)" || { echo "gofmt:"; gofmt -l cmd internal test; exit 1; }

unit: programs
	@$(LOCK) $(GO) test ./internal/... ./cmd/...

race: programs
	@$(LOCK) $(GO) test -race -timeout 20m ./internal/... ./cmd/...

e2e: build
	@SKIFF=$(CURDIR)/bin/skiff $(LOCK) $(GO) test -count=1 -timeout 25m ./test/e2e/...

include $(wildcard examples/demo.mk bench/bench.mk test/diff/diff.mk test/conformance/conformance.mk test/v2/v2.mk test/sim/sim.mk test/placement/placement.mk test/scale/scale.mk test/schedule/schedule.mk test/endure/endure.mk)

clean:
	rm -rf bin out $(BIN)/*.zst
