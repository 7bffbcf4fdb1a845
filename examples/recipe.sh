# Sourced by the recipes' run.sh, which set: task, updates (the paper's), prepare (a script's name), best (options), and
# may set scores (options of scripts/compare_decodings.py).
#
#   run.sh prepare ARGUMENTS             official files -> OUT/data; arguments of scripts/prepare_*.py
#   run.sh [all] OPTIONS                 binarize, train, generate and score
#   run.sh binarize|train|generate|score OPTIONS
#
#   --data DIR         raw train/valid/test.src/.tgt, one text a line (default: OUT/data)
#   --data FILE        or a table (TSV, CSV, JSON lines, Parquet), of which scripts/prepare_pairs.py makes OUT/data with
#                      --source-field, --target-field, --group-field COLUMN and --valid, --test N
#   --pretrained DIR   folder with config.json, vocab.txt and the weights (scripts/get_pretrained.py), or "random":
#                      random weights and, unless --vocab FILE is given, a SentencePiece model made from the training text
#   --arm NAME         mist (default), no-mixing, or static-mixing (needs OUT/no-mixing trained)
#   --out DIR          results (default: run/ beside run.sh): data-bin, and one folder an arm
#   --max-update N     updates, also the length of the learning-rate decay (default: the paper's)
#   --recipe NAME      paper (default), or best: what docs/beyond.md found better for trainings of less than an epoch
#   --gpus N           divide the batch of 64 among N GPUs (default: 1)
#   --eval-batch-size  sentences at a time in validation and generation (default: 64)
# Whatever else is given goes to fairseq-train and overrides what stands there: --lr 1e-4, --precision bf16,
# --arch mist_small, --seed 2, --mist-targets random, ... A started training goes on where it was. With the stages
# generate and score it goes to scripts/compare_decodings.py: --decodings single-pass, --precision bf16, --label ...
# Files named in such options are looked for from the repository's folder on.

usage() {
    sed -n "/^#!/d;/^#/!q;s/^# \{0,1\}//p" "$0" >&2; echo >&2
    sed -n "4,/^[^#]/s/^# \{0,1\}//p" "$root/examples/recipe.sh" >&2
    exit 2
}

root=$(cd "$(dirname "$0")/../.." && pwd)
source "$root/examples/common.sh"
out=$root/examples/$task/run data= pretrained= vocab= arm=mist recipe=paper max_update=$updates gpus=1 eval_batch_size=64
stage=all options=() columns=()
[ -v scores ] || scores=(--protocol "$task")
case "${1:-}" in
    prepare|binarize|train|generate|score|all) stage=$1; shift ;;
esac
while [ $# -gt 0 ]; do
    case "$1" in
        --data=*|--pretrained=*|--vocab=*|--arm=*|--recipe=*|--out=*|--max-update=*|--gpus=*|--eval-batch-size=*|\
        --source-field=*|--target-field=*|--group-field=*|--valid=*|--test=*)
            set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
    esac
    case "$1" in
        --data|--pretrained|--vocab|--arm|--recipe|--out|--max-update|--gpus|--eval-batch-size)
            [ $# -ge 2 ] || usage
            name=${1#--}; printf -v "${name//-/_}" %s "$2"; shift 2 ;;
        --source-field|--target-field|--group-field|--valid|--test)
            [ $# -ge 2 ] || usage
            columns+=("$1" "$2"); shift 2 ;;
        -h|--help) [ "$stage" = prepare ] || usage; options+=("$1"); shift ;;
        *) options+=("$1"); shift ;;
    esac
done
out=$(realpath -m "$out") data=$(realpath -m "${data:-$out/data}")
table=
[ ! -f "$data" ] || table=$data data=$out/data
[ -z "$pretrained" ] || [ "$pretrained" = random ] || pretrained=$(realpath -m "$pretrained")
[ -z "$vocab" ] || vocab=$(realpath -m "$vocab")
case "$arm" in mist|no-mixing|static-mixing) ;; *) stop "--arm is $arm, expected mist, no-mixing or static-mixing" ;; esac
case "$recipe" in paper|best) ;; *) stop "--recipe is $recipe, expected paper or best" ;; esac
for name in max_update gpus eval_batch_size; do
    [[ ${!name} =~ ^[1-9][0-9]*$ ]] || stop "--${name//_/-} is ${!name}, expected a number from 1"
done
run=$out/$arm bin=$out/data-bin
[ "$arm" != static-mixing ] || bin=$run/data-bin

if [ "$stage" = prepare ]; then # before the change of folder: file names are the user's
    source "$root/scripts/setup_env.sh" scores
    rm -f "$out/data.done"
    [ -z "$table" ] || prepare=prepare_pairs.py options=(--data "$table" "${options[@]}")
    exec python "$root/scripts/$prepare" "${columns[@]}" "${options[@]}" --out "$out/data"
fi
cd "$root"
source scripts/setup_env.sh scores

