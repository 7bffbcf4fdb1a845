#!/usr/bin/env bash
# Questions to answers in passages of SQuAD 1.1 with the paper's settings (Tables 1, 4, 6, 7).
#
#   bash examples/squad_qg/run.sh prepare --train train-v1.1.json --dev dev-v1.1.json --split-lists DIR
#   bash examples/squad_qg/run.sh --pretrained DIR [--arm no-mixing] [options]
set -euo pipefail
task=squad_qg updates=30000 prepare=prepare_squad_qg.py
best=(--copy-head)
source "$(dirname "$0")/../recipe.sh"
