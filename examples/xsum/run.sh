#!/usr/bin/env bash
# One-sentence summaries of BBC articles with the paper's settings (Tables 2, 5, 6, 7 and Figure 2).
#
#   bash examples/xsum/run.sh prepare --documents bbc-summary-data --split XSum-TRAINING-DEV-TEST-SPLIT-90-5-5.json
#   bash examples/xsum/run.sh --pretrained DIR [--arm no-mixing] [options]
set -euo pipefail
task=xsum updates=600000 prepare=prepare_xsum.py
best=()
source "$(dirname "$0")/../recipe.sh"
