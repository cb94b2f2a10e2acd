# What people run, and what CI runs. `make` alone lists it.

SHELL := /bin/sh
.DEFAULT_GOAL := help

CARGO ?= cargo
# Handed to the demo: make demo ARGS="--once --nodes 5". Its standard output is all that make demo
# writes there.
ARGS ?=
PORTOLAN := $(or $(CARGO_TARGET_DIR),target)/debug/portolan
.NOTPARALLEL:
# The version that is installed when there is none.
NEXTEST_VERSION := 0.9.143

.PHONY: help
help: ## List the targets
	@echo 'Portolan: an ingress routing mesh. Targets:'
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-18s %s\n", $$1, $$2 }'
	@echo
	@echo '`make demo` and `make test` make network namespaces, for which they need root.'

.PHONY: deps
deps: ## Install what build, demo and tests need and is not there (apt; says what is missing elsewhere)
	@.ci/deps build demo test

.PHONY: build
build: ## Build the program, target/debug/portolan
	@.ci/deps build
	@$(CARGO) build --locked -p portolan-agent -p portolan-plugin

.PHONY: release
release: ## Build the program for use, target/release/portolan
	@.ci/deps build
	$(CARGO) build --locked --release -p portolan-agent

# Programs without libraries of the system, for what has none: build scripts and macros are the machine's own all the
# same, as a target is named.
TARGET := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
STATIC := RUSTFLAGS='-C target-feature=+crt-static' $(CARGO) build --locked --release --target $(TARGET)
STATIC_DIR = $(or $(CARGO_TARGET_DIR),target)/$(TARGET)/release
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml)

.PHONY: image
image: ## Build the image portolan:VERSION, for deploy/portolan-stack.yml; DOCKER_HOST names the engine
	@.ci/deps build demo
	$(STATIC) -p portolan-agent
	@deploy/image $(STATIC_DIR)/portolan $(STATIC_DIR)/portolan-image.tar
	docker import -c 'ENV PATH=/bin' -c 'ENTRYPOINT ["portolan"]' -c 'CMD ["agent"]' \
	    $(STATIC_DIR)/portolan-image.tar portolan:$(VERSION)
	@echo 'Every node needs it, of which no registry has to know:'
	@echo '    docker save portolan:$(VERSION) | ssh NODE docker load'
	@echo 'Then, on a manager: docker stack deploy -c deploy/portolan-stack.yml portolan (docs/swarm.md).'

.PHONY: plugin
plugin: ## Build the network plugin portolan:latest, and create it if DOCKER_HOST names an engine
	@.ci/deps build
	$(STATIC) -p portolan-plugin
	@rm -rf $(STATIC_DIR)/plugin && mkdir -p $(STATIC_DIR)/plugin/rootfs
	@cp deploy/plugin/config.json $(STATIC_DIR)/plugin
	@cp $(STATIC_DIR)/portolan-plugin $(STATIC_DIR)/plugin/rootfs
	@strip $(STATIC_DIR)/plugin/rootfs/portolan-plugin 2>/dev/null || true
	@if [ -n "$$DOCKER_HOST" ]; then docker plugin create portolan:latest $(STATIC_DIR)/plugin; fi
	@echo 'On every node, with $(STATIC_DIR)/plugin there:'
	@echo '    docker plugin create portolan:latest plugin'
	@echo '    docker plugin set portolan:latest SCOPE=local       (not in a Swarm)'
	@echo '    docker plugin enable portolan:latest'
	@echo 'Then: docker network create -d portolan:latest --subnet 10.10.3.0/24 shop (docs/docker.md).'

.PHONY: demo
demo: build ## Three nodes on this machine, until Ctrl-C; ARGS=--once checks them and ends
	@.ci/deps demo
	@if [ "$$(id -u)" = 0 ]; then exec $(PORTOLAN) demo $(ARGS); else exec sudo $(PORTOLAN) demo $(ARGS); fi

.PHONY: test
test: root deps lint build ## Everything that CI holds: lints, docs, all tests, the demo
	@$(MAKE) --no-print-directory nextest
	$(CARGO) test --locked --workspace --doc
	@$(MAKE) --no-print-directory fuzz-smoke
	$(PORTOLAN) demo --once

.PHONY: test-docker
test-docker: root build ## Docker and Swarm with real engines, on both planes; `make test` has it too
	@.ci/deps demo test
	@$(MAKE) --no-print-directory nextest TESTS="-p portolan-e2e --test 'docker*'"

.PHONY: lint
lint: ## Format, clippy and docs, warnings being errors
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --locked --workspace --no-deps --quiet

# Without cargo-nextest, and if it cannot be installed, the tests run all the same: less side by
# side, as only nextest knows the groups of .config/nextest.toml.
TESTS := --workspace --lib --bins --tests
.PHONY: nextest
nextest:
	@if $(CARGO) nextest --version >/dev/null 2>&1 \
	    || $(CARGO) install --locked cargo-nextest --version $(NEXTEST_VERSION); then \
	    exec $(CARGO) nextest run --locked $(TESTS); \
	else \
	    echo 'cargo-nextest is not there: falling back to cargo test' >&2; \
	    exec $(CARGO) test --locked $(TESTS) -- --test-threads=2; \
	fi

.PHONY: fuzz-smoke
fuzz-smoke: ## Fuzz everything that reads input from outside, 30 seconds each
	tests/fuzz/run 30

.PHONY: sim
sim: ## Simulate the gossip of 1000 nodes, and print its figures
	$(CARGO) run --locked --release -p portolan-gossip --example sim -- --nodes 1000

.PHONY: bench
bench: root ## Measure Portolan and its peers side by side, into bench/results; ARGS=--quick takes a minute
	@.ci/deps build demo bench
	@$(CARGO) build --locked --release -p portolan-agent -p portolan-bench
	$(or $(CARGO_TARGET_DIR),target)/release/portolan-bench $(ARGS)
	@[ -n '$(ARGS)' ] || $(MAKE) --no-print-directory bench-scale

# The name of this machine in what is measured.
MACHINE ?= $(shell hostname)
.PHONY: bench-scale
bench-scale: root ## Measure the fast path with 10,000 services, into bench/results; `make bench` does it too
	@.ci/deps build demo
	@page=bench/results/$$(date -u +%F)-scale-$(MACHINE).md; \
	    $(CARGO) bench --locked -p portolan-ebpf --bench scale >"$$page.part" && mv "$$page.part" "$$page" && cat "$$page"

.PHONY: clean
clean: ## Remove what was built
	$(CARGO) clean

.PHONY: root
root:
	@if [ "$$(id -u)" != 0 ]; then \
	    echo 'The tests make network namespaces, for which they need root:' >&2; \
	    echo '    sudo env "PATH=$$PATH" make test' >&2; \
	    exit 1; \
	fi
