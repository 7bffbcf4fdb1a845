#!/usr/bin/env bash
# Install what the tests need, check the style and run all tests: bash scripts/test.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup_env.sh test
ruff check .
ruff format --check .
# Real weights to compare with, fetched before several test processes would all do it.
"$PYTHON" scripts/get_pretrained.py minilm-l6 .cache/minilm-l6
# One test process a core, one thread each: two processes with two threads each would only get in each other's way.
export OMP_NUM_THREADS=1
exec "$PYTHON" -m pytest -n "$(nproc)" "$@"
