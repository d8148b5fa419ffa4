# Two commands work on a fresh Debian or Ubuntu machine, as root, with Rust and git: make demo, make test.

SHELL := /bin/bash
# rustup's cargo is not in the PATH of a root shell that never read its profile.
export PATH := $(PATH):$(or $(CARGO_HOME),$(HOME)/.cargo)/bin

CARGO ?= cargo
export CARGO_TERM_COLOR ?= auto

.DEFAULT_GOAL := help
.PHONY: help setup build deb dist demo test test-quick test-dist test-storage vm-test test-tracked test-instant test-target test-guests-freeze test-loaded test-times lint bench sweep crash fuzz clean
.NOTPARALLEL:

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install the needed packages with apt-get, and unpack the kernel for the guests
	@bash scripts/setup.sh
	@command -v $(CARGO) >/dev/null || { echo "make: cargo not found in PATH or ~/.cargo/bin: install Rust first" >&2; exit 1; }

build: setup ## build the programs (target/release)
	$(CARGO) build --release --locked --workspace --bins

deb: build ## make the Debian packages, for sources and for targets (target/debian)
	@bash scripts/deb.sh
	@bash scripts/deb.sh --package smc-store

dist: ## make the archive for servers with glibc 2.28 or newer (target/dist; it brings its own compiler)
	@bash scripts/setup.sh dist
	@bash scripts/dist.sh

demo: build ## image a server twice, the second time while it is written to, and boot both images
	@"$${CARGO_TARGET_DIR:-target}/release/demo"

test: setup lint ## everything: lints, then all tests, on real loop devices and in real guests
	@bash scripts/test.sh

test-quick: ## run the tests that need neither root nor guests (docs/testing.md: the map of the suite)
	@bash scripts/test-quick.sh

test-loaded: setup ## the suite five times beside four busy loops, until something fails (hours; ROUNDS=N, LOOPS=N)
	@bash scripts/test-loaded.sh

test-dist: ## the archive on old and new servers, with what their kernels lack (docs/kernels.md)
	@bash scripts/setup.sh dist older
	archive=$$(bash scripts/dist.sh) && SMC_ARCHIVE=$$archive \
		$(CARGO) test --locked --workspace --test servers -- --ignored --nocapture

test-storage: setup ## writes while syncing, on all kinds of disks and layers, in guests (half an hour; ROUNDS=N)
	$(CARGO) build --locked --workspace --all-targets
	SMC_ROUNDS=$${ROUNDS:-3} $(CARGO) test --locked --workspace --test storage -- --ignored --nocapture

vm-test: ## guests that take minutes: LVM, RAID and LUKS in images, all buses, chains, whole servers; with times
	@bash scripts/setup.sh servers
	@bash scripts/vm-test.sh

test-tracked: setup ## changes, tracked syncs, kills and fio: no write is lost (an hour; ROUNDS=N)
	$(CARGO) build --locked --workspace --bins
	"$${CARGO_TARGET_DIR:-target}/debug/crash" --only-tracked --tracked $${ROUNDS:-2000}

test-instant: setup ## images of running servers show one instant, under kills too (an hour and a half; ROUNDS=N images a filesystem)
	$(CARGO) build --locked --workspace --bins
	"$${CARGO_TARGET_DIR:-target}/debug/crash" --only-instants --instants $${ROUNDS:-200} --frozen-kills $${KILLS:-100}

test-target: setup ## syncs to a target: 1,000 cut lines, cuts after every byte, kills of both sides (two hours; ROUNDS=N sessions, KILLS=N)
	$(CARGO) build --locked --workspace --bins
	"$${CARGO_TARGET_DIR:-target}/debug/crash" --only-target --target-cuts $${ROUNDS:-1000} --target-kills $${KILLS:-100} --every-byte $${EVERY:-1}

test-guests-freeze: setup ## freezing in guests: vfat, namespaces, loop, swap, kills, root on LVM, a database (half an hour; SMC_SCENES)
	$(CARGO) build --locked --workspace --bins
	$(CARGO) test --locked --workspace --test frozen_guests -- --ignored --nocapture --test-threads 1

test-times: setup ## the suite, and how long each part of it took
	@bash scripts/test-times.sh

lint: ## formatting and clippy, where any warning is an error
	@bash scripts/lint.sh

bench: build ## measure against fio on the same device, and against rsync and others over a network
	@bash scripts/setup.sh bench
	$(CARGO) run --release --locked -p smc-tests --bin bench

sweep: ## cut the power of a simulated disk at every operation of many random histories (may take an hour)
	$(CARGO) test -p imagefmt --locked --lib sweep:: -- --ignored --skip reproduce --nocapture --test-threads 1

crash: build ## power cuts, kill -9, and whole lifecycles of jobs under kills, on ext4, xfs and btrfs (half an hour)
	@"$${CARGO_TARGET_DIR:-target}/release/crash"

fuzz: ## fuzz the image format, the NBD server and the protocol of targets, ten minutes a target (nightly, cargo-fuzz; the suite has a short version)
	@bash scripts/fuzz.sh

clean: ## remove what was built
	$(CARGO) clean
