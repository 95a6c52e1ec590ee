# Berth: capacity-aware local disk for Kubernetes. `make help` lists the targets.

SHELL       := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

BUILD := .build
BIN   := $(BUILD)/bin
TOOL  := go tool -modfile=tools/go.mod
# Tests of several packages share the machine's loop devices and its two cores.
GOTEST := $(TOOL) gotestsum --format pkgname-and-test-fails --hide-summary=output -- -count=1 -timeout=45m -p=2
# A semantic version, as component-base demands. It is also the tag of the images. It changes with a release and not
# with each commit, so that nothing is linked again without need.
VERSION ?= $(shell cat VERSION)
LDFLAGS := -s -w -X k8s.io/component-base/version.gitVersion=$(VERSION)

export CGO_ENABLED := 0

.PHONY: help
help: ## Show this list.
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## Build the scheduler, the node agent and the kubectl plugin into .build/bin.
	go build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/ ./cmd/...

.PHONY: images-tool
images-tool:
	go build -C build/images -trimpath -o $(CURDIR)/$(BIN)/images .

.PHONY: images
images: images-tool ## Write the images for amd64 and arm64 to .build/images (IMAGES="--platforms linux/arm64 --registry HOST").
	$(BIN)/images write --version $(VERSION) $(IMAGES)

.PHONY: images-verify
images-verify: images ## Build the images a second time, from a copy in another folder, and compare the digests.
	$(BIN)/images verify --version $(VERSION) $(IMAGES)

.PHONY: images-lock
images-lock: images-tool ## Take the newest Debian packages into build/images/packages.lock.yaml.
	$(BIN)/images lock

.PHONY: push
push: images-tool ## Push what `make images` wrote (REGISTRY=registry.example.com, PUSH=--plain-http).
	@test -n "$(REGISTRY)" || { echo 'name the registry: make push REGISTRY=registry.example.com'; exit 1; }
	$(BIN)/images push $(REGISTRY) $(PUSH)

.PHONY: prepare
prepare: build ## Install and build what the tests and the demo need (Debian packages, Kubernetes programs).
	go run ./test/demo prepare

.PHONY: demo
demo: build ## Start a local cluster and show pods on partitions (needs root).
	go run ./test/demo up

.PHONY: demo-down
demo-down: ## Remove the demo's cluster and all it made.
	go run ./test/demo down

.PHONY: test
test: prepare ## Run the unit, disk and integration tests (those that need root are counted aloud without it).
	$(GOTEST) $$(go list ./... | grep -vE '/test/(e2e|vm$$)')
	cd build/images && go tool -modfile=$(CURDIR)/tools/go.mod gotestsum --format pkgname-and-test-fails --hide-summary=output -- -count=1 -timeout=15m ./...

.PHONY: e2e
e2e: prepare ## Run the end-to-end tests on real kubelets (needs root).
	$(GOTEST) -p=1 ./test/e2e/...

.PHONY: e2e-vm
e2e-vm: ## Cut the power of virtual machines and pull their disks (root; software emulation; 15 minutes and more).
	go run ./test/demo prepare-vm
	go test -count=1 -timeout=60m -v ./test/vm

.PHONY: vm
vm: ## Test the device mapper in a virtual machine, in a few minutes (root; software emulation).
	go run ./test/demo prepare-vm
	$(GOTEST) -run='^(TestBoot|TestAgent|TestPieces)$$' ./test/vm

.PHONY: skew
skew: prepare ## Run the core of the integration tests against API servers 1.34 to 1.37 (root; SKEW="-versions 1.34").
	go run ./test/skew $(SKEW)

.PHONY: mutants
mutants: prepare ## Delete one safety rule at a time: the tests of its package must notice (needs root; MUTANTS="-file pkg/agent/disk").
	go run ./test/mutants $(MUTANTS)

.PHONY: lint
lint: ## Check formatting, vet, lints, import rules and generated files.
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { gofmt -l $$(git ls-files '*.go'); echo 'run gofmt -w on the files above'; exit 1; }
	go vet ./...
	$(TOOL) golangci-lint run ./...
	go test -count=1 ./test/imports

.PHONY: generate
generate: ## Regenerate Go, the CRDs, the Grafana board, docs/reference, and config from the chart.
	$(TOOL) controller-gen object crd paths=./apis/... output:crd:artifacts:config=config/crd
	go run -C build/board .
	go run ./build/manifests
	go run ./build/reference

.PHONY: chart-test
chart-test: prepare ## Check the Helm chart: lint, schemas, golden files, and install, upgrade and uninstall it (needs root).
	$(GOTEST) -p=1 ./build/manifests ./test/chart ./test/e2e/chart

.PHONY: bench
bench: prepare ## Run the benchmarks that docs/understand/performance.md quotes (needs root).
	go test -run='^$$' -bench=. -benchmem ./pkg/placement ./pkg/ledger ./pkg/plugins/...
	go test -count=1 -timeout=30m -v -run='^$$' -bench=. -benchtime=1x ./test/bench/...
	PATH="$(CURDIR)/$(BIN):$$PATH" go test -C test/schedulerperf -timeout=30m -run='^$$' -bench=. -benchtime=1x

.PHONY: bench-scale
bench-scale: prepare ## Measure the scheduler beside the stock one on 1000 and 5000 nodes (docs/understand/performance.md; 20 minutes).
	go run ./test/scale -svg docs/understand

.PHONY: simulate
simulate: ## Replay weeks of volumes on up to 5000 nodes and compare policies of placement (docs/understand/placement.md).
	go run ./test/simulate -svg docs/understand

.PHONY: fuzz
fuzz: ## Run each fuzz target for a minute.
	@for package in $$(git grep -lE '^func Fuzz' -- '*_test.go' | xargs -n1 dirname | sort -u); do \
	  for target in $$(git grep -hoE '^func Fuzz[A-Za-z0-9]+' -- "$$package/*_test.go" | cut -c6-); do \
	    go test -run='^$$' -fuzz="^$$target$$" -fuzztime=60s -fuzzminimizetime=100x ./$$package; \
	  done; \
	done

.PHONY: torture
torture: prepare ## Try many more power cuts, kills, faults and histories than the tests do (hours).
	BERTH_TORTURE=1 go test -count=1 -timeout=120m -v -run='^(TestTorture|TestSoak)$$' ./pkg/agent/disk
	BERTH_TORTURE=1 go test -count=1 -timeout=180m -v ./test/kill
	BERTH_TORTURE=1 go test -count=1 -timeout=180m -v ./test/faults
	BERTH_TORTURE=1 go test -count=1 -timeout=240m -v -run='^(TestSchedulerLeaks|TestAgentMoves)$$' ./test/integration

.PHONY: clean
clean: ## Remove what was built here.
	rm -rf $(BUILD)
