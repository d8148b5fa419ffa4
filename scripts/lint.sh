#!/bin/bash
# Checks formatting and runs clippy with every warning an error. A toolchain without rustfmt or clippy is
# reported; under CI it is a failure.
set -euo pipefail

CARGO=${CARGO:-cargo}

has() { "$CARGO" "$1" --version >/dev/null 2>&1; }

for component in fmt:rustfmt clippy:clippy; do
    if ! has "${component%:*}"; then
        echo "lint: this Rust toolchain has no ${component#*:}: 'rustup component add ${component#*:}' installs it" >&2
        if [ "${CI:-}" = true ]; then exit 1; fi
        echo "lint: skipped ${component#*:}" >&2
        continue
    fi
    case ${component%:*} in
        fmt) "$CARGO" fmt --all --check ;;
        clippy) "$CARGO" clippy --locked --workspace --all-targets -- -D warnings ;;
    esac
done
