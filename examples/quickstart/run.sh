#!/usr/bin/env bash
# From nothing to generated text: install, make data, fairseq-preprocess, fairseq-train, fairseq-generate.
#   bash examples/quickstart/run.sh [--fresh]
# A second run reuses what is there; --fresh starts over. VENV=DIR uses that virtual environment.
set -euo pipefail
cd "$(dirname "$0")/../.."
source scripts/setup_env.sh
run=examples/quickstart/run

case "${1:-}" in
    "") ;;
    --fresh) rm -rf "$run" ;;
    *) echo "usage: bash examples/quickstart/run.sh [--fresh]" >&2; exit 2 ;;
esac

if [ ! -e "$run/data/sp.model" ]; then
    echo "== Making question pairs"
    python examples/quickstart/make_data.py "$run/data"
fi

if [ ! -e "$run/data-bin/.done" ]; then
    echo "== Binarizing: raw text in, the SentencePiece model is the dictionary"
    rm -rf "$run/data-bin"
    fairseq-preprocess --user-dir mist_fairseq --task mist --source-lang src --target-lang tgt \
        --trainpref "$run/data/train" --validpref "$run/data/valid" --testpref "$run/data/test" \
        --joined-dictionary --srcdict "$run/data/sp.model" --destdir "$run/data-bin" --workers 2
    touch "$run/data-bin/.done"
fi

if [ ! -e "$run/checkpoints/.done" ]; then
    echo "== Training mist_tiny from random weights (a started training goes on where it was)"
    fairseq-train "$run/data-bin" --user-dir mist_fairseq --task mist \
        --arch mist_tiny --dropout 0 --attention-dropout 0 \
        --criterion mist_loss --glancing-ratio 0.5 --mist-loss-factor 1.0 --label-smoothing 0.1 \
        --optimizer bert_adamw --lr 2e-3 --lr-scheduler polynomial_decay --warmup-updates 100 \
        --batch-size 32 --clip-norm 1.0 --max-update 1000 --total-num-update 1000 \
        --eval-bleu --best-checkpoint-metric bleu --maximize-best-checkpoint-metric --validate-interval 2 \
        --save-interval 2 --no-epoch-checkpoints --save-dir "$run/checkpoints" --seed 1 --num-workers 0
    touch "$run/checkpoints/.done"
fi

echo "== Generating with fairseq-generate"
python scripts/compare_decodings.py "$run/data-bin" --path "$run/checkpoints/checkpoint_best.pt" \
    --source "$run/data/test.src" --reference "$run/data/test.tgt" --metrics sacrebleu rouge-l \
    --decodings single-pass mist:3 mask-predict:3 --examples 5 --out "$run/generated"
