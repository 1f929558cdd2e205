# The commands of this project. `make` lists them.

CARGO ?= cargo
# What talks to hosts runs as root; everything else runs as whoever calls.
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo "sudo --preserve-env")
# A directory of its own: another build of the workspace would put a dynamic agent in its place.
TEST_AGENT_TARGET := $(CURDIR)/target/tmp/agent
STATIC := -C target-feature=+crt-static

.DEFAULT_GOAL := help
.PHONY: help test demo install check agent tests soak mutations docs audit release bench fuzz-build fuzz lab-up lab-shell lab-down

help: ## List these commands
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

test: install check agent tests docs ## Everything that has to hold: format, lints, all tests, documentation

demo: install release ## Clone a VM between two real hosts on this machine, killed in the middle and resumed
	$(SUDO) tests/lab/demo

install: ## Install the Debian packages that building and testing need
	tests/lab/install

# The fuzz targets are only looked at here: without an instrumented build, and without libFuzzer.
check: ## Format, lints, and whether the mutations still apply
	@$(CARGO) fmt --version >/dev/null 2>&1 || rustup component add rustfmt
	@$(CARGO) clippy --version >/dev/null 2>&1 || rustup component add clippy
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --all-features -- -D warnings
	tests/mutations --check
	CUSTOM_LIBFUZZER_PATH=/none/libnone.a $(CARGO) check --manifest-path fuzz/Cargo.toml --bins --target-dir target/tmp/fuzz

agent: ## The agent as tests use it: static, as it is shipped
	$(CARGO) rustc --package kvm-clone-agent --bin kvm-clone-agent --target-dir $(TEST_AGENT_TARGET) -- $(STATIC)

# Tests are built by whoever calls, and run as root: those with hosts need it.
# No test may leave itself out for want of root.
tests: export KVM_CLONE_TEST_ROOT := 1
# Those with hosts wait more than they compute.
tests: export RUST_TEST_THREADS ?= 4
tests: export KVM_CLONE_AGENT := $(TEST_AGENT_TARGET)/debug/kvm-clone-agent
tests: export KVM_CLONE_TEST_RUNNER := $(SUDO)
tests: agent ## All tests: unit, conformance, simulation, command line, lab
	tests/all

soak: export KVM_CLONE_AGENT := $(TEST_AGENT_TARGET)/debug/kvm-clone-agent
soak: install agent ## Histories, kills, power cuts, damage for SOAK_SECONDS (600) or SOAK_HISTORIES: one table
	$(SUDO) tests/soak

mutations: install ## Switch off one protection at a time: a test must fail each time
	$(SUDO) tests/mutations

docs: export RUSTDOCFLAGS := -D warnings
docs: ## The code's documentation
	$(CARGO) doc --workspace --no-deps

audit: ## Licences, banned crates, where crates come from
	@$(CARGO) deny --version >/dev/null 2>&1 || $(CARGO) install cargo-deny --locked
	$(CARGO) deny check --hide-inclusion-graph licenses bans sources

release: ## target/release/kvm-clone, and beside it the static kvm-clone-agent
	$(CARGO) build --release --package kvm-clone --bin kvm-clone
	$(CARGO) rustc --release --package kvm-clone-agent --bin kvm-clone-agent -- $(STATIC)
	@! readelf --program-headers target/release/kvm-clone-agent | grep -q INTERP || { echo "the agent is not static" >&2; exit 1; }

bench: install release ## Times kvm-clone against scp, in turns; fails when it is slower
	$(SUDO) tests/lab/bench

# Without a sanitizer the fuzz targets need no other toolchain than everything else; all but sled is safe Rust there.
FUZZ := $(CARGO) fuzz
FUZZ_FLAGS := --sanitizer none
FUZZ_SECONDS ?= 60
# A store that fails is never given back (it would write), so `journal` takes about 8 MB a second.
FUZZ_MEMORY_MB ?= 8192
TARGETS ?= $(sort $(basename $(notdir $(wildcard fuzz/fuzz_targets/*.rs))))

fuzz-build: ## Build the fuzz targets
	@$(FUZZ) --version >/dev/null 2>&1 || $(CARGO) install cargo-fuzz --locked
	$(FUZZ) build $(FUZZ_FLAGS)

fuzz: fuzz-build ## Fuzz for FUZZ_SECONDS each (60); TARGETS="frame qcow2" names some
	@for target in $(TARGETS); do \
		mkdir -p fuzz/corpus/$$target && \
		$(FUZZ) run $(FUZZ_FLAGS) $$target fuzz/corpus/$$target fuzz/seeds/$$target -- \
			-max_total_time=$(FUZZ_SECONDS) -rss_limit_mb=$(FUZZ_MEMORY_MB) -print_final_stats=1 || exit 1; \
	done

lab-up: install ## Two hosts to try things on
	$(SUDO) tests/lab/lab up
	@$(SUDO) tests/lab/lab env

lab-shell: ## A shell on one of them (HOST=a or HOST=b)
	@$(SUDO) tests/lab/lab shell $(or $(HOST),a)

lab-down: ## And away with them
	$(SUDO) tests/lab/lab down
