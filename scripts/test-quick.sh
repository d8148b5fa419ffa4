#!/bin/bash
# Runs the tests that need neither root nor loop devices, mounts and guests: `make test-quick`. docs/testing.md has the
# list of all.
set -euo pipefail
cd "$(dirname "$0")/.."
CARGO=${CARGO:-cargo}

# Of these crates everything is quick.
whole=(api boot cli daemon imagefmt nbd smcctl)
# Of the others the unit tests (testkit's own too), and these files.
units=(blockio changetrack hostdev machine testkit)
files=(
    changetrack:disks changetrack:process
    hostdev:trees
    testkit:documented
    smc-image:conformance smc-image:export smc-image:pages smc-image:retention
    smc-image:serve smc-image:serve_long smc-image:serve_views smc-image:tls_init
)

failed=()
quick() {
    "$CARGO" test --locked "$@" || failed+=("$*")
}

quick "${whole[@]/#/-p=}"
quick --lib "${units[@]/#/-p=}"
for file in "${files[@]}"; do
    quick -p "${file%%:*}" --test "${file##*:}"
done

[ ${#failed[@]} -eq 0 ] || { printf 'test-quick: failed: cargo test %s\n' "${failed[@]}" >&2; exit 1; }
