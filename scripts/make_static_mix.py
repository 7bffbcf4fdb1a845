"""Make the training data of static mixing (Tables 4 and 5) with a trained "no mixing" model.

    python scripts/make_static_mix.py --data RAW --binarized DATA-BIN --path checkpoint_best.pt --out MIXED [options]

RAW is the folder of raw text from which DATA-BIN was made. The model generates a pseudo target for each training
source in one pass, without collapsing repeated words, as in MIST training (what fairseq-generate prints is in
MIXED.generate.txt until all is done). MIXED gets the original pairs, then the training pairs once more with
`pseudo target [SEP] source` as the source; validation and test stay as they are. Binarize and train on it like on any
data. Further options go to fairseq-generate: --batch-size 64 --precision bf16, ...
"""

import argparse
from pathlib import Path

from mist_fairseq.experiments.evaluation import generate
from mist_fairseq.experiments.preparation.pair_files import add_output_arguments, run
from mist_fairseq.experiments.preparation.static_mix import static_mix


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of raw text")
    parser.add_argument("--binarized", required=True, help="folder of its binarized data")
    parser.add_argument("--path", required=True, help='checkpoint of the "no mixing" model')
    add_output_arguments(parser)
    args, options = parser.parse_known_args()

    def prepare(files):
        decoding = ["--decoding", "single-pass", "--keep-repeats", *(options or ["--batch-size", "64"])]
        log = Path(f"{args.out}.generate.txt")
        try:
            generation = generate(args.binarized, args.path, "train", log, decoding)
        except RuntimeError as error:
            raise ValueError(error) from error  # run() makes one line of it
        static_mix(files, args.data, generation.outputs)
        log.unlink()

    run(prepare, args.out, args.overwrite)


if __name__ == "__main__":
    main()
