# The commands for people who build rouse; `make help` lists them.
#
# A new kind of check gets its own target here and one line in .ci/run. What it needs is installed by tests/setup, in a
# new mode. Nothing is built outside cargo's target directory, which CARGO_TARGET_DIR selects.

CARGO ?= cargo
PREFIX ?= /usr/local
TARGET_DIR := $(if $(CARGO_TARGET_DIR),$(CARGO_TARGET_DIR),target)
# What `make install` copies.
PROGRAMS ?= $(TARGET_DIR)/release
AGENT ?= $(wildcard $(TARGET_DIR)/*/agent/rouse-agent)
PACKAGES ?= $(TARGET_DIR)/packages
# Runs the compiler only if a recipe uses this variable, because most recipes do not.
HOST_TRIPLE = $(shell rustc -vV | sed -n 's/^host: //p')
BINDIR = $(DESTDIR)$(PREFIX)/bin
UNITDIR = $(DESTDIR)$(PREFIX)/lib/systemd/system
DOCDIR = $(DESTDIR)$(PREFIX)/share/doc/rouse
MANDIR = $(DESTDIR)$(PREFIX)/share/man/man1
BASHDIR = $(DESTDIR)$(PREFIX)/share/bash-completion/completions
ZSHDIR = $(DESTDIR)$(PREFIX)/share/zsh/site-functions
FISHDIR = $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d
PAGES = README.md ARCHITECTURE.md CHANGELOG.md CONTRIBUTING.md SECURITY.md LICENSE-APACHE LICENSE-MIT
SCRIPTS = .ci/run tests/axe tests/biome tests/run tests/packages/inside tests/packages/root tests/setup tests/tool tests/venv tests/openstack/prepare tests/openstack/guest \
	images/disk images/ec2 images/install images/check images/manifest contrib/libvirt/vmbuilder contrib/nagios/check_rouse_audit \
	contrib/packages/build $(wildcard contrib/packages/*/p*inst) $(wildcard contrib/packages/*/p*rm)

.PHONY: help demo test quick steady sim chaos bench bench-scale bench-libvirt lint fmt clippy deny scripts page build agent-static \
	install packages

help: ## lists all targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 16

demo: ## a complete system on this machine: starts a private broker and a host, runs a real build, terminates the host
	tests/setup demo
	$(CARGO) build --locked -p rouse-agent -p rouse-master --no-default-features
	@# With exec, Ctrl-C reaches the demo itself, and make waits until it has ended.
	@exec "$(TARGET_DIR)/debug/rouse" demo

# Builds the programs first: the end-to-end tests start them, and cargo does not build them for the tests of another
# package.
test: ## all tests
	tests/setup test
	@# At the same time as the compiler, because it mostly waits.
	@tests/openstack/prepare >/dev/null & prepare=$$!; \
		echo "$(CARGO) build --locked --workspace --bins" && $(CARGO) build --locked --workspace --bins && wait $$prepare
	$(CARGO) test --locked --workspace --doc
	tests/run --workspace

# The tests to run first after a change. They need no broker, no root and no guests.
quick: ## the tests that need no server, and 200 seeds of the simulation; less than 90 s once compiled
	ROUSE_SIM_SEEDS=$${ROUSE_SIM_SEEDS:-200} tests/run --workspace --lib --bins \
		--test tree --test wire --test decoders --test sim

steady: ## each test with a real server 5 times on a busy machine, to find tests that fail at random (ROUSE_STEADY_TESTS, _TIMES)
	tests/setup test
	tests/openstack/prepare >/dev/null
	$(CARGO) build --locked --workspace --bins
	tests/steady

sim: ## the simulation with many seeds (ROUSE_SIM_SEEDS, default 100000; ROUSE_SIM_FROM; ROUSE_SIM_SEED: one seed, with its transcript)
	ROUSE_SIM_SEEDS=$${ROUSE_SIM_SEEDS:-100000} \
		$(CARGO) test --locked --profile sim -p rouse-tests --no-default-features --test sim -- --nocapture

chaos: ## several minutes of faults in the whole system, its broker and its cloud, and of takeovers (ROUSE_CHAOS_BUILDS, _SECONDS, _SEED, _TAKEOVERS)
	tests/setup test
	$(CARGO) build --locked --workspace --bins
	ROUSE_CHAOS_BUILDS=$${ROUSE_CHAOS_BUILDS:-2000} ROUSE_CHAOS_SECONDS=$${ROUSE_CHAOS_SECONDS:-300} \
		$(CARGO) test --locked -p rouse-tests --test chaos -- --nocapture
	$(CARGO) test --locked -p rouse-tests --test e2e -- --ignored --nocapture again_and_again

# Measures the programs as they are installed. PARTS="latency logs" selects parts; the default is all but the long ones.
bench: build ## measures speed and size, and the broker and the machine in the same run; less than four minutes (PARTS)
	tests/setup demo
	$(CARGO) build --locked --release -p rouse-tests --bins
	@"$(TARGET_DIR)/release/bench" "$(TARGET_DIR)/release/rouse" "$(TARGET_DIR)/$(HOST_TRIPLE)/agent/rouse-agent" \
		"$(TARGET_DIR)/release/load-agent" $(PARTS)

bench-scale: ## measures up to 10,000 workers and 1,000,000 builds, and draws docs/scale.svg (PARTS)
	$(MAKE) bench PARTS="$(or $(PARTS),scale curves)"

# Runs libvirtd and QEMU in separate namespaces, with emulated guests and the agent that images contain. Needs root.
bench-libvirt: agent-static ## compares a build in a libvirt guest with QEMU alone, and checks that ten builds leave nothing behind
	tests/setup test
	$(CARGO) build --locked --release -p rouse-master -p rouse-tests --bins
	@"$(TARGET_DIR)/release/bench-libvirt" "$(TARGET_DIR)/$(HOST_TRIPLE)/agent/rouse-agent"

.PHONY: features docs unused
lint: fmt clippy features docs unused deny scripts page ## all checks that do not run the programs

fmt:
	$(CARGO) fmt --all --check

clippy:
	$(CARGO) clippy --locked --workspace --all-targets --all-features -- -D warnings

# S3 alone, and all combinations of providers except that of all, which `clippy` checks. Uses the whole workspace, as
# `clippy` does: with another selection of packages, dependencies would have other features and would be compiled again.
features: ## checks that each combination of providers compiles without a warning
	@for set in "" s3 postgres ec2 libvirt openstack ec2,libvirt ec2,openstack libvirt,openstack; do \
		echo "$(CARGO) clippy --no-default-features --features '$$set'" && \
		$(CARGO) clippy --quiet --locked --workspace --no-default-features --features "$$set" -- -D warnings || exit 1; \
	done

docs: ## builds the documentation of the code, including private items; a warning is an error
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --all-features --no-deps --document-private-items

unused:
	@if ! command -v cargo-machete >/dev/null; then \
		echo "not checked: unused dependencies (cargo install --locked cargo-machete)"; test -z "$$CI"; \
	else \
		echo "cargo-machete" && cargo-machete --skip-target-dir . ; \
	fi

# If cargo-deny is not installed, this prints a message, and CI fails. The check for known vulnerabilities needs a
# database that has to be fetched. If it cannot be fetched, this prints a message and skips that check, because the
# change under test is not to blame.
deny:
	@if ! command -v cargo-deny >/dev/null; then \
		echo "not checked: licences and duplicates (cargo install --locked cargo-deny)"; test -z "$$CI"; \
	else \
		echo "$(CARGO) deny check bans licenses sources" && \
		$(CARGO) deny --locked check --hide-inclusion-graph bans licenses sources && \
		if timeout 120 $(CARGO) deny --locked fetch db >/dev/null 2>&1; then \
			echo "$(CARGO) deny check advisories" && \
			$(CARGO) deny --locked check --hide-inclusion-graph --disable-fetch advisories; \
		else \
			echo "not checked: advisories (their database cannot be fetched from here)"; \
		fi; \
	fi

scripts:
	@if ! command -v shellcheck >/dev/null; then \
		echo "not checked: shell scripts (tests/setup lint installs shellcheck)"; test -z "$$CI"; \
	else \
		echo "shellcheck $(SCRIPTS)" && shellcheck $(SCRIPTS); \
	fi

# The JavaScript and CSS of the status page.
page:
	@if ! biome=$$(tests/biome); then \
		echo "not checked: the page (tests/setup lint installs what checks it)"; test -z "$$CI"; \
	else \
		cd master/src/web && echo "biome lint page.js page.css" && "$$biome" lint --error-on-warnings page.js page.css; \
	fi

build: agent-static ## builds what `make install` copies: the master, and the agent as one static file
	tests/setup build
	$(CARGO) build --locked --release -p rouse-master
	$(MAKE) --no-print-directory share

.PHONY: share
# The man pages and completions, which the program itself writes.
share:
	rm -rf $(PROGRAMS)/share
	$(PROGRAMS)/rouse man $(PROGRAMS)/share/man
	mkdir $(PROGRAMS)/share/completions
	for shell in bash zsh fish; do \
		$(PROGRAMS)/rouse completions $$shell >$(PROGRAMS)/share/completions/$$shell || exit 1; \
	done

.PHONY: package-tools
package-tools:
	tests/tool cargo-deb 3.8.0
	tests/tool cargo-generate-rpm 0.21.1

packages: build package-tools ## .deb of master, command and agent; .rpm and tarball of the agent, in target/packages (PACKAGES)
	contrib/packages/build --programs $(PROGRAMS) --agent $(AGENT) --out $(PACKAGES)

# With an explicit --target, the flags do not apply to build scripts and macros, which cannot be linked statically.
agent-static: ## builds the agent for machine images: one small static file
	RUSTFLAGS="-C target-feature=+crt-static" \
		$(CARGO) build --locked --profile agent -p rouse-agent --target $(HOST_TRIPLE)

# Only copies files and compiles nothing, so that root needs no Rust: `make build && sudo make install`.
install: ## installs into PREFIX (default /usr/local), below DESTDIR if it is set
	install -d $(BINDIR) $(UNITDIR) $(DOCDIR) $(MANDIR) $(BASHDIR) $(ZSHDIR) $(FISHDIR)
	install -m 755 $(PROGRAMS)/rouse $(BINDIR)/rouse
	install -m 755 $(AGENT) $(BINDIR)/rouse-agent
	for unit in contrib/systemd/*; do \
		sed 's,/usr/local/,$(PREFIX)/,' $$unit >$(UNITDIR)/$${unit##*/} && \
		chmod 644 $(UNITDIR)/$${unit##*/} || exit 1; \
	done
	@# Keeps the paths of this repository, because the pages link to each other and to the examples.
	for file in $(PAGES) $$(find docs contrib images -path contrib/packages -prune -o -type f -print); do \
		if test -x $$file; then mode=755; else mode=644; fi && \
		install -D -m $$mode $$file $(DOCDIR)/$$file || exit 1; \
	done
	install -m 644 contrib/man/rouse-agent.1 $(PROGRAMS)/share/man/*.1 $(MANDIR)
	install -m 644 $(PROGRAMS)/share/completions/bash $(BASHDIR)/rouse
	install -m 644 $(PROGRAMS)/share/completions/zsh $(ZSHDIR)/_rouse
	install -m 644 $(PROGRAMS)/share/completions/fish $(FISHDIR)/rouse.fish
