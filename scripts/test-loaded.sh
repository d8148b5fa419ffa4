#!/bin/bash
# Runs the suite several times beside loops that keep the processors busy, until something fails: `make test-loaded`. It finds
# tests that hope where they should wait. ROUNDS and LOOPS change how many.
set -euo pipefail
cd "$(dirname "$0")/.."
CARGO=${CARGO:-cargo}
ROUNDS=${ROUNDS:-5}
LOOPS=${LOOPS:-4}

# The loops must not make the build slower.
"$CARGO" build --locked --workspace --all-targets
"$CARGO" test --locked --workspace --no-run

loops=()
end_loops() {
    [ ${#loops[@]} -eq 0 ] || kill "${loops[@]}" 2>/dev/null || true
}
trap end_loops EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

for ((loop = 0; loop < LOOPS; loop++)); do
    # It looks now and then whether this script is still there, which may have been killed.
    (trap - EXIT INT TERM HUP; while kill -0 $$ 2>/dev/null; do for ((i = 0; i < 1000000; i++)); do :; done; done) &
    loops+=($!)
done

for ((round = 1; round <= ROUNDS; round++)); do
    echo "test-loaded: round $round of $ROUNDS, beside $LOOPS busy loops"
    bash scripts/test.sh || {
        echo "test-loaded: failed in round $round of $ROUNDS" >&2
        exit 1
    }
done
echo "test-loaded: $ROUNDS rounds passed"
