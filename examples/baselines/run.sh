#!/usr/bin/env bash
# Every system of the paper's tables on the same raw data, in one code base.
#
#   run.sh [STAGE] --system NAME --data DIR [options]     stages binarize, train, generate; all three without STAGE
#   run.sh score --data DIR [options]                     all systems that have generated, in one table
#   run.sh latency --data DIR [options]                   all systems that are trained, timed side by side and scored
#
#   --system NAME      transformer transformer-12-1 transformer-6-1 bart mass prophetnet (autoregressive; 12-1: layers
#                      of encoder and decoder), insertion inat levt cmlm (semi-NAR),
#                      nat nat-mass nat-mass-mist bang no-mixing mist (NAR)
#   --data DIR         raw train/valid/test.src/.tgt, one text a line
#   --protocol NAME    how to score: quora (default), squad_qg, xsum or plain, as in scripts/score.py
#   --pretrained DIR   for bart mass prophetnet nat-mass nat-mass-mist bang no-mixing mist: the folder with the weights;
#                      default random
#   --vocab FILE       vocabulary: vocab.txt, dict.txt of BART or sp.model (default: that in --pretrained, or a
#                      SentencePiece model made of the training text, the same for all systems)
#   --name NAME        folder and row of this system (default: --system)
#   --out DIR          results (default: run/ beside run.sh)
#   --max-update N     updates, also the length of the learning-rate decay (default: 50000)
#   --batch-size N     sentences an update (default: 64)
# Whatever else is given goes to fairseq-train, fairseq-generate or scripts/benchmark_latency.py and overrides what
# stands there.
set -euo pipefail

usage() { sed -n "/^#!/d;/^#/!q;s/^# \{0,1\}//p" "$0" >&2; exit 2; }
root=$(cd "$(dirname "$0")/../.." && pwd)
source "$root/examples/common.sh"

stage=all system= data= protocol=quora pretrained=random vocab= name= out=$root/examples/baselines/run
max_update=50000 batch_size=64 options=()
case "${1:-}" in binarize|train|generate|score|latency|all) stage=$1; shift ;; esac
while [ $# -gt 0 ]; do
    case "$1" in
        --system=*|--data=*|--protocol=*|--pretrained=*|--vocab=*|--name=*|--out=*|--max-update=*|--batch-size=*)
            set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
    esac
    case "$1" in
        --system|--data|--protocol|--pretrained|--vocab|--name|--out|--max-update|--batch-size)
            [ $# -ge 2 ] || usage
            option=${1#--}; printf -v "${option//-/_}" %s "$2"; shift 2 ;;
        -h|--help) usage ;;
        *) options+=("$1"); shift ;;
    esac
done
[ -n "$data" ] || stop "--data is missing: a folder with train, valid and test.src and .tgt"
data=$(realpath -m "$data") out=$(realpath -m "$out") name=${name:-$system}
[ "$pretrained" = random ] || pretrained=$(realpath -m "$pretrained")
[ -z "$vocab" ] || vocab=$(realpath -m "$vocab")
[[ $max_update =~ ^[1-9][0-9]*$ && $batch_size =~ ^[1-9][0-9]*$ ]] ||
    stop "--max-update and --batch-size are $max_update and $batch_size, expected numbers from 1"

# Noise and losses of the semi-NAR systems and NAT are as in fairseq's own examples.
lev="--criterion nat_loss --label-smoothing 0.1 --share-all-embeddings --apply-bert-init --encoder-learned-pos
    --decoder-learned-pos --optimizer adam --lr 5e-4 --warmup-updates 4000 --dropout 0.1 --weight-decay 0.01"
length="--pred-length-offset --length-loss-factor 0.1"
ar="--criterion label_smoothed_cross_entropy --label-smoothing 0.1 --optimizer adam --weight-decay 0.01"
transformer="--arch transformer --share-all-embeddings $ar --lr 5e-4 --warmup-updates 4000"
tune="--lr 3e-5 --warmup-updates 500" # of pre-trained weights, the paper's
nar="--criterion mist_loss --label-smoothing 0.1 --glancing-ratio 0.5 --optimizer bert_adamw --weight-decay 0.01 $tune"

