# `make help` says what the targets do.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# What is downloaded or built once, outside the repository, so that a second run is quick.
export KATA_CACHE_DIR ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/containerd-shim-kata-v2
BIN := $(KATA_CACHE_DIR)/bin
TARGET := $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)
SHIM := $(TARGET)/release/containerd-shim-kata-v2
MATRIX := $(KATA_CACHE_DIR)/matrix
PREFIX ?= /usr/local

# The guest has one program, so it brings its C library and libseccomp along.
AGENT_TARGET := x86_64-unknown-linux-gnu
AGENT := $(TARGET)/guest/$(AGENT_TARGET)/release/guest-agent
AGENT_ENV := RUSTFLAGS="-C target-feature=+crt-static" \
	LIBSECCOMP_LINK_TYPE=static LIBSECCOMP_LIB_PATH=/usr/lib/x86_64-linux-gnu

NEXTEST := $(shell cargo nextest --version >/dev/null 2>&1 && echo yes)
UNIT_TESTS := $(if $(NEXTEST),cargo nextest run --no-tests=pass,cargo test --quiet)
# The end-to-end tests need root for containerd, mounts and cgroups.
KEPT := PATH,HOME,KATA_CACHE_DIR,KATA_GUEST,CARGO_TARGET_DIR,KATA_TEST_CONTAINERD,KATA_TEST_CTR,KATA_TEST_DOCKER,KATA_TEST_QEMU,KATA_TEST_SANDBOX_API
AS_ROOT := $(if $(filter 0,$(shell id -u)),,sudo --preserve-env=$(KEPT))

.PHONY: help
help: ## print this list
	@sed -nE 's/^([a-z0-9-]+):.*## (.*)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

.PHONY: setup
setup: ## get what the machine lacks: Debian packages, QEMU's helpers, a guest kernel, a test image
	@tools/install-packages
	@tools/install-helpers
	@guest/image/fetch-kernel
	@tools/busybox-image

.PHONY: build
build: ## build the shim
	@cargo build --quiet --release --locked --package containerd-shim-kata-v2

.PHONY: guest
guest: setup ## build the guest's agent and pack it into the initramfs
	@$(AGENT_ENV) cargo build --quiet --release --locked --package guest-agent --target $(AGENT_TARGET) --target-dir $(TARGET)/guest
	@guest/image/build-initramfs $(AGENT)

.PHONY: guest-kernel
guest-kernel: setup ## build a trimmed kernel that boots in half the time; used from then on, unless KATA_GUEST=stock
	@tools/install-packages guest-kernel
	@guest/kernel/build-kernel
	@$(MAKE) --no-print-directory guest

.PHONY: check
check: ## format, lints, unit tests, licences, documentation, spelling, scripts
	@tools/install-packages
	@tools/install-checkers
	cargo fmt --all --check
	cargo fmt --manifest-path tests/fuzz/Cargo.toml --check
	cargo clippy --quiet --locked --workspace --all-targets -- -D warnings
	$(UNIT_TESTS) --locked --workspace --exclude tests
	RUSTDOCFLAGS="-D warnings" cargo doc --quiet --locked --workspace --no-deps --document-private-items
	$(BIN)/cargo-deny --log-level error check --hide-inclusion-graph bans licenses sources
	$(BIN)/typos
	shellcheck --external-sources $$(git grep -l '^#!/bin/bash')

FUZZ_SECONDS ?= 60
FUZZ := PATH=$(BIN):$$PATH cargo fuzz run --fuzz-dir tests/fuzz --target-dir $(TARGET)/fuzz --sanitizer none

# Long inputs from the beginning, as there is not much time.
FUZZ_FOR := -- -max_total_time=$(FUZZ_SECONDS) -len_control=0

