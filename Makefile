# The commands a person needs; `make help` lists them.
#
# A new kind of check gets its own target here (its needs go into tests/setup, as one more mode) and one line in
# .ci/run. Nothing is built outside cargo's target directory, which CARGO_TARGET_DIR moves.

CARGO ?= cargo
PREFIX ?= /usr/local
TARGET_DIR := $(if $(CARGO_TARGET_DIR),$(CARGO_TARGET_DIR),target)
# Asked for only where a recipe uses it, since most need no compiler's answer.
HOST_TRIPLE = $(shell rustc -vV | sed -n 's/^host: //p')
BINDIR = $(DESTDIR)$(PREFIX)/bin
UNITDIR = $(DESTDIR)$(PREFIX)/lib/systemd/system
DOCDIR = $(DESTDIR)$(PREFIX)/share/doc/rouse
MANDIR = $(DESTDIR)$(PREFIX)/share/man/man1
BASHDIR = $(DESTDIR)$(PREFIX)/share/bash-completion/completions
ZSHDIR = $(DESTDIR)$(PREFIX)/share/zsh/site-functions
FISHDIR = $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d
PAGES = README.md ARCHITECTURE.md CHANGELOG.md CONTRIBUTING.md SECURITY.md LICENSE-APACHE LICENSE-MIT
SCRIPTS = .ci/run tests/biome tests/run tests/setup tests/venv tests/openstack/prepare tests/openstack/guest \
	images/disk images/ec2 images/install images/check contrib/libvirt/vmbuilder contrib/nagios/check_rouse_audit

.PHONY: help demo test quick steady sim chaos bench bench-libvirt lint fmt clippy deny scripts page build agent-static \
	install

help: ## what can be made here
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 16

demo: ## the whole thing on this machine: a private broker, one host that wakes, builds and goes
	tests/setup demo
	$(CARGO) build --locked -p rouse-agent -p rouse-master --no-default-features
	@# Replaces the shell, so that Ctrl-C reaches the demo itself and make waits for its end.
	@exec "$(TARGET_DIR)/debug/rouse" demo

# The programs first: the end-to-end tests start them, and cargo does not build them for another package's tests.
test: ## every test that needs nothing but this machine
	tests/setup test
	@# Beside the compiler, since it mostly waits.
	@tests/openstack/prepare >/dev/null & prepare=$$!; \
		echo "$(CARGO) build --locked --workspace --bins" && $(CARGO) build --locked --workspace --bins && wait $$prepare
	$(CARGO) test --locked --workspace --doc
	tests/run --workspace

# No broker, no root, no guests: what a change is tried with first.
quick: ## the tests that need no server, and 200 seeds of the simulation; below 90 s once compiled
	ROUSE_SIM_SEEDS=$${ROUSE_SIM_SEEDS:-200} tests/run --workspace --lib --bins \
		--test tree --test wire --test decoders --test sim

steady: ## each test with a real server 5 times beside busy processors, to find those that fail by themselves (ROUSE_STEADY_TESTS, _TIMES)
	tests/setup test
	tests/openstack/prepare >/dev/null
	$(CARGO) build --locked --workspace --bins
	tests/steady

sim: ## the simulation over many seeds, optimised (ROUSE_SIM_SEEDS, default 100000; ROUSE_SIM_FROM; ROUSE_SIM_SEED: one, with its transcript)
	ROUSE_SIM_SEEDS=$${ROUSE_SIM_SEEDS:-100000} \
		$(CARGO) test --locked --profile sim -p rouse-tests --no-default-features --test sim -- --nocapture

chaos: ## faults in the whole system, its broker and its cloud, for minutes (ROUSE_CHAOS_BUILDS, _SECONDS, _SEED)
	tests/setup test
	$(CARGO) build --locked --workspace --bins
	ROUSE_CHAOS_BUILDS=$${ROUSE_CHAOS_BUILDS:-2000} ROUSE_CHAOS_SECONDS=$${ROUSE_CHAOS_SECONDS:-300} \
		$(CARGO) test --locked -p rouse-tests --test chaos -- --nocapture

# With the programs as they are installed. Parts to measure, instead of all but the last: `make bench PARTS="latency many"`.
bench: build ## how fast and how small it is, beside the broker and the machine in the same run; under four minutes
	tests/setup demo
	$(CARGO) build --locked --release -p rouse-tests --bins
	@"$(TARGET_DIR)/release/bench" "$(TARGET_DIR)/release/rouse" "$(TARGET_DIR)/$(HOST_TRIPLE)/agent/rouse-agent" \
		"$(TARGET_DIR)/release/load-agent" $(PARTS)

