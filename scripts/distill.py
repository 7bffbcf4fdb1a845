"""Make training data of a teacher's outputs (Kim and Rush 2016), what non-autoregressive models are usually trained on.

    python scripts/distill.py --data RAW --binarized DATA-BIN --path teacher/checkpoint_best.pt --out DISTILLED \\
        --task mist_translation --beam 4 --nbest 1 --batch-size 128

RAW is the folder of raw text from which DATA-BIN was made. The teacher answers each training source (what
fairseq-generate prints is in DISTILLED.generate.txt until all is done), and DISTILLED gets its answers in the place of
the targets, several to a source with --nbest; --originals keeps the targets beside them. Validation and test stay as
they are. Binarize and train on it like on any data. Further options go to fairseq-generate.
"""

import argparse

from mist_fairseq.experiments.preparation.model_outputs import add_model_arguments, distill, run_with_model


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--originals", action="store_true", help="keep the original training pairs, too")
    add_model_arguments(parser, "the teacher")
    args, options = parser.parse_known_args()
    run_with_model(args, options, lambda files, outputs: distill(files, args.data, outputs, args.originals))


if __name__ == "__main__":
    main()
