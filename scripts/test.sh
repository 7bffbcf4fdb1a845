#!/usr/bin/env bash
# Install what the tests need, check the style and run all tests: bash scripts/test.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
# METEOR 1.5 is Java, ROUGE-1.5.5 Perl: without them their tests are skipped.
if ! command -v java >/dev/null || ! perl -MXML::Parser -e 1 2>/dev/null; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq default-jre-headless perl libxml-parser-perl >/dev/null
    else
        echo "To test METEOR and ROUGE, too: apt-get install default-jre-headless perl libxml-parser-perl" >&2
    fi
fi
source scripts/setup_env.sh test
ruff check .
ruff format --check .
# Real weights to compare with, fetched before several test processes would all do it.
"$PYTHON" scripts/get_pretrained.py minilm-l6 .cache/minilm-l6
# One test process a core, one thread each: two processes with two threads each would only get in each other's way.
cores=$(nproc) # before the next line, which it would obey
export OMP_NUM_THREADS=1
exec "$PYTHON" -m pytest -n "$cores" "$@"
