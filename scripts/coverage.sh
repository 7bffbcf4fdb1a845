#!/usr/bin/env bash
# Run the tests and measure which lines and branches of mist_fairseq/ they reach: bash scripts/coverage.sh [pytest arguments]
# Processes that the tests start are measured, too. Fails below the share that pyproject.toml asks for; CONTRIBUTING.md
# says what is not reached, and why. `coverage html -d FOLDER` then shows it line by line.
set -euo pipefail
cd "$(dirname "$0")/.."
cores=$(env -u OMP_NUM_THREADS nproc) # which would obey it
source scripts/setup_env.sh test
"$PYTHON" scripts/get_pretrained.py minilm-l6 .cache/minilm-l6
mkdir -p .cache/coverage
"$PYTHON" -m coverage erase
export OMP_NUM_THREADS=1
status=0
"$PYTHON" -m coverage run -m pytest -n "$cores" --dist worksteal "$@" || status=$?
"$PYTHON" -m coverage combine --quiet
"$PYTHON" -m coverage report
exit "$status"
