"""How well a model fills targets of which it sees a part, checkpoint by checkpoint.

    python scripts/measure_glancing.py DATA-BIN --path checkpoint_1_100.pt checkpoint_1_200.pt [--json FILE]

The better a model, the fewer tokens of its targets does glancing show it in training; Mask-Predict gives it targets
that are half filled. For each checkpoint the table has

    revealed          the share of a target's tokens that glancing would reveal in training
    0, 1/3, 2/3       accuracy, in percent, on the [MASK]s where no, a third and two thirds of the reference stand
    mixed 0, ...      the same in the MIST pass, whose source begins with the model's output of a single pass

of a set that is not trained on, targets as long as the references.
"""

import argparse
from fractions import Fraction
from itertools import islice
from pathlib import Path

import torch
from fairseq import checkpoint_utils, utils
from torch import Tensor

import mist_fairseq
from mist_fairseq.experiments.results import provenance, write_json
from mist_fairseq.files.markdown import markdown_table
from mist_fairseq.mist.config import SpecialTokens
from mist_fairseq.mist.copying import copies_of
from mist_fairseq.mist.encoder import SourceState, TwoPasses
from mist_fairseq.mist.glancing import glance, sentence_noise
from mist_fairseq.mist.mixing import mix_source
from mist_fairseq.mist.objective import Batch
from mist_fairseq.mist.output_layer import predicted_tokens
from mist_fairseq.mist.packing import padding_mask

SHARES = [Fraction(0), Fraction(1, 3), Fraction(2, 3)]
COLUMNS = ["revealed", *map(str, SHARES), *(f"mixed {share}" for share in SHARES)]


def counts(model: TwoPasses, batch: Batch, special: SpecialTokens, limit: int, ratio: float) -> dict[str, Tensor]:
    """By column how many tokens are right, and of how many: two numbers, *Shape:* (2). *limit* is a source's."""
    target, lengths = batch.target_tokens, batch.target_lengths
    real = padding_mask(lengths, target.shape[1])
    noise = sentence_noise(batch.ids, target.shape[1], seed=1)
    gold = batch.targets()

    def look(tokens: Tensor, source: SourceState) -> Tensor:
        hidden = model.decode_target(tokens, lengths, batch.target_index, source)
        copies = copies_of(model, hidden, batch.target_index, tokens.shape[1], source)
        return predicted_tokens(model.output_layer(hidden), special.never_predicted, copies)

    def in_place(tokens: Tensor) -> Tensor:
        return target.flatten().index_copy(0, batch.target_index, tokens).view_as(target)

    source = model.encode_source(batch.src_tokens, batch.src_lengths, batch.src_index)
    first = in_place(look(target.masked_fill(real, special.mask), source))
    ends = {"limit": limit, "sep": special.sep, "pad": special.pad}
    mixed, mixed_lengths = mix_source(first, lengths, batch.src_tokens, batch.src_lengths, **ends)
    sources = {"": source, "mixed ": model.encode_source(mixed, mixed_lengths, batch.mixed_index)}

    _, shown = glance(target, first, real, noise, ratio, special.mask)
    found = {"revealed": torch.stack([shown.sum(), real.sum()])}
    for share in SHARES:
        nothing = torch.full_like(target, -1)  # all of it is wrong
        tokens, shown = glance(target, nothing, real, noise, float(share), special.mask)
        hidden = ~shown.flatten()[batch.target_index]
        for name, state in sources.items():
            right = (look(tokens, state) == gold) & hidden
            found[f"{name}{share}"] = torch.stack([right.sum(), hidden.sum()])
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder of binarized data")
    parser.add_argument("--path", nargs="+", required=True, help="checkpoints")
    parser.add_argument("--subset", default="valid", help="(default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="(default: %(default)s)")
    parser.add_argument("--batches", type=int, help="so many only; by default all")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    args = parser.parse_args()
    utils.import_user_module(argparse.Namespace(user_dir=mist_fairseq.__path__[0]))
    rows = {}
    for path in args.path:
        (model,), cfg, task = checkpoint_utils.load_model_ensemble_and_task([path], {"data": args.data})
        task.load_dataset(args.subset)
        model.eval()
        batches = task.get_batch_iterator(task.dataset(args.subset), max_sentences=args.batch_size)
        totals: dict[str, Tensor] = {}
        for sample in islice(batches.next_epoch_itr(shuffle=False), args.batches):
            given = model.encoder, Batch(**sample["net_input"]), task.dictionary.tokenizer.special
            with torch.no_grad():
                found = counts(*given, task.limits.source, cfg.criterion.glancing_ratio)
            totals = {name: totals.get(name, 0) + pair for name, pair in found.items()}
        rows[path] = {name: 100 * (right / of).item() for name, (right, of) in totals.items()}
    cells = [[path, *(f"{row[name]:.1f}" for name in COLUMNS)] for path, row in rows.items()]
    print(markdown_table(["", *COLUMNS], cells))
    if args.json:
        write_json(args.json, {**provenance(), "subset": args.subset, "checkpoints": rows})


if __name__ == "__main__":
    main()
