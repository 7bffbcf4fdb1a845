"""Operations against what torch counts in the real modules, weights against what they hold."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mist_fairseq.criterions.mist_loss import MistLoss, MistLossConfig
from mist_fairseq.experiments.benchmark import floor
from mist_fairseq.experiments.benchmark.floor import Rates, fastest_product, machine_rates, operations, products
from mist_fairseq.experiments.benchmark.floor import training_operations as training
from mist_fairseq.generate.decoding import Decoding
from mist_fairseq.mist import kernels as training_kernels
from mist_fairseq.mist.copying import copies_of
from mist_fairseq.mist.encoder import Encoder
from mist_fairseq.mist.mixing import mix_source
from mist_fairseq.models.baselines.nat_mass import NatMassConfig, NatMassModel
from mist_fairseq.models.mist_model import PositionLimits
from mist_fairseq.models.nar_generator import NARGenerator
from tests.helpers import batch, decode, encode, sources, targets, tiny_model

S, T, LIMIT = 9, 5, 40


SWITCHES: dict[str, dict] = {
    "mist": {},
    "albert": {"embedding_size": 16, "shared_layers": True},
    "copy head": {"copy_head": True},
    "modernbert": {"pre_norm": True, "gated_ffn": True, "rotary_base": 1e4},
}


@pytest.fixture(params=[*SWITCHES, "nat_mass"])
def model(request, dictionary):
    if request.param in SWITCHES:
        return tiny_model(dictionary, **SWITCHES[request.param])
    config = NatMassConfig()
    sizes = dict(encoder_layers=2, decoder_layers=3, encoder_embed_dim=32, encoder_ffn_embed_dim=48)
    for name, value in dict(sizes, encoder_attention_heads=4, length_classes=30, precision="fp32").items():
        setattr(config, name, value)
    return NatMassModel(config, dictionary, PositionLimits(LIMIT, 20)).eval()


def counted(work) -> int:
    """Operations of the matrix products, as torch counts them; of attention's only those of its plain kernel."""
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        work()
    return counter.get_total_flops()


def generate(model, source, target, sentences=1, **options):
    """Generate with outputs of a given length."""
    src_tokens, src_lengths = sources([source] * sentences, model.dictionary)
    decoding = Decoding(min_length=target - 1, max_length=target - 1, **options)
    generator = NARGenerator([model], model.dictionary, decoding)
    generator.generate([model], {"net_input": {"src_tokens": src_tokens, "src_lengths": src_lengths}})


def sums(encoder, source) -> int:
    """Operations of a product that only adds up what equal source tokens score, which need not be one."""
    return 2 * T * source**2 if getattr(encoder, "copy_head", None) else 0


@pytest.mark.parametrize("sentences", [1, 3])
@pytest.mark.parametrize("options", [{}, *({"decoding": "mask-predict", "iterations": number} for number in (2, 3))])
def test_single_pass_and_mask_predict(model, sentences, options):
    actual = products(model.encoder, S, T, sentences, **options)
    added = sentences * options.get("iterations", 1) * sums(model.encoder, S)
    assert operations(actual) + added == counted(lambda: generate(model, S, T, sentences, **options))


@pytest.mark.parametrize("source", [S, LIMIT - 2])
def test_mist_iterations_cut_at_the_limit(model, source):
    """With an output that ends in [SEP], where the model's own need not."""
    tokens, lengths = sources([source], model.dictionary)
    output, output_lengths = targets([T], model.dictionary)

    def read(state):
        hidden = decode(model, output, output_lengths, state)[0]
        model.encoder.token_logits(hidden)
        copies_of(model.encoder, hidden, torch.arange(T), T, state)

    def work():
        with torch.no_grad():
            state = encode(model, tokens, lengths)
            model.encoder.length_logits(state)
            read(state)
            for _ in range(2):
                special = {"limit": LIMIT, "sep": model.dictionary.eos(), "pad": model.dictionary.pad()}
                mixed, mixed_lengths = mix_source(output, output_lengths, tokens, lengths, **special)
                state = encode(model, mixed[:, : int(mixed_lengths)], mixed_lengths)  # without a column of padding
                read(state)

    actual = products(model.encoder, source, T, decoding="mist", iterations=3, source_limit=LIMIT)
    mixed = min(source + T, LIMIT)
    added = sums(model.encoder, source) + 2 * sums(model.encoder, mixed)
    assert operations(actual) + added + 2 * superfluous(model.encoder, mixed) == counted(work)


def needs_keys_and_values_only(encoder) -> bool:
    """Of the last layer of a mixed source, which nothing but the target's layers sees."""
    return isinstance(encoder, Encoder) and encoder.copy_head is None


def superfluous(encoder, mixed) -> int:
    """Operations of ``encode_source`` that the target pass has no use for: the last layer but its keys and values."""
    whole, needed = (operations(floor._source_pass(encoder, mixed, mixed=only)) for only in (False, True))
    assert (whole > needed) == needs_keys_and_values_only(encoder)
    return whole - needed


