import math
import sys
from argparse import Namespace
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from fairseq.criterions.label_smoothed_cross_entropy import LabelSmoothedCrossEntropyCriterion
from fairseq.logging.meters import AverageMeter, StopwatchMeter, TimeMeter
from fairseq.models import build_model

from mist_fairseq.files.torch_files import load_torch_file
from mist_fairseq.mist.encoder_decoder import BUCKETS
from mist_fairseq.models.baselines.bang import BangGenerator, BangNarModel, bang_nar
from tests.helpers import ragged, tiny_dictionary, tiny_vocab

V = len(tiny_vocab())
SIZES = dict(
    encoder_layers=1,
    decoder_layers=1,
    encoder_embed_dim=32,
    encoder_ffn_embed_dim=64,
    encoder_attention_heads=4,
    max_positions=160,
)
EOS = tiny_dictionary().eos()


def config(**changes) -> Namespace:
    args = Namespace(arch="bang_nar", **{**SIZES, **changes})
    bang_nar(args)
    return args


def bang_state(encoder_layers=1, decoder_layers=1, D=32, ffn=64, heads=4, positions=160, vocab=V, rows=1):
    """Random weights by the names of BANG's code over fairseq 0.9."""
    generator = torch.Generator().manual_seed(0)
    state = {"encoder.version": torch.tensor([3.0]), "decoder.version": torch.tensor([3.0])}

    def linear(name, out, size):
        state[name + ".weight"] = torch.randn(out, size, generator=generator) * size**-0.5
        state[name + ".bias"] = torch.randn(out, generator=generator) * 0.2

    def norm(name):
        state[name + ".weight"] = 1 + torch.randn(D, generator=generator) * 0.2
        state[name + ".bias"] = torch.randn(D, generator=generator) * 0.2

    words = torch.randn(vocab, D, generator=generator)
    for side, layers, more in (("encoder", encoder_layers, 1), ("decoder", decoder_layers, 2)):
        state[f"{side}.embed_tokens.weight"] = words
        state[f"{side}.embed_positions.weight"] = torch.randn(positions + more, D, generator=generator)
        norm(f"{side}.emb_layer_norm")
        for i in range(layers):
            layer = f"{side}.layers.{i}."
            if side == "decoder":
                linear(layer + "ngram_self_attn.relative_linear", BUCKETS * heads, D)
                linear(layer + "ngram_self_attn.in_proj_", 3 * D, D)
                for kind in ("weight", "bias"):
                    name = f"{layer}ngram_self_attn.in_proj_"
                    state[name + kind] = state.pop(f"{name}.{kind}")
                linear(layer + "ngram_self_attn.out_proj", D, D)
            for attention in ["self_attn"] if side == "encoder" else ["encoder_attn"]:
                for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
                    linear(f"{layer}{attention}.{projection}", D, D)
            norm(layer + "self_attn_layer_norm")
            if side == "decoder":
                norm(layer + "encoder_attn_layer_norm")
            linear(layer + "fc1", ffn, D)
            linear(layer + "fc2", D, ffn)
            norm(layer + "final_layer_norm")
    state["decoder.ngram_input_embed.weight"] = torch.randn(rows, D, generator=generator)
    return state


def write_folder(folder, state, vocab=None):
    folder.mkdir(exist_ok=True)
    torch.save(state, folder / "checkpoint.pt")
    (folder / "vocab.txt").write_text("\n".join(vocab or tiny_vocab()) + "\n", encoding="utf-8")
    return folder


def load(folder, dictionary, **changes) -> BangNarModel:
    task = Namespace(source_dictionary=dictionary, target_dictionary=dictionary)
    return build_model(config(pretrained=str(folder), **changes), task).eval()


@pytest.fixture
def model(tmp_path, dictionary):
    return load(write_folder(tmp_path / "bang", bang_state()), dictionary)


# -- the computation, from BANG's own names, sentence by sentence -------------------------------------------


def bucket(distance: int) -> int:
    if distance < 16:
        return distance
    return min(31, int(16 + 16 * math.log(distance / 16) / math.log(128 / 16)))