.PHONY: fuzz
fuzz: ## made-up files, annotations, QMP input and guest memory, a minute each (FUZZ_SECONDS=60)
	@tools/install-fuzzer
	@mkdir -p $(TARGET)/fuzz/{toml,annotations,qmp,vsock}.corpus
	$(FUZZ) toml $(TARGET)/fuzz/toml.corpus configuration/tests/data $(FUZZ_FOR)
	$(FUZZ) annotations $(TARGET)/fuzz/annotations.corpus tests/fuzz/seeds/annotations $(FUZZ_FOR)
	$(FUZZ) qmp $(TARGET)/fuzz/qmp.corpus tests/fuzz/seeds/qmp $(FUZZ_FOR)
	$(FUZZ) vsock $(TARGET)/fuzz/vsock.corpus tests/fuzz/seeds/vsock $(FUZZ_FOR)

.PHONY: e2e
e2e: guest build ## whole-system tests: real containerd, real QEMU, real guest (TESTS=<part of a name> for some)
	$(AS_ROOT) env KATA_TEST_SHIM=$(SHIM) cargo test --locked --package tests $(SUITE) -- $(TESTS)

.PHONY: e2e-templates
e2e-templates: guest build ## the same with every sandbox a copy of a template
	@templates=$$($(AS_ROOT) mktemp -d /dev/shm/kata-templates-XXXXXX); trap '$(AS_ROOT) rm -rf "$$templates"' EXIT; \
		$(AS_ROOT) env KATA_TEST_SHIM=$(SHIM) KATA_TEST_TEMPLATES=$$templates \
		cargo test --locked --package tests -- $(TESTS)

.PHONY: test
test: setup check e2e e2e-templates ## set up, check, e2e both ways: everything, on a machine that has only the Rust toolchain

# The containerd of one generation.
BY = KATA_TEST_CONTAINERD=$(MATRIX)/containerd-$(1)/usr/bin/containerd KATA_TEST_CTR=$(MATRIX)/containerd-$(1)/usr/bin/ctr

.PHONY: matrix
matrix: export KATA_TEST_QEMU = $(MATRIX)/qemu/qemu-system-x86_64
matrix: export KATA_TEST_DOCKER = $(MATRIX)/docker
matrix: guest build ## e2e and whole machines again with newer containerds (1 and 2) and QEMU, Docker, and pods by their Sandbox API
	@tools/fetch-matrix
	cargo test --quiet --locked --package vmm
	$(call BY,1) $(MAKE) --no-print-directory e2e
	$(call BY,1) KATA_TEST_SANDBOX_API=1 $(MAKE) --no-print-directory e2e SUITE="--test pods"
	$(call BY,2) $(MAKE) --no-print-directory e2e SUITE="--test e2e" TESTS="$(or $(TESTS),lifecycle)"
	$(call BY,2) $(MAKE) --no-print-directory e2e SUITE="--test pods"
	$(call BY,2) KATA_TEST_SANDBOX_API=1 $(MAKE) --no-print-directory e2e SUITE="--test pods"

.PHONY: bench
bench: guest build ## measure starts, execs, streams and memory, or some PARTS; the report goes to target/bench
	$(AS_ROOT) env KATA_TEST_SHIM=$(SHIM) cargo run --quiet --release --locked --package tests --bin bench -- $(PARTS)

.PHONY: demo
demo: ## one pod in a virtual machine, everything set up (IMAGE=<OCI archive> CMD="program args" for your own)
	@SHIM=$(SHIM) tools/demo

.PHONY: install
install: SHARE := $(PREFIX)/share/kata-containers
install: guest build ## install shim, helpers, guest and default configuration (PREFIX=/usr/local, DESTDIR= for packaging)
	install -D --target-directory $(DESTDIR)$(PREFIX)/bin $(SHIM)
	install -D --target-directory $(DESTDIR)$(PREFIX)/libexec $(BIN)/virtiofsd
	install -D --mode 0644 --target-directory $(DESTDIR)$(SHARE) $$(source tools/lib.sh && guest_dir)/{vmlinuz,initrd.img}
	tools/configure kernel=$(SHARE)/vmlinuz initrd=$(SHARE)/initrd.img virtio_fs_daemon=$(PREFIX)/libexec/virtiofsd | \
		install -D --mode 0644 /dev/stdin $(DESTDIR)/usr/share/defaults/kata-containers/configuration.toml

.PHONY: clean
clean: ## remove what was built here; the cache stays
	cargo clean
