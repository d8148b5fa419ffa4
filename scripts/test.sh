#!/bin/bash
# Runs the suite: `make test`. Many tests wait for disks and guests most of the time, so two test programs run at a time; cargo would
# run one after the other. What a program wrote is printed when it has ended, in the form that cargo gives it. All of them
# run, also when one has failed, and the last lines name those that failed.
#
# PROGRAMS changes how many run at a time, ONLY is a pattern (of grep -E) of those that run: `ONLY='targets|tracked'`.
set -euo pipefail
cd "$(dirname "$0")/.."
CARGO=${CARGO:-cargo}
PROGRAMS=${PROGRAMS:-2}

# A program by its file, the directory of its crate, and its source: it runs there, as under cargo.
run_one() {
    local file=$1 crate=$2 source=$3 status=0 output
    output=$(mktemp -p "$SMC_TEST_WORK")
    (cd "$crate" && exec "$file") >"$output" 2>&1 </dev/null || status=$?
    local title="$source"
    case $source in */src/*) title="unittests $source" ;; esac
    [ "$status" -eq 0 ] || printf '%s (exit code %s)\n' "$title" "$status" >>"$SMC_TEST_WORK/failed"
    (
        flock 9
        printf '\n     Running %s (%s)\n' "$title" "$file"
        cat "$output"
    ) 9>"$SMC_TEST_WORK/lock"
    rm -f "$output"
}

if [ "${1:-}" = --one ]; then
    shift
    run_one "$@"
    exit
fi

# The tests in tests/ run the programs of their own profile, which cargo does not build for them.
"$CARGO" build --locked --workspace --all-targets
SMC_TEST_WORK=$(mktemp -d)
export SMC_TEST_WORK
trap 'rm -rf "$SMC_TEST_WORK"' EXIT
touch "$SMC_TEST_WORK/failed"

"$CARGO" test --no-run --locked --workspace --message-format=json-render-diagnostics >"$SMC_TEST_WORK/artifacts"
# One line a program: its file, its crate's directory, its source below the workspace.
sed -n 's/.*"manifest_path":"\(.*\)\/Cargo\.toml","target":.*"src_path":"\([^"]*\)".*"profile":{[^}]*"test":true}.*"executable":"\([^"]*\)".*/\3\t\1\t\2/p' \
    "$SMC_TEST_WORK/artifacts" | sed "s|\t$PWD/\([^\t]*\)\$|\t\1|" | grep -E "${ONLY:-.}" >"$SMC_TEST_WORK/programs"
[ -s "$SMC_TEST_WORK/programs" ] || { echo "test: no test program" >&2; exit 1; }

# Those that wait beside those that compute; each field on a line of its own.
paste -d '\n' <(grep $'\ttests/tests/' "$SMC_TEST_WORK/programs") <(grep -v $'\ttests/tests/' "$SMC_TEST_WORK/programs") |
    sed '/^$/d' | tr '\t' '\n' >"$SMC_TEST_WORK/order"

# In a process group of its own, so that an interrupt ends all that it has started.
set -m
xargs -d '\n' -n 3 -P "$PROGRAMS" bash scripts/test.sh --one <"$SMC_TEST_WORK/order" &
set +m
running=$!
trap 'kill -TERM -- "-$running" 2>/dev/null; exit 130' INT TERM HUP
wait "$running" || echo "xargs (exit code $?)" >>"$SMC_TEST_WORK/failed"
[ -n "${ONLY:-}" ] || "$CARGO" test --locked --workspace --doc || echo "doc tests" >>"$SMC_TEST_WORK/failed"

if [ -s "$SMC_TEST_WORK/failed" ]; then
    echo "test: failed:" >&2
    sed 's/^/  /' "$SMC_TEST_WORK/failed" >&2
    exit 1
fi
echo "test: all passed"
