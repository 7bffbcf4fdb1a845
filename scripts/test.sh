#!/usr/bin/env bash
# Install what the tests need, check style and types, build the documentation and run all tests: bash scripts/test.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
# METEOR 1.5 is Java, ROUGE-1.5.5 Perl, the server's page is tested in Chromium: without them their tests are skipped.
packages=()
command -v java >/dev/null || packages+=(default-jre-headless)
perl -MXML::Parser -e 1 2>/dev/null || packages+=(perl libxml-parser-perl)
command -v g++ >/dev/null || packages+=(g++) # the int8 engine is compiled
command -v chromedriver >/dev/null || packages+=(chromium chromium-driver)
if [ ${#packages[@]} -gt 0 ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
    else
        echo "To run all tests: apt-get install ${packages[*]}" >&2
    fi
fi
source scripts/setup_env.sh test
ruff check .
ruff format --check .
"$PYTHON" -m mypy
lint-imports --no-cache
bash scripts/build_docs.sh test
# Real weights to compare with, fetched before several test processes would all do it.
"$PYTHON" scripts/get_pretrained.py minilm-l6 .cache/minilm-l6
# One test process a core, one thread each: two processes with two threads each would only get in each other's way.
cores=$(env -u OMP_NUM_THREADS nproc) # which would obey it
export OMP_NUM_THREADS=1
exec "$PYTHON" -m pytest -n "$cores" --dist worksteal "$@"
