# Sourced by the recipes: checks and stamps. $data is the folder of raw text, $vocab the vocabulary.

export PYTHONIOENCODING=utf-8 # of what commands print to files, whatever the locale's

stop() { echo "error: $*" >&2; exit 1; }

count() { LC_ALL=C grep -ac '' "$1" || true; } # lines; without -a, a NUL would end one, too

check_data() {
    local split side sources targets
    for split in train valid test; do
        for side in src tgt; do
            [ -f "$data/$split.$side" ] || stop "there is no $data/$split.$side: see --data, or the stage prepare"
        done
        sources=$(count "$data/$split.src") targets=$(count "$data/$split.tgt")
        [ "$sources" = "$targets" ] || stop "$data/$split.src has $sources lines and $split.tgt has $targets:" \
            "line i of one must belong to line i of the other"
        [ "$sources" != 0 ] || stop "$data/$split.src and $split.tgt are empty, expected at least one line"
    done
}

# What something was made from stands beside it, so that it is made again when that changes.
texts() { cat "$1"/{train,valid,test}.{src,tgt} | cksum; } # RAW
made_from() { [ -e "$1" ] && [ "$(cat "$1" 2>/dev/null)" = "$2" ]; } # STAMP VALUE

binarize_folder() { # RAW BIN
    local origin
    origin=$(texts "$1"; cksum < "$vocab")
    ! made_from "$2/.done" "$origin" || return 0
    rm -rf "$2"
    fairseq-preprocess --user-dir mist_fairseq --task mist --source-lang src --target-lang tgt \
        --trainpref "$1/train" --validpref "$1/valid" --testpref "$1/test" \
        --joined-dictionary --srcdict "$vocab" --destdir "$2" --workers "$(nproc)"
    echo "$origin" > "$2/.done"
}
