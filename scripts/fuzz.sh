#!/usr/bin/env bash
# Look for inputs that break a tokenizer or a preparation, guided by coverage: bash scripts/fuzz.sh TARGET [SECONDS]
# TARGET is one of GUIDED in tests/fuzz/__init__.py or "all", SECONDS is for each (default: 60). What is found is in
# .cache/fuzz/TARGET/crash-...: add it to the seeds in tests/fuzz, where the test suite tries it, and mend the cause.
# Needs atheris, which is for Linux and Python 3.11 to 3.13: pip install -c constraints.txt -e .[test]
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -ge 1 ] || { sed -n "2,5s/^# \{0,1\}//p" "$0" >&2; exit 2; }
python=${PYTHON:-python}
targets=$1 status=0
[ "$1" != all ] || targets=$("$python" -c 'from tests.fuzz import GUIDED; print(*GUIDED)')
for target in $targets; do
    folder=.cache/fuzz/$target
    mkdir -p "$folder/tmp"
    echo "== $target"
    TMPDIR=$folder/tmp "$python" -m tests.fuzz "$target" "$folder" -max_total_time="${2:-60}" -timeout=20 || status=1
    rm -rf "$folder/tmp"
done
exit $status
