#!/usr/bin/env bash
# Build the documentation into docs/_build and check the links of all Markdown files: bash scripts/build_docs.sh [EXTRA]
# EXTRA is what to install, by default "docs". Nothing is fetched from the web. Whatever Sphinx warns of is an error.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup_env.sh "${1:-docs}"
"$PYTHON" docs/links.py
"$PYTHON" -m sphinx -n -W --keep-going -E -q -b html docs docs/_build
echo "docs/_build/index.html"
