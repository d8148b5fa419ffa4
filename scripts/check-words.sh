#!/bin/bash
# Checks that comments, messages and documents use the words of docs/glossary.md and not their old names. Part of
# `make lint`. Only words that have no other use here are in the list; the glossary itself names them to forbid them.
set -euo pipefail
cd "$(dirname "$0")/.."

WORDS='gone on with|goes on with|go on with|going on with' # resume, continue
WORDS+='|given back|gives? back|giving back'               # free, reclaim, release
WORDS+='|put off'                              # deferred
WORDS+='|heirs?|mends?|mended|mending'                     # successor; repair
WORDS+='|(is|are|what is) in force'                        # current, takes effect

found=$(grep -rnwE "$WORDS" --include='*.rs' --include='*.md' --include='*.sh' --include='*.toml' --include='*.service' \
    --exclude-dir=target --exclude-dir=.git --exclude=glossary.md --exclude=check-words.sh . || true)
if [ -n "$found" ]; then
    printf '%s\n' "$found" >&2
    echo "check-words: docs/glossary.md has other words for these" >&2
    exit 1
fi
