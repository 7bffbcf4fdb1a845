"""Make a SentencePiece model, the dictionary of models without pre-trained weights.

python scripts/train_sentencepiece.py train.src train.tgt --vocab-size 16000 --out sp.model
"""

import argparse
import io
import sys
from pathlib import Path

import sentencepiece

from mist_fairseq.files.whole import whole_file
from mist_fairseq.text.lines import count_lines


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", nargs="+", help="raw text, one a line")
    parser.add_argument("--vocab-size", type=int, default=16000, help="at most so many pieces (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="model file to write")
    args = parser.parse_args()
    model = io.BytesIO()
    try:
        for path in args.texts:
            count_lines(path)  # refuses what is not UTF-8, which would train as other characters
        sentencepiece.SentencePieceTrainer.train(
            input=args.texts,
            model_writer=model,
            vocab_size=args.vocab_size,
            pad_id=3,  # low, because learned positions of fairseq's models begin behind it
            hard_vocab_limit=False,
            character_coverage=0.9999,
            normalization_rule_name="nmt_nfkc_cf",  # lower-cases, like the paper's uncased encoders
            input_sentence_size=1_000_000,
            shuffle_input_sentence=True,
            minloglevel=1,
        )
    except RuntimeError as error:
        sys.exit(f"error: no model can be made of {', '.join(args.texts)}: {error}")
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    with whole_file(args.out) as partial:
        partial.write_bytes(model.getvalue())


if __name__ == "__main__":
    main()
