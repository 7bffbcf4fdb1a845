"""Average the weights of several checkpoints into one that generates and can be fine-tuned.

    python scripts/average_checkpoints.py --inputs checkpoints --num-update-checkpoints 5 --output averaged.pt
    python scripts/average_checkpoints.py --inputs a.pt b.pt c.pt --output averaged.pt

The options are those of fairseq's script of this name, which its package does not install. Checkpoints are loaded
without executing code, and only those of one vocabulary, one model size and the same position limits have a mean. The
optimizer's state is left out: to train on, give --finetune-from-model averaged.pt.
"""

import argparse
import sys
from pathlib import Path

from mist_fairseq.checkpoints.averaging import average_checkpoints, last_checkpoints


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", nargs="+", required=True, metavar="FILE", help="checkpoints, or their one folder")
    parser.add_argument("--output", required=True, metavar="FILE", help="checkpoint to write (.pt)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--num-epoch-checkpoints", type=int, metavar="N", help="the folder's last N checkpointE.pt")
    which.add_argument("--num-update-checkpoints", type=int, metavar="N", help="the folder's last N checkpoint_E_U.pt")
    parser.add_argument("--checkpoint-upper-bound", type=int, metavar="N", help="last epoch or update to take")
    args = parser.parse_args()
    by_updates = args.num_update_checkpoints is not None
    count = args.num_update_checkpoints if by_updates else args.num_epoch_checkpoints
    if count is None and args.checkpoint_upper_bound is not None:
        parser.error("--checkpoint-upper-bound needs --num-epoch-checkpoints or --num-update-checkpoints")
    if count is not None and (len(args.inputs) != 1 or not Path(args.inputs[0]).is_dir()):
        parser.error("with --num-epoch-checkpoints or --num-update-checkpoints --inputs is one folder")
    try:
        paths = args.inputs
        if count is not None:
            paths = last_checkpoints(args.inputs[0], count, by_updates, args.checkpoint_upper_bound)
        average_checkpoints(paths, args.output)
        print(f"{args.output}: the mean of {', '.join(map(str, paths))}")
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