settings() { # SYSTEM: its group in the tables, task, options of fairseq-train and of fairseq-generate
    group=AR task=mist_translation generation="--beam 4 --lenpen 1.0"
    case "$1" in
        transformer*|bart|mass|prophetnet) ;;
        insertion|inat|levt|cmlm) group=Semi-NAR task=mist_translation_lev generation="--iter-decode-max-iter 9" ;;
        nat) group=NAR task=mist_translation_lev generation="--iter-decode-max-iter 0" ;;
        bang) group=NAR generation= ;;
        *) group=NAR task=mist generation= ;;
    esac
    case "$1" in
        transformer) arguments=$transformer ;;
        transformer-12-1) arguments="$transformer --encoder-layers 12 --decoder-layers 1" ;;
        transformer-6-1) arguments="$transformer --encoder-layers 6 --decoder-layers 1" ;;
        bart) arguments="--arch bart_base $ar $tune" ;;
        mass) arguments="--arch mass_base $ar $tune" ;;
        prophetnet) arguments="--arch prophetnet $ar $tune" ;;
        insertion) arguments="--arch insertion_transformer --noise random_delete $lev" ;;
        inat) arguments="--arch iterative_nonautoregressive_transformer --noise full_mask $length
            --train-step 4 --dae-ratio 0.5 --stochastic-approx $lev" ;;
        levt) arguments="--arch levenshtein_transformer --noise random_delete $lev" ;;
        cmlm) arguments="--arch cmlm_transformer --noise random_mask $length $lev" ;;
        nat) arguments="--arch nonautoregressive_transformer --noise full_mask $length --src-embedding-copy $lev" ;;
        bang) arguments="--arch bang_nar --bang-length 48 $ar $tune" ;;
        nat-mass) arguments="--arch nat_mass --mist-loss-factor 0 $nar" ;;
        nat-mass-mist) arguments="--arch nat_mass --mist-loss-factor 1.0 $nar" ;;
        no-mixing) arguments="--arch mist_base --mist-loss-factor 0 $nar" ;;
        mist) arguments="--arch mist_base --mist-loss-factor 1.0 $nar" ;;
        *) stop "--system is ${1:-missing}, expected one of those that --help lists" ;;
    esac
}

case "$stage" in score|latency) ;; *) settings "$system" ;; esac
weights=()
case "$pretrained $system" in
    random*) ;;
    *bart) weights=(--finetune-from-model "$pretrained/model.pt") ;;
    *) weights=(--pretrained "$pretrained") ;;
esac
cd "$root"
check_data
extras=scores
[ "$system" != prophetnet ] || extras=huggingface
[ "$stage" != latency ] || extras=benchmark
source scripts/setup_env.sh "$extras"
run=$out/$name checkpoint=$out/$name/checkpoints/checkpoint_best.pt

binarize() {
    if [ -z "$vocab" ] && [ "$pretrained" != random ]; then
        case "$system" in
            bart) vocab=$pretrained/dict.txt ;;
            prophetnet) vocab=$pretrained/prophetnet.tokenizer ;;
        esac
        [ -n "$vocab" ] && [ -f "$vocab" ] || vocab=$pretrained/vocab.txt
    elif [ -z "$vocab" ]; then
        [ "$system" != prophetnet ] || stop "--vocab is missing: Hugging Face's ProphetNet needs [PAD] to be 0, as in" \
            "the vocab.txt of BERT"
        vocab=$out/sp.model
        if [ ! -f "$vocab" ] || ! made_from "$vocab.done" "$(texts "$data")"; then
            python scripts/train_sentencepiece.py "$data/train.src" "$data/train.tgt" --out "$vocab"
            texts "$data" > "$vocab.done"
        fi
    fi
    [ -f "$vocab" ] || stop "there is no $vocab: give --vocab FILE"
    bin=$out/data-bin-$(cksum < "$vocab" | cut -d " " -f 1) # systems with the same vocabulary share it
    binarize_folder "$data" "$bin"
    echo "$bin" > "$run/data-bin"
}

find_bin() {
    bin=$(cat "$run/data-bin" 2>/dev/null) || stop "there is no binarized data yet: run the stage binarize first"
    [ "$(head -n 1 "$bin/.done")" = "$(texts "$data")" ] ||
        stop "$data is not what $bin was made from: run the stages binarize and train again"
}

