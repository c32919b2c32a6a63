#!/usr/bin/env bash
# Builds the documentation into build/site; a warning is an error. Arguments go to `mkdocs build`; with `serve` as the
# first one, it is shown at http://127.0.0.1:8000 and built anew when a page changes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh
ensure_environment docs
export NO_MKDOCS_2_WARNING=1 # mkdocs-material's, of releases that constraints.txt leaves out
if [ "${1:-}" = serve ]; then
    shift
    exec "$VENV/bin/mkdocs" serve --strict "$@"
fi
"$VENV/bin/mkdocs" build --strict --quiet "$@"
# The site must open from a disk without a network: nothing may be loaded from elsewhere (links may lead there).
if grep -rnoE '(<(script|img|iframe|source)[^>]* src|<link[^>]* href)="?(https?:)?//[^">]*' build/site --include='*.html'; then
    fail "the pages above load from the network"
fi
echo "docs: $(find build/site -name '*.html' | wc -l) pages in build/site/index.html"
