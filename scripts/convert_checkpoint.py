"""Convert a checkpoint of the MIST authors' released code (github.com/kongds/MIST) to a fairseq checkpoint.

    python scripts/convert_checkpoint.py ckpt-50000/model_state_dict.bin --config ENCODER --out mist.pt
    fairseq-generate DATA-BIN --user-dir mist_fairseq --task mist --path mist.pt

ENCODER is the folder of the pre-trained encoder that the training started from; binarize with its vocab.txt. Their
code fills at least 7 positions: that is --min-length 6 here. To train on from it:

    fairseq-train DATA-BIN --user-dir mist_fairseq --task mist --arch mist_base --pretrained ENCODER --untie-head \\
        --finetune-from-model mist.pt ...
"""

import argparse
import sys

from mist_fairseq.checkpoints.authors import convert_checkpoint


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="the authors' state dict")
    parser.add_argument("--config", required=True, help="folder with config.json and vocab.txt")
    parser.add_argument("--out", required=True, help="fairseq checkpoint to write (.pt)")
    parser.add_argument("--max-source-positions", type=int, default=464, help="in their training (default: 464)")
    parser.add_argument("--max-target-positions", type=int, default=48, help="in their training (default: 48)")
    parser.add_argument("--overwrite", action="store_true", help="replace --out if it is there")
    args = parser.parse_args()
    try:
        limits = args.max_source_positions, args.max_target_positions
        print(convert_checkpoint(args.checkpoint, args.config, args.out, *limits, args.overwrite))
    except (OSError, ValueError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
