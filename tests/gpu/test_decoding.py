"""Generation on the GPU against the CPU, and the engines against plain PyTorch on the same device."""

import pytest
import torch

from mist_fairseq.experiments.benchmark.equality import NEAR
from mist_fairseq.generate.answers import answer
from mist_fairseq.generate.decoding import Decoding
from tests.generate.plain import Runner
from tests.gpu import DEVICE, ON_GPU
from tests.helpers import tiny_encoder_decoder, tiny_released

pytestmark = pytest.mark.gpu

SENTENCES, BATCH = 500, 50
DECODINGS = {
    "single pass": Decoding(),
    "MIST": Decoding("mist", 3),
    "Mask-Predict": Decoding("mask-predict", 3),
    "masked repeats": Decoding("mask-repeats", 3),
    "length beam": Decoding("mist", 3, length_beam=3),
    "n-best": Decoding(nbest=3, exclude_source=True),
    "diverse n-best": Decoding("mask-predict", 3, nbest=3, diversity_penalty=0.5),
}
ROTARY = dict(rotary_base=160000.0, local_rotary_base=10000.0, local_window=2, global_every=2)
MODELS = {
    "mist": (tiny_released, {}),
    "UniLM": (tiny_released, dict(rel_pos_bins=8)),
    "ModernBERT": (tiny_released, dict(pre_norm=True, gated=True, without_biases=True, **ROTARY)),
    "nat_mass": (tiny_encoder_decoder, {}),
}
GRAPHS = ["mist", "UniLM", "ModernBERT"]  # CUDA graphs are for encoders


def runner(name: str, dictionary, device, accelerate="none") -> Runner:
    make, sizes = MODELS[name]
    model = make(dictionary, **sizes)
    model.encoder.to(device)
    return Runner(model, accelerate)


def sentences(dictionary) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 30, (SENTENCES,), generator=generator).tolist()
    words = [torch.randint(40, len(dictionary), (length,), generator=generator).tolist() for length in lengths]
    return [[dictionary.bos(), *row, dictionary.eos()] for row in words]


def answers(run: Runner, sources: list[list[int]], decoding: Decoding) -> list[list[list[int]]]:
    """The tokens of the answers to each source, best first."""
    width = max(map(len, sources))
    rows = [source + [run.special.pad] * (width - len(source)) for source in sources]
    given = (run.engine.asarray(torch.tensor(values)) for values in (rows, list(map(len, sources))))
    found = answer(run.engine, *given, decoding, run.model.tokenizer, run.model.limits)
    return [[one.tokens for one in answers.best] for answers in found]


def is_undecided(run: Runner, source: list[int], decoding: Decoding) -> bool:
    """Whether two lengths, tokens or answers were near each other in any choice of the decoding of a sentence."""
    engine, gaps = run.engine, [1.0]
    length_logits, token_logits = engine.length_logits, engine.token_logits

    def note(values, count: int):
        best = values.float().topk(min(count, values.shape[-1])).values
        gaps.extend((best[..., :-1] - best[..., 1:]).flatten().tolist())

    def watched_lengths(source):
        scores = length_logits(source)
        note(scores, decoding.width + 1)
        return scores

    def watched_tokens(hidden):
        logits = token_logits(hidden)
        note(logits.index_fill(-1, torch.tensor(run.special.never_predicted), -torch.inf), 3)
        return logits

    engine.length_logits, engine.token_logits = watched_lengths, watched_tokens
    given = (engine.asarray(torch.tensor([values])) for values in (source, len(source)))
    (found,) = answer(engine, *given, decoding, run.model.tokenizer, run.model.limits)
    engine.length_logits, engine.token_logits = length_logits, token_logits
    note(torch.tensor([one.score for one in found.all]), len(found.all))
    for one in found.all if decoding.decoding == "mask-predict" else ():  # which asks for the order of the scores
        note(torch.tensor(one.token_scores), len(one.token_scores))
    return min(gaps) < NEAR


def assert_same(run: Runner, plain: Runner, judge: Runner, dictionary, name: str):
    """All answers are the same, but for a few where *judge*, plain PyTorch on a CPU, was undecided."""
    sources, different, decoding = sentences(dictionary), [], DECODINGS[name]
    for first in range(0, SENTENCES, BATCH):
        batch = sources[first : first + BATCH]
        pairs = zip(batch, answers(run, batch, decoding), answers(plain, batch, decoding), strict=True)
        different += [source for source, ours, theirs in pairs if ours != theirs]
    near_ties = sum(is_undecided(judge, source, decoding) for source in different)
    print(f"{len(different)} of {SENTENCES} answers differ, {near_ties} of them near-ties: {name}")
    assert near_ties == len(different) <= SENTENCES / 50


@pytest.mark.parametrize("decoding", DECODINGS)
@pytest.mark.parametrize("model", MODELS)
def test_tokens_are_those_of_the_cpu(model, decoding, dictionary):
    cpu = runner(model, dictionary, "cpu")
    assert_same(runner(model, dictionary, DEVICE), cpu, cpu, dictionary, decoding)


@pytest.mark.parametrize("engine, model", [*(("cudagraph", name) for name in GRAPHS), ("compile", "mist")])
def test_an_engine_gives_what_plain_pytorch_does(engine, model, dictionary):
    run = runner(model, dictionary, DEVICE, engine if ON_GPU or engine != "cudagraph" else "none")
    plain, judge = runner(model, dictionary, DEVICE), runner(model, dictionary, "cpu")
    for name in DECODINGS:
        assert_same(run, plain, judge, dictionary, name)
