#!/bin/bash
# Checks documents and formatting, and runs clippy; every warning is an error. If the toolchain has no rustfmt or clippy,
# this is reported and skipped; under CI it is a failure.
set -euo pipefail

CARGO=${CARGO:-cargo}

bash "$(dirname "$0")/check-docs.sh"
bash "$(dirname "$0")/check-words.sh"

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
