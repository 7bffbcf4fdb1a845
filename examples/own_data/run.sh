#!/usr/bin/env bash
# A table of your own, TSV, CSV, JSON lines or Parquet, to a trained and scored model.
#
#   bash examples/own_data/run.sh --data pairs.tsv --source-field COLUMN --target-field COLUMN --pretrained DIR \
#       --recipe best --max-update 3000
#   bash examples/own_data/run.sh prepare --data pairs.tsv ... [options of scripts/prepare_pairs.py]
set -euo pipefail
task=own_data updates=50000 prepare=prepare_pairs.py
best=(--glancing-ratio 0.3 --dropout 0 --attention-dropout 0)
scores=(--protocol plain --metrics sacrebleu rouge-l ibleu source-bleu copies novel-1 distinct-1) # without Java and Perl
source "$(dirname "$0")/../recipe.sh"