mapping() { # OPTIONS: fairseq-generate's, as JSON and YAML have them
    local pairs=
    for (( ; $#; )); do pairs+=", \"$(tr - _ <<< "${1#--}")\": $2"; shift 2; done
    echo "{${pairs#, }}"
}

train() {
    find_bin
    local interval=$(( max_update < 5000 ? max_update : 5000 )) never=1000000000 validation=(--eval-bleu)
    [ "$task" = mist ] || validation+=(--eval-bleu-args "$(mapping $generation)") # as in the stage generate
    fairseq-train "$bin" --user-dir mist_fairseq --task "$task" $arguments \
        "${weights[@]}" --lr-scheduler polynomial_decay --max-update "$max_update" --total-num-update "$max_update" \
        --clip-norm 1.0 --batch-size "$batch_size" --seed 1 --num-workers 0 \
        "${validation[@]}" --best-checkpoint-metric bleu --maximize-best-checkpoint-metric \
        --validate-interval-updates "$interval" --save-interval-updates "$interval" --keep-interval-updates 1 \
        --validate-interval "$never" --save-interval "$never" `# at the end of epochs` \
        --no-epoch-checkpoints --save-dir "$run/checkpoints" \
        --log-format json --log-interval 50 --log-file "$run/train.log" "${options[@]}"
    echo "$system" > "$run/system"
}

generate() {
    [ -f "$checkpoint" ] || stop "there is no $checkpoint: run the stage train first"
    find_bin
    mkdir -p "$out/generated"
    fairseq-generate "$bin" --user-dir mist_fairseq --task "$task" --path "$checkpoint" \
        --gen-subset test --batch-size 64 --scoring sacrebleu $generation "${options[@]}" \
        > "$run/generated.txt" 2> "$run/generate.log" ||
        stop "fairseq-generate failed: $(tail -n 1 "$run/generate.log") (all of it: $run/generate.log)"
    cat "$run/generated.txt" "$run/generate.log" > "$out/generated/$name.txt" # the log tells that it came to its end
    tail -n 1 "$run/generated.txt"
}

score() {
    local files=() file
    for file in "$out"/generated/*.txt; do
        [ -e "$file" ] || stop "nothing in $out/generated: run the stage generate first"
        files+=("$(basename "$file" .txt)=$file")
    done
    python scripts/score.py --confidence --protocol "$protocol" --source "$data/test.src" --reference "$data/test.tgt" \
        --json "$out/scores.json" "${files[@]}" "${options[@]}"
}

row() { # FOLDER NAME OPTIONS [KEYS]: a system for scripts/benchmark_latency.py
    echo "- {name: \"$2\", group: $group, path: \"$1/checkpoints/checkpoint_best.pt\"," \
        "data: $(basename "$(cat "$out/$1/data-bin")"), options: $(mapping $3)${4:+, $4}}"
}

ctranslate2() { # FOLDER PRECISION
    row "$1" "$1, CTranslate2 $2" "$generation" "engine: ctranslate2, precision: $2"
    row "$1" "$1, CTranslate2 $2, greedy" "--beam 1" "engine: ctranslate2, precision: $2"
}

rows() { # of all systems that are trained, the Transformer first: the others are compared with it
    local folder
    { echo transformer; ls "$out" | grep -vx transformer; } | while IFS= read -r folder; do
        [ -f "$out/$folder/system" ] || continue
        settings "$(cat "$out/$folder/system")"
        row "$folder" "$folder" "$generation"
        case "$(cat "$out/$folder/system")" in
            transformer)
                row "$folder" "$folder, greedy" "--beam 1"
                row "$folder" "$folder, Hugging Face generate" "$generation" "engine: huggingface"
                ctranslate2 "$folder" fp32
                ctranslate2 "$folder" int8 ;;
            transformer-*)
                row "$folder" "$folder, greedy" "--beam 1"
                ctranslate2 "$folder" int8 ;;
            mist)
                row "$folder" "$folder, ONNX int8" "" "engine: onnx, precision: int8" ;;&
            mist|nat-mass-mist)
                row "$folder" "$folder, bf16" "" "precision: bf16"
                row "$folder" "$folder × 3" "--decoding mist --decoding-iterations 3"
                row "$folder" "$folder, Mask-Predict × 3" "--decoding mask-predict --decoding-iterations 3"
                row "$folder" "$folder, length beam 3" "--length-beam 3" ;;
        esac
    done
}

latency() {
    local systems over=()
    systems=$(rows)
    [ -n "$systems" ] || stop "no system in $out is trained: run the stage train first"
    printf '%s\n' "reference: \"$data/test.tgt\"" "source: \"$data/test.src\"" "protocol: $protocol" \
        "systems:" "$systems" > "$out/systems.yaml"
    # What one would put online.
    [ ! -f "$out/transformer-12-1/system" ] || over=(--over "transformer-12-1, CTranslate2 int8, greedy")
    out=$(realpath --relative-to . "$out")
    python scripts/benchmark_latency.py "$out/systems.yaml" --batch-size 1 16 --profile --out "$out/latency.json" \
        "${over[@]}" "${options[@]}"
}

mkdir -p "$run"
case "$stage" in
    all) binarize; train; options=(); generate ;;
    *) "$stage" ;;
esac
