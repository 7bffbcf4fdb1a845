#!/usr/bin/env bash
# Check and measure everything on a GPU in the minutes given, without a network, from what scripts/gpu_pack.sh collected:
#   bash scripts/gpu_check.sh OUT MINUTES [PACK]                    PACK: default gpu-pack
# In this order: the machine's rates; tests/gpu; Quora with MIST and without, side by side, and all decodings of both;
# training throughput; latency. Each part has its own time limit. OUT gets report.md, log.txt and results.tar.gz as it
# goes; all else, checkpoints too, is in OUT.work. A part that is done is not done again, nor on another machine with
# OUT/results.tar.gz. PYTHON is the interpreter, with PyTorch. Without a GPU the sizes are tiny, to try the script.
set -uo pipefail
[[ $# -ge 2 && $2 =~ ^[1-9][0-9]*$ ]] || { sed -n "2,7s/^# \{0,1\}//p" "$0" >&2; exit 2; }
root=$(cd "$(dirname "$0")/.." && pwd)
out=$(realpath -m "$1") minutes=$2 pack=$(realpath -m "${3:-$root/gpu-pack}") python=${PYTHON:-python3}
work=$out.work
[ -d "$pack/wheels" ] || { echo "error: there is no $pack: bash scripts/gpu_pack.sh $pack ENCODER DATA-BIN" >&2; exit 1; }
mkdir -p "$out"
if [ ! -d "$work" ]; then
    mkdir "$work"
    [ ! -f "$out/results.tar.gz" ] || tar -C "$work" -xzf "$out/results.tar.gz"
fi
exec > >(tee -a "$out/log.txt") 2>&1
cd "$root"
export PYTHONUNBUFFERED=1 PYTHONPATH=$work/site:$root OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}
export MIST_GPU_TEST_DEVICE=${MIST_GPU_TEST_DEVICE:-cuda}
export TORCH_CUDNN_SDPA_DEPRIORITIZED=1 # for fairseq's own Transformer too, which it would plan anew for each shape

left() { echo $(( minutes * 60 * $1 / 100 - SECONDS )); } # until so many percent of the time are over
part() { # NAME PERCENT COMMAND...
    local name=$1 limit status=0
    limit=$(left "$2")
    [ ! -e "$work/$name.done" ] || { echo "$name: done before"; return; }
    [ "$limit" -gt 0 ] || { echo "$name: no time is left"; return; }
    timeout -k 5 "$limit" "${@:3}" > "$work/$name.log" 2>&1 || status=$?
    echo "$name: status $status, at $SECONDS s"
    if [ "$status" = 0 ]; then touch "$work/$name.done"; else tail -n 5 "$work/$name.log" | cut -c -300; fi
    [[ $name = train-* ]] || keep
}
keep() {
    "$python" -m mist_fairseq.experiments.gpu_check report "$work" > "$work/report.md" && cp "$work/report.md" "$out"
    tar -C "$work" --exclude=./site --exclude='*.pt' --exclude='train-*.done' -czf "$work.tar.gz" . && mv "$work.tar.gz" "$out/results.tar.gz"
}

if [ ! -d "$work/site" ]; then
    "$python" -m pip install -q --no-index --no-deps --no-compile --target "$work/site" "$pack"/wheels/*.whl || exit 1
fi
base=(--arch mist_base) minilm=(--arch mist_base --encoder-layers 6 --encoder-embed-dim 384 --encoder-ffn-embed-dim 1536)
training=(--arch mist_base --pretrained "$pack/encoder" --optimizer bert_adamw --lr 1e-4 --clip-norm 1.0)
training+=(--lr-scheduler polynomial_decay --warmup-updates 500 --total-num-update 50000 --disable-validation)
training+=(--no-epoch-checkpoints --log-format json --log-interval 100)
timing=(--updates 10) latency=(--batch-size 1 16 --sentences 32)
systems=("Transformer" "Transformer, bf16" "mist_base" "mist_base, bf16" "mist_base, bf16, CUDA graphs")
systems+=("mist_base, bf16, CUDA graphs, MIST × 3" "mist_small, bf16" "mist_small, bf16, CUDA graphs")
compiled=("Transformer" "mist_base, bf16, compiled" "mist_small, bf16, compiled")
if "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    training+=(--precision bf16 --batch-size 64 --max-update 50000 --save-interval-updates 1000 --num-workers 2)
    timing+=(--batch-size 64 --precision bf16) tests=(-m gpu) chosen="not compile" sentences=2000
    ! "$python" -c 'import xdist' 2>/dev/null || tests+=(-n 4)
else
    training+=(--cpu --batch-size 2 --max-update 6 --save-interval-updates 2 --num-workers 0)
    base=(--arch mist_tiny) minilm=(--arch mist_tiny) timing=(--updates 1 --batch-size 1 --no-memory)
    latency=(--batch-size 1 --sentences 1) sentences=20
    systems=("mist_small" "mist_small, bf16, CUDA graphs") compiled=("mist_small" "mist_small, bf16")
    export MIST_GPU_TEST_DEVICE=cpu
    tests=(-m gpu) chosen="mist and not mist_ and not engine"
fi

part rates 6 "$python" -m mist_fairseq.experiments.gpu_check rates "$work"
pytest=("$python" -m pytest tests/gpu -p no:cacheprovider -v -rP --tb=short "${tests[@]}")
part tests 18 "${pytest[@]}" -k "$chosen"

stop=$(awk "BEGIN { print ($(left 57) - 30) / 3600 }") # of training, which is to load and save as well
[ -e "$work/decode.done" ] || for arm in mist no-mixing; do
    factor=1
    [ "$arm" = mist ] || factor=0
    part "train-$arm" 57 "$python" -m fairseq_cli.train "$pack/data-bin" --user-dir "$root/mist_fairseq" --task mist \
        --criterion mist_loss --mist-loss-factor "$factor" "${training[@]}" --stop-time-hours "$stop" \
        --save-dir "$work/$arm" &
done
wait $(jobs -p)
part decode 64 "$python" -m mist_fairseq.experiments.gpu_check decode "$work" "$pack/data-bin" "$sentences"

part training-minilm-quora 69 "$python" scripts/benchmark_training.py "${minilm[@]}" --profile quora \
    "${timing[@]}" --out "$work/training-minilm-quora.json"
percent=69
for profile in quora squad_qg xsum; do
    percent=$((percent + 4 + percent / 77))
    part "training-base-$profile" "$percent" "$python" scripts/benchmark_training.py "${base[@]}" \
        --profile "$profile" "${timing[@]}" --out "$work/training-base-$profile.json"
done
benchmark() { # NAME PERCENT PROFILE SYSTEM...
    part "$1" "$2" "$python" scripts/benchmark_latency.py examples/baselines/paper_sizes.yaml --synthetic "$3" \
        "${latency[@]}" --out "$work/$1.json" --only "${@:4}"
}
benchmark latency-quora 90 quora "${systems[@]}"
benchmark latency-xsum 96 xsum "${systems[@]}"
benchmark latency-quora-compiled 98 quora "${compiled[@]}"
benchmark latency-xsum-compiled 100 xsum "${compiled[@]}"
[ "$MIST_GPU_TEST_DEVICE" = cpu ] || part tests-compile 100 "${pytest[@]}" -k compile
keep