# With real libvirtd and QEMU in namespaces of their own, everything emulated, and the agent as images have it; as root.
bench-libvirt: agent-static ## what a build in a libvirt guest costs beside bare QEMU, and whether ten in a row leave anything behind
	tests/setup test
	$(CARGO) build --locked --release -p rouse-master -p rouse-tests --bins
	@"$(TARGET_DIR)/release/bench-libvirt" "$(TARGET_DIR)/$(HOST_TRIPLE)/agent/rouse-agent"

.PHONY: features docs unused
lint: fmt clippy features docs unused deny scripts page ## everything that can be said without running it

fmt:
	$(CARGO) fmt --all --check

clippy:
	$(CARGO) clippy --locked --workspace --all-targets --all-features -- -D warnings

# All but the combination of all, which `clippy` checks. Of the whole workspace, as there: with another choice of packages
# the features of dependencies would be others, and they would be compiled once more.
features: ## each combination of providers compiles without a warning
	@for set in "" ec2 libvirt openstack ec2,libvirt ec2,openstack libvirt,openstack; do \
		echo "$(CARGO) clippy --no-default-features --features '$$set'" && \
		$(CARGO) clippy --quiet --locked --workspace --no-default-features --features "$$set" -- -D warnings || exit 1; \
	done

docs: ## the documentation of the code, of private items too; a warning is an error
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --all-features --no-deps --document-private-items

unused:
	@if ! command -v cargo-machete >/dev/null; then \
		echo "not checked: unused dependencies (cargo install --locked cargo-machete)"; test -z "$$CI"; \
	else \
		echo "cargo-machete" && cargo-machete --skip-target-dir . ; \
	fi

# If cargo-deny is not installed, a message says so, and CI fails. Known vulnerabilities are looked up in a database
# that has to be fetched; without the network that part is left out, aloud, because no change of ours can bring it back.
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

# The page's JavaScript and CSS.
page:
	@if ! biome=$$(tests/biome); then \
		echo "not checked: the page (tests/setup lint installs what checks it)"; test -z "$$CI"; \
	else \
		cd master/src/web && echo "biome lint page.js page.css" && "$$biome" lint --error-on-warnings page.js page.css; \
	fi

build: agent-static ## what `make install` copies: the master, and the agent as one static file
	tests/setup build
	$(CARGO) build --locked --release -p rouse-master
	rm -rf $(TARGET_DIR)/release/share
	$(TARGET_DIR)/release/rouse man $(TARGET_DIR)/release/share/man
	mkdir $(TARGET_DIR)/release/share/completions
	for shell in bash zsh fish; do \
		$(TARGET_DIR)/release/rouse completions $$shell >$(TARGET_DIR)/release/share/completions/$$shell || exit 1; \
	done

# A target named outright keeps the flags away from build scripts and macros, which cannot be linked statically.
agent-static: ## the agent for machine images: small, and it needs no library of the image
	RUSTFLAGS="-C target-feature=+crt-static" \
		$(CARGO) build --locked --profile agent -p rouse-agent --target $(HOST_TRIPLE)

# Copies and never compiles, so that root needs no Rust: `make build && sudo make install`.
install: ## into PREFIX (default /usr/local), below DESTDIR where that is set
	install -d $(BINDIR) $(UNITDIR) $(DOCDIR) $(MANDIR) $(BASHDIR) $(ZSHDIR) $(FISHDIR)
	install -m 755 $(TARGET_DIR)/release/rouse $(BINDIR)/rouse
	install -m 755 $(TARGET_DIR)/*/agent/rouse-agent $(BINDIR)/rouse-agent
	for unit in rouse rouse-agent; do \
		sed 's,/usr/local/,$(PREFIX)/,' contrib/systemd/$$unit.service >$(UNITDIR)/$$unit.service && \
		chmod 644 $(UNITDIR)/$$unit.service || exit 1; \
	done
	@# In the places that they have here, since the pages link to each other and to the examples.
	for file in $(PAGES) $$(find docs contrib images -type f); do \
		if test -x $$file; then mode=755; else mode=644; fi && \
		install -D -m $$mode $$file $(DOCDIR)/$$file || exit 1; \
	done
	install -m 644 contrib/man/rouse-agent.1 $(TARGET_DIR)/release/share/man/*.1 $(MANDIR)
	install -m 644 $(TARGET_DIR)/release/share/completions/bash $(BASHDIR)/rouse
	install -m 644 $(TARGET_DIR)/release/share/completions/zsh $(ZSHDIR)/_rouse
	install -m 644 $(TARGET_DIR)/release/share/completions/fish $(FISHDIR)/rouse.fish
