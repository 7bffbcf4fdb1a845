#!/usr/bin/env bash
# Paraphrases of Quora questions with the paper's settings (Table 3).
#
#   bash examples/quora/run.sh prepare quora_duplicate_questions.tsv
#   bash examples/quora/run.sh --pretrained DIR [--arm no-mixing] [options]
set -euo pipefail
task=quora updates=50000 prepare=prepare_quora.py
best=(--glancing-ratio 0.3 --dropout 0 --attention-dropout 0)
source "$(dirname "$0")/../recipe.sh"
