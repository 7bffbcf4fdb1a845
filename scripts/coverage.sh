#!/usr/bin/env bash
# Run the tests and measure which lines and branches of mist_fairseq/ they reach: bash scripts/coverage.sh [pytest arguments]
# Processes that the tests start are measured, too. Fails below the share that pyproject.toml asks for; CONTRIBUTING.md
# says what is not reached, and why. .cache/coverage/html/index.html shows it line by line.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup_env.sh test
mkdir -p .cache/coverage
"$PYTHON" -m coverage erase
cores=$(nproc) # before the next line, which it would obey
export OMP_NUM_THREADS=1
status=0
"$PYTHON" -m coverage run -m pytest -n "$cores" --dist worksteal "$@" || status=$?
"$PYTHON" -m coverage combine --quiet
"$PYTHON" -m coverage html --quiet --directory .cache/coverage/html --fail-under 0
"$PYTHON" -m coverage report
exit "$status"
