#!/bin/bash
# Runs the suite and prints how long each of its programs took, the longest first: `make test-times`. With a file, it reads
# what a run of `cargo test` wrote instead: `cargo test ... 2>&1 | tee FILE`.
set -euo pipefail
cd "$(dirname "$0")/.."

table() {
    # "Running unittests src/lib.rs (target/debug/deps/nbd-1a2b)", "   Doc-tests nbd", "test result: ok. ... finished in 1.91s"
    awk '
        / Running / { name = $0; sub(/.*deps\//, "", name); sub(/-[0-9a-f]+\)$/, "", name)
                      source = $0 ~ / unittests / ? "unit tests" : $(NF - 1) }
        / Doc-tests / { name = $NF; source = "doc tests" }
        / finished in / { seconds = $NF; sub(/s$/, "", seconds); printf "%9.2f s %5d tests  %s (%s)\n", seconds, $4, name, source; sum += seconds }
        END { printf "%9.2f s  in all\n", sum }
    ' | sort -rn
}

if [ $# -gt 0 ]; then
    table <"$1"
else
    bash scripts/test.sh 2>&1 | tee /dev/stderr | table
fi
