#!/usr/bin/env bash
# Fine-tune a pre-trained encoder on Quora question pairs with the paper's settings, and decode it three ways.
#
#   bash examples/quora/run.sh --data DIR --pretrained DIR [--out DIR] [--max-update N] [fairseq-train options]
#
#   --data         folder with raw train/valid/test.src/.tgt, one question a line
#   --pretrained   folder with config.json, vocab.txt and the weights (scripts/get_pretrained.py)
#   --out          results (default: examples/quora/run)
#   --max-update   updates, also the length of the learning-rate decay (default: the paper's 50000)
# Whatever else is given goes to fairseq-train and overrides what stands below: --lr 1e-4, --mist-loss-factor 0 (the
# paper's "no mixing"), --precision bf16, ... A started training goes on where it was.
set -euo pipefail

usage() { sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2; exit 2; }
data= pretrained= out= max_update=50000 options=()
while [ $# -gt 0 ]; do
    case "$1" in
        --data|--pretrained|--out|--max-update)
            [ $# -ge 2 ] || usage
            name=${1#--}; printf -v "${name//-/_}" %s "$2"; shift 2 ;;
        -h|--help) usage ;;
        *) options+=("$1"); shift ;;
    esac
done
[ -n "$data" ] && [ -n "$pretrained" ] || usage
data=$(realpath -m "$data") pretrained=$(realpath -m "$pretrained")
[ -z "$out" ] || out=$(realpath -m "$out")
cd "$(dirname "$0")/../.."
out=${out:-examples/quora/run}

for split in train valid test; do
    for side in src tgt; do
        [ -f "$data/$split.$side" ] || { echo "there is no $data/$split.$side" >&2; exit 1; }
    done
    sources=$(grep -c '' "$data/$split.src" || true) targets=$(grep -c '' "$data/$split.tgt" || true)
    if [ "$sources" != "$targets" ]; then
        echo "$data/$split.src has $sources lines and $split.tgt has $targets: line i of one must belong to line i of the other" >&2
        exit 1
    fi
done
[ -f "$pretrained/vocab.txt" ] || { echo "there is no $pretrained/vocab.txt: see scripts/get_pretrained.py" >&2; exit 1; }
source scripts/setup_env.sh

if [ ! -e "$out/data-bin/.done" ]; then
    rm -rf "$out/data-bin"
    fairseq-preprocess --user-dir mist_fairseq --task mist --source-lang src --target-lang tgt \
        --trainpref "$data/train" --validpref "$data/valid" --testpref "$data/test" \
        --joined-dictionary --srcdict "$pretrained/vocab.txt" --destdir "$out/data-bin" --workers "$(nproc)"
    touch "$out/data-bin/.done"
fi

interval=$(( max_update < 5000 ? max_update : 5000 ))
fairseq-train "$out/data-bin" --user-dir mist_fairseq --task mist \
    --arch mist_base --pretrained "$pretrained" \
    --max-source-positions 464 --max-target-positions 48 \
    --criterion mist_loss --glancing-ratio 0.5 --mist-loss-factor 1.0 --length-loss-factor 1.0 --label-smoothing 0.1 \
    --optimizer bert_adamw --lr 3e-5 --weight-decay 0.01 --clip-norm 1.0 \
    --lr-scheduler polynomial_decay --warmup-updates 500 --max-update "$max_update" --total-num-update "$max_update" \
    --batch-size 64 --seed 1 --num-workers 0 \
    --eval-bleu --best-checkpoint-metric bleu --maximize-best-checkpoint-metric \
    --validate-interval-updates "$interval" --save-interval-updates "$interval" --keep-interval-updates 1 \
    --no-epoch-checkpoints --save-dir "$out/checkpoints" "${options[@]}"

for split in valid test; do
    python scripts/compare_decodings.py "$out/data-bin" --path "$out/checkpoints/checkpoint_best.pt" \
        --subset "$split" --reference "$data/$split.tgt" --examples 5 --out "$out/generated" \
        --decodings single-pass mist:2 mist:3 mask-predict:2 mask-predict:3
done
