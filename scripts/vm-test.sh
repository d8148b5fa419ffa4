#!/bin/bash
# Runs the tests in guests that take minutes, one after the other, and says how long each took. The short ones are part of
# `make test`.
#
# usage: vm-test.sh [NAME...]   only the test programs with these names
set -euo pipefail

CARGO=${CARGO:-cargo}
PROGRAMS=("$@")
[ "$#" -gt 0 ] || PROGRAMS=(helper_guest boot_check real_servers)

"$CARGO" build --locked --workspace --bins
failed=0
for program in "${PROGRAMS[@]}"; do
    # The names of the long tests: those that a run without arguments leaves out.
    listed=$("$CARGO" test --locked --workspace --test "$program" -- --ignored --list 2>/dev/null)
    mapfile -t tests < <(sed -n 's/: test$//p' <<<"$listed")
    for test in "${tests[@]}"; do
        start=$SECONDS
        if "$CARGO" test -q --locked --workspace --test "$program" -- --ignored --exact "$test"; then
            result=passed
        else
            result=FAILED failed=1
        fi
        printf 'vm-test: %-8s %4d s  %s: %s\n' "$result" $((SECONDS - start)) "$program" "$test"
    done
done
exit "$failed"