def reference(state, source: list[int], T: int, heads=4) -> torch.Tensor:
    """Logits (T, V) of T [MASK]s."""

    def linear(x, name):
        return x @ state[name + ".weight"].T + state[name + ".bias"]

    def norm(x, name):
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return x * state[name + ".weight"] + state[name + ".bias"]

    def ffn(x, layer):
        inner = linear(x, layer + "fc1")
        inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
        return norm(x + linear(inner, layer + "fc2"), layer + "final_layer_norm")

    def attend(query, key, value, bias):
        """bias(head, query position, key position), None where nothing is seen."""
        d = query.shape[1] // heads
        out = torch.zeros_like(query)
        for head in range(heads):
            part = slice(head * d, (head + 1) * d)
            for t in range(len(query)):
                seen = [s for s in range(len(key)) if bias(head, t, s) is not None]
                scores = [query[t, part] @ key[s, part] / math.sqrt(d) + bias(head, t, s) for s in seen]
                weights = torch.stack(scores).softmax(0)
                out[t, part] = weights @ value[seen, part]
        return out

    def count(side):
        return len({name.split(".")[2] for name in state if name.startswith(side + ".layers.")})

    words = state["encoder.embed_tokens.weight"]
    positions = torch.arange(len(source)) + 1
    x = norm(words[source] + state["encoder.embed_positions.weight"][positions], "encoder.emb_layer_norm")
    for i in range(count("encoder")):
        layer = f"encoder.layers.{i}."
        query, key, value = (linear(x, f"{layer}self_attn.{one}_proj") for one in "qkv")
        attended = linear(attend(query, key, value, lambda *_: 0.0), layer + "self_attn.out_proj")
        x = ffn(norm(x + attended, layer + "self_attn_layer_norm"), layer)
    encoded = x

    mask = state["decoder.ngram_input_embed.weight"][-1]
    x = norm(mask + state["decoder.embed_positions.weight"][torch.arange(T) + 2], "decoder.emb_layer_norm")
    for i in range(count("decoder")):
        layer = f"decoder.layers.{i}."
        fused = x @ state[layer + "ngram_self_attn.in_proj_weight"].T + state[layer + "ngram_self_attn.in_proj_bias"]
        relative = linear(x, layer + "ngram_self_attn.relative_linear")

        def bias(head, t, s, relative=relative):
            return None if s > t else relative[t, bucket(t - s) * heads + head]

        attended = linear(attend(*fused.chunk(3, 1), bias), layer + "ngram_self_attn.out_proj")
        x = norm(x + attended, layer + "self_attn_layer_norm")
        query = linear(x, layer + "encoder_attn.q_proj")
        key, value = (linear(encoded, f"{layer}encoder_attn.{one}_proj") for one in "kv")
        attended = linear(attend(query, key, value, lambda *_: 0.0), layer + "encoder_attn.out_proj")
        x = ffn(norm(x + attended, layer + "encoder_attn_layer_norm"), layer)
    return x @ words.T


def sources(lengths, left=False):
    """Random ``X [SEP]``."""
    tokens = ragged(lengths, 40, V, 0, torch.Generator().manual_seed(1))
    for row, length in enumerate(lengths):
        tokens[row, length - 1] = EOS
        if left:
            tokens[row] = tokens[row].roll(len(tokens[row]) - length)
    return tokens


def logits(model, tokens, lengths) -> list[torch.Tensor]:
    previous = ragged(lengths, 40, V, 0)
    with torch.no_grad():
        found, _ = model(tokens, tokens.ne(0).sum(1), previous)
    return [row[:length] for row, length in zip(found, lengths)]


def test_logits_are_those_of_the_paper(tmp_path, dictionary):
    state = bang_state(encoder_layers=2, decoder_layers=2)
    model = load(write_folder(tmp_path / "bang", state), dictionary, encoder_layers=2, decoder_layers=2)
    tokens = sources([7])
    (found,) = logits(model, tokens, [12])
    torch.testing.assert_close(found, reference(state, tokens[0].tolist(), 12), atol=1e-5, rtol=1e-5)


