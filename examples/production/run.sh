#!/usr/bin/env bash
# From a table to a service: training, export, a hundred thousand questions with a kill in between, a server under load.
#   bash examples/production/run.sh [--fresh]
# What it measures is in examples/production/run/results. A second run keeps the model; --fresh starts over. VENV=DIR uses
# that virtual environment.
set -euo pipefail
cd "$(dirname "$0")/../.."
source scripts/setup_env.sh onnxruntime,serve
run=examples/production/run

case "${1:-}" in
    "") ;;
    --fresh) rm -rf "$run" ;;
    *) echo "usage: bash examples/production/run.sh [--fresh]" >&2; exit 2 ;;
esac
mkdir -p "$run/results"

if [ ! -e "$run/queries.jsonl" ]; then
    echo "== Making a table of pairs, and a hundred thousand questions"
    python examples/production/make_table.py "$run"
fi

if [ ! -e "$run/onnx/config.json" ]; then
    echo "== Splitting the table, training mist_tiny from random weights, scoring it"
    bash examples/own_data/run.sh --data "$run/pairs.tsv" --source-field question --target-field rewrite \
        --pretrained random --out "$run" --arch mist_tiny --dropout 0 --attention-dropout 0 --lr 2e-3 \
        --warmup-updates 100 --batch-size 32 --max-update 1000
    echo "== Exporting it to ONNX"
    mist export "$run/mist/checkpoints/checkpoint_best.pt" --to onnx --out "$run/onnx" --overwrite
fi

echo "== Answering a hundred thousand questions; the process is killed in between, and a second one goes on"
bulk=(mist generate --model "$run/onnx" --precision int8 --input "$run/queries.jsonl" --field question
    --output "$run/answers.jsonl" --errors "$run/errors.jsonl")
rm -f "$run"/answers.jsonl* "$run"/errors.jsonl
"${bulk[@]}" &
killed=$!
while [ "$({ wc -l < "$run/answers.jsonl.partial"; } 2> /dev/null || echo 0)" -lt 30000 ]; do
    kill -0 "$killed" # it ended before it could be killed: an error
    sleep 0.05
done
kill -KILL "$killed"
wait "$killed" || true
"${bulk[@]}" --resume 2>&1 | tee "$run/results/bulk.log"
python examples/production/check_answers.py "$run"

echo "== A server under load"
python scripts/benchmark_serving.py "$run/onnx" --texts "$run/data/test.src" --concurrency 1 16 --seconds 5 \
    --out "$run/results/serving.json" --server --precision int8 --threads 1

echo "== The page, with a question answered"
mist serve "$run/onnx" --precision int8 --threads 1 --port 0 > "$run/serve.log" &
server=$!
trap 'kill "$server" 2> /dev/null || true' EXIT
until address=$(sed -n 's/^listening on //p' "$run/serve.log"); [ -n "$address" ]; do
    kill -0 "$server" # it ended: an error
    sleep 0.1
done
curl -fsS "$address/info"; echo
if command -v chromium > /dev/null; then
    chromium --headless --no-sandbox --hide-scrollbars --virtual-time-budget=10000 --window-size=1280,1250 \
        --screenshot="$run/results/page.png" "$address/#text=How%20do%20I%20get%20from%20Chicago%20to%20Lisbon%3F" 2> /dev/null
fi
kill "$server"
wait "$server"
echo "Results are in $run/results"
