"""Make the training data of static mixing (Tables 4 and 5) with a trained "no mixing" model.

    python scripts/make_static_mix.py --data RAW --binarized DATA-BIN --path checkpoint_best.pt --out MIXED [options]

RAW is the folder of raw text from which DATA-BIN was made. The model generates a pseudo target for each training
source in one pass, without collapsing repeated words, as in MIST training (what fairseq-generate prints is in
MIXED.generate.txt until all is done). MIXED gets the original pairs, then the training pairs once more with
`pseudo target [SEP] source` as the source; validation and test stay as they are. Binarize and train on it like on any
data. Further options go to fairseq-generate: --batch-size 64 --precision bf16, ...
"""

import argparse

from mist_fairseq.experiments.preparation.model_outputs import add_model_arguments, run_with_model, static_mix


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_arguments(parser, 'the "no mixing" model')
    args, options = parser.parse_known_args()
    decoding = ["--decoding", "single-pass", "--keep-repeats", *(options or ["--batch-size", "64"])]
    run_with_model(args, decoding, lambda files, outputs: static_mix(files, args.data, outputs))


if __name__ == "__main__":
    main()