def test_all_distance_buckets(model):
    tokens, state = sources([3]), bang_state()
    (found,) = logits(model, tokens, [150])
    torch.testing.assert_close(found, reference(state, tokens[0].tolist(), 150), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("left", [False, True])
def test_padding_changes_nothing(model, left):
    state, source_lengths, lengths = bang_state(), [5, 9, 2], [4, 3, 6]
    tokens = sources(source_lengths)
    together = logits(model, sources(source_lengths, left), lengths)
    for row, (found, size) in enumerate(zip(together, lengths)):
        source = tokens[row, : source_lengths[row]]
        (alone,) = logits(model, source[None], [size])
        torch.testing.assert_close(found, alone, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found, reference(state, source.tolist(), size), atol=1e-5, rtol=1e-5)


def test_targets_padded_on_the_left(model):
    tokens, previous = sources([5, 5]), ragged([3, 5], 40, V, 0)
    left = previous.clone()
    left[0] = left[0].roll(2)
    with torch.no_grad():
        found, expected = model(tokens, None, left)[0], model(tokens, None, previous)[0]
    torch.testing.assert_close(found[0, 2:], expected[0, :3], atol=1e-5, rtol=1e-5)
    model(tokens, None, left)[0].logsumexp(-1).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_gradients_are_those_of_the_reference(tmp_path, dictionary):
    state = bang_state()
    model = load(write_folder(tmp_path / "bang", state), dictionary)
    tokens, lengths = sources([5, 3], left=True), [4, 2]
    previous = ragged(lengths, 40, V, 0)
    model(tokens, None, previous)[0].log_softmax(-1)[..., 45].masked_select(previous.ne(0)).sum().backward()
    names = ["decoder.layers.0.ngram_self_attn.relative_linear.weight", "decoder.ngram_input_embed.weight"]
    leaves = [state[name].requires_grad_() for name in names]
    rows = [[token for token in row if token] for row in tokens.tolist()]
    sum(reference(state, row, length).log_softmax(-1)[:, 45].sum() for row, length in zip(rows, lengths)).backward()
    relative = model.decoder.layers[0].self_attention.relative.weight.grad
    torch.testing.assert_close(relative, leaves[0].grad, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model.mask_embedding.grad, leaves[1].grad[0], atol=1e-4, rtol=1e-4)
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_loss_counts_the_target_and_its_sep(model, dictionary):
    """fairseq's criterion; the values of prev_output_tokens mean nothing."""
    target = torch.tensor([[45, 46, EOS], [47, EOS, 0]])
    inputs = {"src_tokens": sources([4, 6], left=True), "src_lengths": torch.tensor([4, 6])}
    task = Namespace(target_dictionary=dictionary)
    criterion = LabelSmoothedCrossEntropyCriterion(task, sentence_avg=False, label_smoothing=0.0)
    losses = []
    for token in (EOS, 50):
        inputs["prev_output_tokens"] = target.ne(0).long() * token
        sample = {"net_input": inputs, "target": target, "ntokens": 5}
        loss, size, _ = criterion(model, sample)
        losses.append(loss.item())
        assert size == 5
    state, expected = bang_state(), 0.0
    for row, (source, length) in enumerate(zip(inputs["src_tokens"].tolist(), (3, 2))):
        found = reference(state, [token for token in source if token], length)
        expected += F.cross_entropy(found, target[row, :length], reduction="sum").item()
    assert losses == pytest.approx([expected, expected], rel=1e-5)


# -- weights ------------------------------------------------------------------------------------------------


class _Fairseq09:
    """Pickles fairseq's meters under the names that they had in fairseq 0.9."""

    def __enter__(self):
        self.module = sys.modules["fairseq.meters"]
        old = ModuleType("fairseq.meters")
        for kind in (AverageMeter, TimeMeter, StopwatchMeter):
            setattr(old, kind.__name__, type(kind.__name__, (), {"__module__": "fairseq.meters"}))
        sys.modules["fairseq.meters"] = old
        return old

    def __exit__(self, *_):
        sys.modules["fairseq.meters"] = self.module


def test_all_layouts_give_the_same_weights(tmp_path, dictionary, model):
    """A bare state dict, in half precision, a checkpoint of fairseq 0.9; attention apart or as one matrix; two rows."""
    expected = model.state_dict()
    state = bang_state()
    layouts = {"checkpoint": {"args": Namespace(arch="bang_nar", lr=[1e-4]), "model": state}}
    with _Fairseq09() as meters:
        train_meters = {name: getattr(meters, name)() for name in ("AverageMeter", "TimeMeter", "StopwatchMeter")}
        for meter in train_meters.values():
            meter.sum = 1.5
        whole = {**layouts["checkpoint"], "extra_state": {"train_meters": train_meters}}
        write_folder(tmp_path / "meters", whole)
    apart, fused = dict(state), dict(state)
    for name in [name for name in state if "in_proj_" in name]:
        prefix, _, kind = name.rpartition("in_proj_")
        for projection, part in zip("qkv", apart.pop(name).chunk(3)):
            apart[f"{prefix}{projection}_proj.{kind}"] = part
    for name in [name for name in state if ".q_proj." in name]:
        parts = [fused.pop(name.replace("q_proj", f"{projection}_proj")) for projection in "qkv"]
        fused[name.replace("q_proj.", "in_proj_")] = torch.cat(parts)
    mask = state["decoder.ngram_input_embed.weight"]
    layouts["apart"], layouts["fused"] = apart, fused
    layouts["rows"] = {**state, "decoder.ngram_input_embed.weight": torch.cat([mask + 1, mask])}
    layouts["positions"] = {
        **state,
        "encoder.embed_positions.weight": F.pad(expected["encoder.positions.weight"], (0, 0, 0, 9)),
    }
    for name, layout in layouts.items():
        write_folder(tmp_path / name, layout)
    for name in ["meters", *layouts]:
        found = load(tmp_path / name, dictionary).state_dict()
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert torch.equal(found[key], value), (name, key)
    write_folder(tmp_path / "half", {name: value.half() for name, value in state.items()})
    assert all(value.dtype == torch.float32 for value in load(tmp_path / "half", dictionary).state_dict().values())


def test_true_sizes(tmp_path):
    """BANG-base in width, one layer."""
    vocab = tiny_vocab()
    state = bang_state(D=768, ffn=3072, heads=12, positions=512)
    folder = write_folder(tmp_path / "bang", state, vocab)
    args = Namespace(arch="bang_nar", pretrained=str(folder), encoder_layers=1, decoder_layers=1)
    bang_nar(args)
    dictionary = tiny_dictionary()
    model = BangNarModel.build_model(args, Namespace(target_dictionary=dictionary)).eval()
    tokens = sources([6])
    (found,) = logits(model, tokens, [5])
    expected = reference(state, tokens[0].tolist(), 5, heads=12)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-4)