def test_all_matrices_are_read(model):
    """Once in a single pass, but the layers of ``Encoder`` twice, and shared ones as often as they are run."""
    encoder = model.encoder
    linear = {name: m.weight.numel() for name, m in encoder.named_modules() if isinstance(m, torch.nn.Linear)}
    weights = sum(linear.values()) + encoder.word_embeddings.weight.numel()
    if isinstance(encoder, Encoder):
        layers = sum(count for name, count in linear.items() if name.startswith("layers."))
        weights += (3 if encoder.config.shared_layers else 1) * layers  # of two layers
        weights += linear.get("embedding_projection", 0)
    assert sum(product.weights for product in products(encoder, S, T, 4)) == weights


@pytest.mark.parametrize("mixing", [True, False])
@pytest.mark.parametrize("glancing", [True, False])
@pytest.mark.parametrize("source", [S, LIMIT - 2])
def test_training(model, mixing, glancing, source, monkeypatch):
    monkeypatch.setattr(training_kernels, "_onednn", lambda: False)  # whose products the counter does not know
    model.train()
    criterion = MistLoss(MistLossConfig(glancing_ratio=0.5 * glancing, mist_loss_factor=float(mixing)), None)
    sample = batch([source], [T], model.dictionary)
    actual = training(model.encoder, [source], [T], mixing=mixing, glancing=glancing, source_limit=LIMIT)
    actual += (1 + glancing) * sums(model.encoder, source)
    if mixing:
        mixed = min(source + T + 1, LIMIT)
        actual += sums(model.encoder, mixed)
        actual += superfluous(model.encoder, mixed)  # which gets no gradient, ...
        if needs_keys_and_values_only(model.encoder):  # ... but for the last queries, one product with keys and values
            actual += 2 * 2 * mixed * 32 * 32
    assert actual == counted(lambda: criterion(model, sample)[0].backward())


def test_padding_does_not_count_in_training(model):
    alone = [training(model.encoder, [s], [t]) for s, t in ((9, 5), (4, 12), (9, 5))]
    assert training(model.encoder, [9, 4, 9], [5, 12, 5]) == sum(alone)
    with pytest.raises(ValueError, match="zip"):
        training(model.encoder, [9, 4], [5])


def test_floor_is_arithmetic_or_reading_whichever_takes_longer():
    rates = Rates(operations=1000.0, bandwidth=10.0)
    computing, reading = floor.Product(1000, 1), floor.Product(600, 300)
    assert floor.floor_seconds([computing], rates) == 1.0
    assert floor.floor_seconds([computing, reading], rates, "int8") == 31.0
    assert [floor.floor_seconds([reading], rates, name) for name in ("fp32", "bf16", "int8")] == [120, 60, 30]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_rates(precision, monkeypatch):
    monkeypatch.setitem(floor._SIZES, "cpu", 64)
    rates = machine_rates(precision, read=2**24, repeats=1)
    assert rates.operations > 0 and rates.bandwidth > 0


def test_the_fastest_kernel_counts_and_missing_ones_do_not(monkeypatch):
    seconds = {"slow": 2e-3, "fast": 1e-3}
    slow, fast = (lambda device, size, name=name: lambda: name for name in seconds)

    def missing(device, size):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(floor, "COPIED", 4000)
    monkeypatch.setattr(floor, "median_seconds", lambda work, *_: seconds.get(str(work()), 4.0))
    monkeypatch.setitem(floor._KERNELS, "fp32", [slow, fast])
    assert machine_rates("fp32", read=4000) == Rates(2 * 2048**3 / 1e-3, 1000.0)
    assert machine_rates("fp32", read=400) == Rates(2 * 2048**3 / 1e-3, 1000.0)
    monkeypatch.setitem(floor._KERNELS, "fp32", [slow, missing])
    assert machine_rates("fp32", read=400).operations == 2 * 2048**3 / 2e-3
    monkeypatch.setitem(floor._KERNELS, "fp32", [missing])
    with pytest.raises(ValueError, match="no matrix product in fp32 on cpu"):
        machine_rates("fp32", read=400)


def test_no_kernel_is_waited_for(monkeypatch):
    """One that takes 0.1 s for small matrices would take a minute for large ones."""
    seconds, made = {"a": 0.1, "b": 1e-3}, []
    kernels = [lambda device, size: made.append(size) or (lambda: "a"), lambda device, size: lambda: "b"]
    monkeypatch.setitem(floor._KERNELS, "bf16", kernels)
    monkeypatch.setattr(floor, "median_seconds", lambda work, *_: seconds[work()])
    product, count = fastest_product("bf16")
    assert (product(), count, made) == ("b", 2 * 2048**3, [256])
    seconds["b"] = 0.2
    product, count = fastest_product("bf16")
    assert (product(), count) == ("a", 2 * 256**3)
