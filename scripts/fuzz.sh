#!/bin/bash
# Runs the fuzzers of the image format, the NBD server and the protocol of targets, each for some time: scripts/fuzz.sh [SECONDS [TARGET...]]
#
# They need a nightly toolchain, cargo-fuzz and a C++ compiler. What is missing is named with the command that
# installs it; nothing is installed here. The same functions run for a short, fixed time on stable in `make test`.
set -euo pipefail

CARGO=${CARGO:-cargo}
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
SECONDS_EACH=${1:-600}
shift || true
TARGETS=("$@")
if [ ${#TARGETS[@]} -eq 0 ]; then TARGETS=(manifest header node cluster store bytes sequence server frames message order); fi

# The crate's directory of a target.
place() {
    local dir
    for dir in "$ROOT"/{imagefmt,nbd,wire}/fuzz; do
        if [ -f "$dir/fuzz_targets/$1.rs" ]; then echo "$dir"; fi
    done
}

missing=no
lacks() {
    echo "fuzz: $1 is missing: '$2' installs it" >&2
    missing=yes
}

[[ $SECONDS_EACH =~ ^[1-9][0-9]*$ ]] || { echo "fuzz: '$SECONDS_EACH' is not a number of seconds" >&2; exit 2; }
for target in "${TARGETS[@]}"; do
    [ -n "$(place "$target")" ] || { echo "fuzz: there is no target '$target'" >&2; exit 2; }
done
"$CARGO" +nightly --version >/dev/null 2>&1 || lacks "a nightly toolchain" "rustup toolchain install nightly"
"$CARGO" fuzz --version >/dev/null 2>&1 || lacks cargo-fuzz "cargo install cargo-fuzz --locked"
command -v c++ >/dev/null || lacks "a C++ compiler" "apt-get install g++"
[ $missing = no ] || exit 1

# A node or header is no longer than this; a store's edits are short, or they only repeat themselves, and so do a
# client's requests.
longest() {
    case $1 in
        manifest) echo 8192 ;;
        header) echo 4200 ;;
        node) echo 13000 ;;
        cluster) echo 20000 ;;
        bytes) echo 3000 ;;
        sequence | server | order) echo 1000 ;;
        frames | message) echo 4000 ;;
        *) echo 400 ;;
    esac
}

# Leak detection is off: the threads of a verification may still be freeing their memory when it returns, which would
# count as a leak.
for target in "${TARGETS[@]}"; do
    dir=$(place "$target")
    "$CARGO" +nightly fuzz build --fuzz-dir "$dir" "$target"
    echo "fuzz: $target for $SECONDS_EACH s"
    # What is new goes beside the corpus that is in git; `cargo fuzz cmin` takes over what is worth it.
    new="$dir/artifacts/new-$target"
    mkdir -p "$new"
    "$CARGO" +nightly fuzz run --fuzz-dir "$dir" "$target" "$new" "$dir/corpus/$target" -- \
        -max_total_time="$SECONDS_EACH" -max_len="$(longest "$target")" -rss_limit_mb=2048 -timeout=25 \
        -detect_leaks=0 -print_final_stats=1
done