check_encoder() {
    if [ "$pretrained" = random ]; then
        [ -z "$vocab" ] || [ -f "$vocab" ] || stop "there is no $vocab"
        return
    fi
    [ -n "$pretrained" ] || stop "--pretrained is missing: a folder (see scripts/get_pretrained.py) or random"
    [ -f "$pretrained/vocab.txt" ] || stop "there is no $pretrained/vocab.txt: see scripts/get_pretrained.py"
}

prepare_table() {
    local origin overwrite=()
    origin="$(cksum < "$table") ${columns[*]}"
    ! made_from "$data.done" "$origin" || return 0
    [ ! -e "$data.done" ] || overwrite=(--overwrite) # but not what was prepared by hand
    python scripts/prepare_pairs.py --data "$table" "${columns[@]}" --out "$data" "${overwrite[@]}"
    echo "$origin" > "$data.done"
}

binarize() {
    [ -z "$table" ] || prepare_table
    check_data
    check_encoder
    local origin
    origin=$(texts "$data")
    [ "$pretrained" = random ] || vocab=$pretrained/vocab.txt
    if [ -z "$vocab" ]; then
        vocab=$out/sp.model
        if [ ! -f "$vocab" ] || ! made_from "$vocab.done" "$origin"; then
            python scripts/train_sentencepiece.py "$data/train.src" "$data/train.tgt" --out "$vocab"
            echo "$origin" > "$vocab.done"
        fi
    fi
    binarize_folder "$data" "$out/data-bin"
    [ "$arm" = static-mixing ] || return 0
    local teacher=$out/no-mixing/checkpoints/checkpoint_best.pt
    [ -f "$teacher" ] || stop "static mixing starts from a trained model, but there is no $teacher: --arm no-mixing"
    origin+=$(stat -c ' %s %Y' "$teacher")
    if ! made_from "$run/data.done" "$origin"; then
        python scripts/make_static_mix.py --data "$data" --binarized "$out/data-bin" --path "$teacher" \
            --out "$run/data" --overwrite --batch-size "$eval_batch_size"
        echo "$origin" > "$run/data.done"
    fi
    binarize_folder "$run/data" "$bin"
}

train() {
    check_encoder
    [ -e "$bin/.done" ] || stop "there is no $bin: run the stage binarize first"
    local interval=$(( max_update < 5000 ? max_update : 5000 )) factor=1.0 model=() never=1000000000
    local better=(--lr 5e-4 --warmup-updates "$(( max_update / 12 ))" "${best[@]}")
    [ "$arm" = mist ] || factor=0
    [ "$recipe" = best ] || better=()
    [ "$pretrained" = random ] || model=(--pretrained "$pretrained")
    [ $(( 64 % gpus )) = 0 ] || stop "--gpus is $gpus, expected a divisor of the batch of 64"
    # Everything but data, length and precision is the paper's "Experimental Setting". No distillation, as there.
    fairseq-train "$bin" --user-dir mist_fairseq --task mist \
        `# model` --arch mist_base "${model[@]}" --max-source-positions 464 --max-target-positions 48 \
        `# loss` --criterion mist_loss --mist-loss-factor "$factor" --glancing-ratio 0.5 \
        --length-loss-factor 1.0 --label-smoothing 0.1 \
        `# optimization` --optimizer bert_adamw --lr 3e-5 --weight-decay 0.01 --clip-norm 1.0 \
        --lr-scheduler polynomial_decay --warmup-updates 500 --max-update "$max_update" \
        --total-num-update "$max_update" --seed 1 --num-workers 0 \
        --batch-size $(( 64 / gpus )) --distributed-world-size "$gpus" \
        `# validation` --eval-bleu --eval-rouge --best-checkpoint-metric bleu --maximize-best-checkpoint-metric \
        --batch-size-valid "$eval_batch_size" \
        --validate-interval-updates "$interval" --save-interval-updates "$interval" --keep-interval-updates 1 \
        --validate-interval "$never" --save-interval "$never" `# at the end of epochs` \
        --no-epoch-checkpoints --save-dir "$run/checkpoints" \
        `# log, for scripts/plot_convergence.py` --log-format json --log-interval 20 --log-file "$run/train.log" \
        "${better[@]}" "${options[@]}"
}

compare() { # generate or score
    local checkpoint=$run/checkpoints/checkpoint_best.pt further=("${options[@]}")
    [ "$stage" != all ] || further=()
    [ -f "$checkpoint" ] || stop "there is no $checkpoint: run the stage train first"
    check_data
    [ "$(head -n 1 "$out/data-bin/.done")" = "$(texts "$data")" ] ||
        stop "$data is not what $out/data-bin was made from: run the stages binarize and train again"
    python scripts/compare_decodings.py "$out/data-bin" --path "$checkpoint" --only "$1" --out "$run/generated" \
        "${scores[@]}" --source "$data/test.src" --reference "$data/test.tgt" --confidence \
        --batch-size "$eval_batch_size" --label "task=$task" "arm=$arm" "${further[@]}"
}

mkdir -p "$run"
case "$stage" in
    binarize) binarize ;;
    train) train ;;
    generate|score) compare "$stage" ;;
    all) binarize; train; compare generate; compare score ;;
esac
