# Kansa. make help lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
# Tests to run (T=TestName) and where (PKG=./consumers/...).
T ?=
PKG ?= ./...
# Limits of make test: of the tests of a package, and of all with reruns. REQUIRE_ALL=1 makes skipped tests failures.
TIMEOUT ?= 20m
TOTAL ?= 52m
FUZZTIME ?= 30s
# Options of make run; empty: the demo goes on running, and prints where.
DEMO ?= --exit
GO_FILES := $(shell find . -path ./build -prune -o -name '*.go' -print -o -name '*.sql' -print -o -name '*.yaml' -print)
NPM := pipeline/engine/npm
CONSOLE := pipeline/console
CONSOLE_FILES := $(wildcard $(CONSOLE)/static/* $(CONSOLE)/*.html $(CONSOLE)/*.json)

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

build: build/kansa engine ## build/kansa with its console, and the engine's library where it finds it

build/kansa: $(GO_FILES) $(CONSOLE_FILES) go.mod go.sum $(CONSOLE)/assets/uPlot.esm.js
	@mkdir -p build
	go build -trimpath -ldflags "-s -w -X main.version=$(VERSION)" -o $@ ./pipeline/cmd/kansa

# The library is a package of npm's; npm ci checks it against the lockfile.
engine: build/engine/.installed ## fetch the ClickHouse library (npm)
build/engine/.installed: $(NPM)/package.json $(NPM)/package-lock.json
	@mkdir -p build/engine
	@cp $(NPM)/package.json $(NPM)/package-lock.json $(NPM)/.npmrc build/engine/
	cd build/engine && npm ci --no-fund --no-audit
	@touch $@

# What the console embeds of npm's.
console: $(CONSOLE)/assets/uPlot.esm.js ## fetch what the console shows charts with (npm)
$(CONSOLE)/assets/uPlot.esm.js: $(CONSOLE)/npm/package.json $(CONSOLE)/npm/package-lock.json
	@mkdir -p build/console
	@cp $(CONSOLE)/npm/package.json $(CONSOLE)/npm/package-lock.json $(CONSOLE)/npm/.npmrc build/console/
	cd build/console && npm ci --no-fund --no-audit
	@cp build/console/node_modules/uplot/dist/uPlot.min.css $(CONSOLE)/assets/
	@cp build/console/node_modules/uplot/dist/uPlot.esm.js $@

# What drives the browser of the console's tests.
browser: build/browser/.installed
build/browser/.installed: $(CONSOLE)/browser/package.json $(CONSOLE)/browser/package-lock.json
	@mkdir -p build/browser
	@cp $(CONSOLE)/browser/package.json $(CONSOLE)/browser/package-lock.json $(CONSOLE)/browser/.npmrc build/browser/
	cd build/browser && npm ci --no-fund --no-audit
	@touch $@

# The client for Node that a test runs as an analyst.
ANALYST := pipeline/analyst/client
analyst-client: build/analyst/.installed
build/analyst/.installed: $(ANALYST)/package.json $(ANALYST)/package-lock.json $(ANALYST)/client.mjs
	@mkdir -p build/analyst
	@cp $(ANALYST)/package.json $(ANALYST)/package-lock.json $(ANALYST)/.npmrc $(ANALYST)/client.mjs build/analyst/
	cd build/analyst && npm ci --no-fund --no-audit
	@touch $@

run: build ## the main job in half a minute: build/kansa demo
	build/kansa demo $(DEMO)

test: engine console browser analyst-client build/versitygw build/testrun test-tools ## every test, with the real parts
	build/testrun -timeout $(TIMEOUT) -total $(TOTAL) -alone '$(ALONE)' $(if $(GOTESTFLAGS),-flags '$(GOTESTFLAGS)') $(if $(T),-run '$(T)') $(PKG)

# Packages whose tests start whole pipelines, a browser, or hundreds of clients: two at once starve each other of processors.
ALONE := ./producers/gateway ./pipeline/console ./pipeline/cmd/kansa ./pipeline/chaos ./pipeline

# It runs the tests: limits, reruns, counts.
TESTRUN := pipeline/pipelinetest/testrun
build/testrun: $(filter-out %_test.go,$(wildcard $(TESTRUN)/*.go)) go.mod
	@mkdir -p build
	go build -o $@ ./$(TESTRUN)

# The S3 server of the tests: a module of its own, for it has many dependencies.
S3SERVER := pipeline/partitions/s3server
build/versitygw: $(S3SERVER)/go.mod $(S3SERVER)/go.sum
	@mkdir -p build
	go build -C $(S3SERVER) -o $(CURDIR)/$@ github.com/versity/versitygw/cmd/versitygw

# What the tests need besides Go: command:Debian package.
TEST_TOOLS := sshd:openssh-server unzip:unzip python3:python3 clickhouse-server:clickhouse-server promtool:prometheus openssl:openssl strace:strace chromium:chromium nginx:nginx-light
test-tools:
	@missing=(); for t in $(TEST_TOOLS); do \
		PATH="$$PATH:/usr/sbin:/sbin" command -v "$${t%%:*}" >/dev/null || missing+=("$${t##*:}"); done; \
	if [ $${#missing[@]} -eq 0 ]; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		export DEBIAN_FRONTEND=noninteractive; apt-get update -q >/dev/null; apt-get install -qy --no-install-recommends "$${missing[@]}" >/dev/null; \
	else echo "make test needs these packages: $${missing[*]}" >&2; exit 1; fi

# A run of make chaos: what is drawn from, how many rounds, how many pipelines side by side; GENERATION=2 repeats one of
# them alone, RACE=1 has the race detector look on, RESULT=file.json keeps what came of it;
# HEAL is how long it may take to heal after a round. CUTS is how often the power of a system is cut; POWER_RESULT keeps what came of that.
SEED ?= 1
ITERATIONS ?= 50
PARALLEL ?= 3
GENERATION ?= -1
RACE ?=
RESULT ?=
HEAL ?= 3m
CUTS ?= 50
POWER_RESULT ?=
CHAOS_DIR ?= $(if $(TMPDIR),$(TMPDIR),/tmp)
chaos: engine test-tools ## break it at random points, cut its power, and check its promises (SEED=7 ITERATIONS=50 CUTS=50)
	@mkdir -p build
	go test -c $(if $(RACE),-race) -o build/chaos.test ./pipeline/chaos
	cd pipeline/chaos && $(CURDIR)/build/chaos.test -test.run '^Test(Chaos|Power)$$' -test.v -test.timeout 0 -test.parallel $(PARALLEL) \
		-seed $(SEED) -iterations $(ITERATIONS) -heal $(HEAL) -generation $(GENERATION) -dir $(CHAOS_DIR) $(if $(RESULT),-result $(abspath $(RESULT))) \
		-cuts $(CUTS) $(if $(POWER_RESULT),-power-result $(abspath $(POWER_RESULT)))

# ROUNDS of make cluster: how often each part is killed.
ROUNDS ?= 10
cluster: engine test-tools ## kill each part of a system that has every part more than once (ROUNDS=10)
	go test -run '^TestCluster$$' -v -timeout 0 ./pipeline/chaos -cluster-rounds $(ROUNDS) -heal $(HEAL) -dir $(CHAOS_DIR)

lint: ## linters, pinned in .lint
	go tool -modfile=.lint/go.mod golangci-lint run ./...

fuzz: engine ## every fuzz target for FUZZTIME each
	@go list ./... | while read -r pkg; do \
		for f in $$(go test -list '^Fuzz' "$$pkg" | grep '^Fuzz' || true); do \
			echo "== $$pkg $$f"; go test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) "$$pkg"; done; done

# Options of the benchmark, such as --only ingest,latency --pprof profiles (BENCH="…").
BENCH ?=
bench: build/kansabench build/telegraf engine bench-tools ## measure everything; bench/results gets the figures
	build/kansabench $(BENCH)

bench-quick: build/kansabench build/telegraf engine bench-tools ## the same with smaller numbers, in five minutes
	build/kansabench --quick $(BENCH)

build/kansabench: $(GO_FILES) go.mod go.sum
	@mkdir -p build
	go build -trimpath -o $@ ./bench/kansabench

# A module of its own, and only the plugins the benchmark needs: it has hundreds of dependencies.
TELEGRAF_TAGS := custom,inputs.nats_consumer,outputs.sql,parsers.json
build/telegraf: bench/peers/telegraf/go.mod bench/peers/telegraf/go.sum
	@mkdir -p build
	@go build -C bench/peers/telegraf -tags $(TELEGRAF_TAGS) -o $(CURDIR)/$@ github.com/influxdata/telegraf/cmd/telegraf || \
		echo "Telegraf can't be built: its figures will be null" >&2

# Peers; what is missing is null in the result, so nothing fails without them.
BENCH_TOOLS := sshd:openssh-server sftp:openssh-client zip:zip rclone:rclone
bench-tools:
	@missing=(); for t in $(BENCH_TOOLS); do \
		PATH="$$PATH:/usr/sbin:/sbin" command -v "$${t%%:*}" >/dev/null || missing+=("$${t##*:}"); done; \
	if [ $${#missing[@]} -gt 0 ] && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		export DEBIAN_FRONTEND=noninteractive; apt-get update -q >/dev/null || true; \
		for p in "$${missing[@]}"; do apt-get install -qy --no-install-recommends "$$p" >/dev/null || echo "no $$p here: its figures will be null" >&2; done; fi

# What people install: the program, the engine's library, deploy/ and a bill of materials. Two builds of one commit by one toolchain
# give the same bytes: no path, no C compiler, no clock but the commit's.
DIST := kansa-$(VERSION)-$(shell go env GOOS)-$(shell go env GOARCH)
SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct)
dist: engine console ## build/dist: a tarball with checksums and SBOM, reproducible
	rm -rf build/dist && mkdir -p build/dist/$(DIST)/bin
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "-s -w -buildid= -X main.version=$(VERSION)" -o build/dist/$(DIST)/bin/kansa ./pipeline/cmd/kansa
	cp build/engine/node_modules/@chdb/lib-*/libchdb.so build/dist/$(DIST)/bin/
	git ls-files deploy ':!deploy/*_test.go' README.md ARCHITECTURE.md CHANGELOG.md SECURITY.md LICENSE schema/seal/SPEC.md schema/event.schema.json | \
		tar -cf - -T - | tar -xf - -C build/dist/$(DIST)
	go run -C .lint ./sbom $(CURDIR)/build/dist/$(DIST)/bin/kansa $(VERSION) $(CURDIR)/$(NPM)/package-lock.json $(CURDIR)/$(CONSOLE)/npm/package-lock.json > build/dist/$(DIST)/sbom.cdx.json
	cd build/dist/$(DIST) && find . -type f ! -name SHA256SUMS -printf '%P\n' | LC_ALL=C sort | xargs -d '\n' sha256sum > SHA256SUMS
	cd build/dist && tar --sort=name --owner=0 --group=0 --numeric-owner --mode=u+rw,go+rX,go-w --mtime=@$(SOURCE_DATE_EPOCH) --format=ustar -cf - $(DIST) | \
		gzip -n -6 > $(DIST).tar.gz && sha256sum $(DIST).tar.gz | tee SHA256SUMS

# What make test can't: it needs kubectl.
check-kubernetes: ## deploy/kubernetes against the types of Kubernetes' API
	kubectl kustomize deploy/kubernetes | go run -C .lint/manifests .

tidy: ## go.mod, go.sum and formatting
	go mod tidy
	gofmt -w schema producers consumers pipeline bench deploy

clean: ## remove what was built
	rm -rf build $(CONSOLE)/assets/uPlot.*

.PHONY: help build engine console browser analyst-client run test test-tools chaos cluster lint fuzz bench bench-quick bench-tools dist check-kubernetes tidy clean
