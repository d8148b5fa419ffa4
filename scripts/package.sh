# What scripts/deb.sh and scripts/dist.sh share: the files that every package of smc has. They read it with `.`, with these
# variables: SOURCE (the checkout), BIN_DIR (the compiled programs), VERSION, WORK (a temporary directory), ROOT (where the
# package's files are collected), PREFIX (what is before bin, sbin and share) and ZSH_FUNCTIONS. They define `die`.
# shellcheck shell=bash

PROGRAMS=(smcd smcctl smc-image)

workspace_version() {
    sed -n '/^\[workspace\.package\]/,/^\[/ s/^version *= *"\(.*\)"/\1/p' "$SOURCE/Cargo.toml"
}

# The time of all files and of the changelog. Without a git checkout, the newest time of the package's own files.
source_time() {
    git -C "$SOURCE" log -1 --format=%ct 2>/dev/null ||
        find "$SOURCE/packaging" -type f -printf '%Ts\n' | sort -n | tail -n 1
}

check_programs() {
    local program
    for program in "${PROGRAMS[@]}"; do
        [ -x "$BIN_DIR/$program" ] || die "no $program in $BIN_DIR: build it first (make build)"
    done
}

# put MODE FILE TARGET: TARGET is a path in the package.
put() { install -D -m "$1" "$2" "$ROOT$3"; }

put_programs() {
    local program target
    for program in "${PROGRAMS[@]}"; do
        target=$PREFIX/bin/$program
        if [ "$program" = smcd ]; then target=$PREFIX/sbin/$program; fi
        put 755 "$BIN_DIR/$program" "$target"
        # Function names are kept for the backtrace of a panic.
        strip --strip-debug "$ROOT$target"
    done
}

# The programs generate their own man pages and completions, so these always match the programs.
put_manuals() {
    local program page pages=$WORK/man
    for program in "${PROGRAMS[@]}"; do
        mkdir -p "$pages/$program"
        "$BIN_DIR/$program" man "$pages/$program" >/dev/null
        for page in "$pages/$program"/*.[1-8]; do
            [ -s "$page" ] || die "$program man wrote no page"
            gzip -9n "$page"
            put 644 "$page.gz" "$PREFIX/share/man/man${page##*.}/${page##*/}.gz"
        done
    done
}

put_completions() {
    local program shell target
    for program in "${PROGRAMS[@]}"; do
        for shell in bash zsh fish; do
            case $shell in
                bash) target=$PREFIX/share/bash-completion/completions/$program ;;
                zsh) target=$ZSH_FUNCTIONS/_$program ;;
                fish) target=$PREFIX/share/fish/vendor_completions.d/$program.fish ;;
            esac
            "$BIN_DIR/$program" completions "$shell" >"$WORK/completions"
            [ -s "$WORK/completions" ] || die "$program completions $shell printed nothing"
            put 644 "$WORK/completions" "$target"
        done
    done
}

put_guides() {
    local document
    for document in "$SOURCE/README.md" "$SOURCE"/docs/*.md; do
        put 644 "$document" "$PREFIX/share/doc/smc/${document##*/}"
    done
    # Not executable: an example does nothing before somebody installs it.
    for document in "$SOURCE"/packaging/hooks.d/examples/*; do
        put 644 "$document" "$PREFIX/share/doc/smc/examples/hooks.d/${document##*/}"
    done
}
