#!/bin/bash
# Runs the tests that need neither root nor loop devices, mounts and guests: `make test-quick`. docs/testing.md has the
# list of all. One command for the whole workspace: with `-p`, cargo would build dependencies anew, with other features.
set -euo pipefail
cd "$(dirname "$0")/.."
CARGO=${CARGO:-cargo}

# Unit tests, and these files. Cargo knows them by their names alone: two crates may have one of the same name only if both
# are quick.
files=(
    changetrack:several_disks changetrack:process
    hostdev:trees
    imagefmt:memory
    nbd:clients nbd:descriptors nbd:documented nbd:extended nbd:hostile nbd:nbdsh nbd:no_panics nbd:sockets nbd:tls nbd:writing
    smc-image:conformance smc-image:export smc-image:pages smc-image:retention
    smc-image:serve smc-image:serve_long smc-image:serve_views smc-image:tls_init
    smcctl:commands smcctl:live smcctl:pages smcctl:terminal smcctl:trouble smcctl:views
    testkit:documented
)
# Unit tests that are left out (by parts of their names).
skipped=(
    # Needs the guests' kernel.
    the_cached_kernel_gets_busybox_init_and_drivers
    # Long sweeps of imagefmt, half of the time of all: `make test` has them. Shorter ones of the same code stay.
    no_power_cut_hurts_ no_failing_operation_hurts_ every_flipped_bit_of_every_layer_
)

mapfile -t names < <(printf '%s\n' "${files[@]##*:}" | sort -u)
"$CARGO" test --locked --workspace --no-fail-fast --lib --bin smcd --bin smcctl "${names[@]/#/--test=}" -- \
    "${skipped[@]/#/--skip=}" "$@"
