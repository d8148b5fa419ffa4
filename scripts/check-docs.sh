#!/bin/bash
# Checks that documents name only what exists: every path of this repository in backticks, every link to a file, and every
# module in ARCHITECTURE.md's code map. Part of `make lint`.
set -euo pipefail
shopt -s globstar nullglob
cd "$(dirname "$0")/.."

failed=0
wrong() {
    printf 'check-docs: %s: %s\n' "$1" "$2" >&2
    failed=1
}

documents=(*.md docs/*.md packaging/**/README)

# `imagefmt/src/lib.rs`, also with a wildcard, a `:line` or a `::function` behind it. A path counts as one of the
# repository if its first part is one of its directories.
paths_of() {
    grep -oE '`[A-Za-z0-9_.-]+/[A-Za-z0-9_./*-]*(:[0-9]+|::[A-Za-z0-9_:]+)?`' "$1" | tr -d '`' | sed 's/:.*//' | sort -u
}

links_of() {
    grep -oE '\]\([^)#: ]+' "$1" | cut -c3- | sort -u
}

for document in "${documents[@]}"; do
    while read -r path; do
        top=${path%%/*}
        if [ ! -d "$top" ] || [ "$top" = target ]; then continue; fi
        [ -n "$(compgen -G "$path")" ] || wrong "$document" "there is no $path"
    done < <(paths_of "$document" || true)
    while read -r link; do
        [ -e "$(dirname "$document")/$link" ] || wrong "$document" "the link to $link leads nowhere"
    done < <(links_of "$document" || true)
done

# A line of the code map that starts with **`crate/`** begins a crate; every name in backticks after it is a module, a
# directory or a file of that crate.
crate=
while read -r line; do
    if [[ $line =~ ^-\ \*\*\`([a-z-]+)/\` ]]; then crate=${BASH_REMATCH[1]}; fi
    [ -n "$crate" ] || continue
    while read -r name; do
        case $name in *[!a-z0-9_/]* | "$crate/") continue ;; esac
        name=${name%/}
        found=("$crate"/**/"$name" "$crate"/**/"$name.rs" "$name")
        for candidate in "${found[@]}"; do [ -e "$candidate" ] && continue 2; done
        wrong ARCHITECTURE.md "the code map names $name, which $crate/ does not have"
    done < <(grep -oE '`[^`]+`' <<<"$line" | tr -d '`')
done < <(sed -n '/^## Code map/,/^## /p' ARCHITECTURE.md)

exit "$failed"