def without(name):
    return lambda state: state.pop(name)


def setting(name, value):
    return lambda state: state.__setitem__(name, value)


LAYER = "decoder.layers.0."


@pytest.mark.parametrize(
    "change, message",
    [
        (without(LAYER + "fc1.bias"), r"lacks decoder\.layers\.0\.fc1\.bias \(1 in all\)"),
        (
            without(LAYER + "ngram_self_attn.in_proj_bias"),
            r"lacks decoder.*ngram_self_attn\.q_proj\.bias.*\(3 in all\)",
        ),
        (
            setting("encoder.layers.1.fc1.bias", torch.zeros(64)),
            r"has encoder\.layers\.1\.fc1\.bias \(1 in all\), unknown",
        ),
        (setting("decoder.embed_out", torch.zeros(V, 32)), r"has decoder\.embed_out \(1 in all\), unknown"),
        (setting(LAYER + "fc1.bias", torch.zeros(65)), r"fc1\.bias has shape \(65,\), the model needs \(64,\)"),
        (
            setting(LAYER + "ngram_self_attn.in_proj_weight", torch.zeros(90, 32)),
            r"self_attn\.q_proj\.weight has shape \(30, 32\), the model needs \(32, 32\)",
        ),
        (
            setting(LAYER + "encoder_attn.k_proj.weight", torch.zeros(32, 31)),
            r"encoder_attn\.k_proj\.weight has shape \(32, 31\), the model needs \(32, 32\)",
        ),
        (
            setting("decoder.ngram_input_embed.weight", torch.zeros(9, 32)),
            r"ngram_input_embed\.weight has shape \(9, 32\), the model needs \(32,\)",
        ),
        (
            setting("decoder.embed_positions.weight", torch.zeros(100, 32)),
            r"embed_positions\.weight has shape \(100, 32\), the model needs \(162, 32\).*--encoder-layers",
        ),
        (setting("decoder.embed_tokens.weight", torch.zeros(V, 32)), r"decoder\.embed_tokens\.weight differ"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, dictionary, change, message):
    state = bang_state()
    change(state)
    with pytest.raises(ValueError, match=message):
        load(write_folder(tmp_path / "bang", state), dictionary)


def test_refused_folders(tmp_path, dictionary):
    folder = write_folder(tmp_path / "bang", bang_state())
    (folder / "vocab.txt").write_text("\n".join([*tiny_vocab(), "more"]) + "\n")
    with pytest.raises(ValueError, match="another vocabulary"):
        load(folder, dictionary)
    folder = write_folder(tmp_path / "bang", bang_state())
    torch.save({}, folder / "second.pt")
    with pytest.raises(ValueError, match="expected one \\*.pt, found checkpoint.pt, second.pt"):
        load(folder, dictionary)
    for path in folder.glob("*.pt"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match="there is no \\*.pt in it"):
        load(folder, dictionary)
    torch.save({"model": EvilPickle()}, folder / "evil.pt")
    with pytest.raises(ValueError, match="damaged or is no file of plain tensors"):
        load(folder, dictionary)


class EvilPickle:
    def __reduce__(self):
        return print, ("executed",)


def test_a_checkpoint_needs_the_folder_no_more(tmp_path, dictionary):
    folder = write_folder(tmp_path / "bang", bang_state())
    args = config(pretrained=str(folder))
    task = Namespace(source_dictionary=dictionary, target_dictionary=dictionary)
    model = build_model(args, task)
    assert args.pretrained is None
    torch.save({"cfg": args, "model": model.state_dict()}, tmp_path / "own.pt")
    for path in folder.iterdir():
        path.unlink()
    saved = load_torch_file(tmp_path / "own.pt")
    again = build_model(saved["cfg"], task)
    again.load_state_dict(saved["model"])
    tokens = sources([6, 3])
    for one, other in zip(logits(model.eval(), tokens, [5, 4]), logits(again.eval(), tokens, [5, 4])):
        assert torch.equal(one, other)


# -- generation ---------------------------------------------------------------------------------------------


def words(dictionary, text):
    return dictionary.encode_line(text, append_eos=False).tolist()


@pytest.mark.parametrize(
    "predicted, expected",
    [
        ("how can [SEP] learn [SEP]", "how can [SEP]"),
        ("[SEP] how can [SEP] learn", "how can [SEP]"),
        ("how how can", "how can [SEP]"),
        ("[SEP] [SEP]", "[SEP]"),
        ("how zz zz [SEP]", "how zz [SEP]"),
    ],
)
def test_cut_at_the_first_sep_and_repeats(model, dictionary, predicted, expected):
    tokens = torch.tensor(words(dictionary, predicted))
    scores = -torch.arange(1.0, len(tokens) + 1)
    found = BangGenerator(model, dictionary)._hypothesis(tokens, scores)
    assert found["tokens"].tolist() == words(dictionary, expected)
    assert len(found["positional_scores"]) == len(found["tokens"])
    assert (found["steps"], found["alignment"], found["attention"]) == (1, None, None)


def test_scores(model, dictionary):
    generator = BangGenerator(model, dictionary)
    how, can = words(dictionary, "how can")
    found = generator._hypothesis(torch.tensor([how, how, EOS, can]), torch.tensor([-1.0, -2.0, -6.0, -9.0]))
    assert found["positional_scores"].tolist() == [-1.0, -6.0]
    assert found["score"].item() == pytest.approx(-3.0)
    found = generator._hypothesis(torch.tensor([how, can]), torch.tensor([-1.0, -2.0]))
    assert found["positional_scores"].tolist() == [-1.0, -2.0, 0.0]
    assert found["score"].item() == pytest.approx(-1.5)


@pytest.mark.parametrize("length", [None, 3, 20])
def test_generation_is_the_argmax_of_the_reference(tmp_path, dictionary, length):
    state = bang_state()
    model = load(write_folder(tmp_path / "bang", state), dictionary, bang_length=length)
    generator = model.build_generator(dictionary, Namespace(beam=5))
    tokens = sources([5, 9, 2], left=True)
    never = dictionary.never_predicted()
    found = generator.generate([model], {"net_input": {"src_tokens": tokens, "src_lengths": None}})
    predicted, scores = generator._fill(tokens)
    assert len(found) == 3
    for row, source in enumerate(tokens.tolist()):
        expected = reference(state, [token for token in source if token], length or 9)
        expected[:, never] = float("-inf")
        best = expected.log_softmax(-1).max(-1)
        assert torch.equal(predicted[row], best.indices)
        torch.testing.assert_close(scores[row], best.values, atol=1e-4, rtol=1e-4)
        assert found[row][0]["tokens"].tolist() == generator._hypothesis(*best[::-1])["tokens"].tolist()
        assert found[row][0]["tokens"][-1] == EOS


def test_refused_options(model, dictionary):
    with pytest.raises(ValueError, match="--sampling does not work"):
        BangGenerator(model, dictionary, Namespace(sampling=True))
    with pytest.raises(ValueError, match="--nbest does not work with BANG.*one output"):
        BangGenerator(model, dictionary, Namespace(nbest=2))
    with pytest.raises(ValueError, match="prefixes and constraints"):
        BangGenerator(model, dictionary).generate([model], {}, prefix_tokens=torch.zeros(1, 1))
    for length in (0, 161):
        with pytest.raises(ValueError, match=f"--bang-length is {length}, expected a number from 1 to"):
            BangNarModel(config(bang_length=length), dictionary)
