import shutil
import sys
from argparse import Namespace
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from fairseq.criterions.label_smoothed_cross_entropy import LabelSmoothedCrossEntropyCriterion
from omegaconf import OmegaConf

from mist_fairseq.models.baselines.bang import BangConfig, BangGenerator, BangNarModel
from mist_fairseq.tasks.translation import MistTranslationConfig, MistTranslationTask
from tests.helpers import ragged, tiny_dictionary, tiny_vocab
from tests.models.baselines.plain import HEADS, SMALL_AND_BASE, PlainBang, fused, options, random_weights

V = len(tiny_vocab())
EOS = tiny_dictionary().eos()
LAYER = "decoder.layers.0."


def config(positions=160, **changes) -> BangConfig:
    return BangConfig(max_positions=positions, **{**options(), **changes})


def bang_state(positions=160, heads=HEADS, **sizes):
    """Random weights by the names of BANG's code over fairseq 0.9."""
    return random_weights(V, positions=(positions + 1, positions + 2), bang_heads=heads, **sizes)


def write_folder(folder, state, vocab=None):
    folder.mkdir(exist_ok=True)
    torch.save(state, folder / "checkpoint.pt")
    (folder / "vocab.txt").write_text("\n".join(vocab or tiny_vocab()) + "\n", encoding="utf-8")
    return folder


def build(dictionary, folder=None, **changes) -> BangNarModel:
    """As the task does when training starts."""
    model = BangNarModel.build_model(config(**changes), Namespace(target_dictionary=dictionary))
    if folder:
        model.load_pretrained(str(folder), dictionary)
    return model.eval()


@pytest.fixture
def model(tmp_path, dictionary):
    return build(dictionary, write_folder(tmp_path / "bang", bang_state()))


# -- the computation, against PlainBang -----------------------------------------------------------------------


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


@SMALL_AND_BASE
def test_logits_are_those_of_the_paper(tmp_path, dictionary, sizes, heads):
    state, tokens = bang_state(512, heads, **sizes), sources([7])
    folder = write_folder(tmp_path / "bang", state)
    model = build(dictionary, folder, positions=512, **options(heads=heads, **sizes))
    (found,) = logits(model, tokens, [12])
    torch.testing.assert_close(found, PlainBang(state, heads)(tokens[0].tolist(), 12), atol=1e-4, rtol=1e-4)


def test_all_distance_buckets(model):
    tokens = sources([3])
    (found,) = logits(model, tokens, [150])
    torch.testing.assert_close(found, PlainBang(bang_state())(tokens[0].tolist(), 150), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("left", [False, True])
def test_padding_changes_nothing(model, left):
    reference, source_lengths, lengths = PlainBang(bang_state()), [5, 9, 2], [4, 3, 6]
    tokens = sources(source_lengths)
    together = logits(model, sources(source_lengths, left), lengths)
    for row, (found, size) in enumerate(zip(together, lengths)):
        source = tokens[row, : source_lengths[row]]
        (alone,) = logits(model, source[None], [size])
        torch.testing.assert_close(found, alone, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found, reference(source.tolist(), size), atol=1e-5, rtol=1e-5)


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
    model = build(dictionary, write_folder(tmp_path / "bang", state))
    tokens, lengths = sources([5, 3], left=True), [4, 2]
    previous = ragged(lengths, 40, V, 0)
    model(tokens, None, previous)[0].log_softmax(-1)[..., 45].masked_select(previous.ne(0)).sum().backward()
    names = ["decoder.layers.0.ngram_self_attn.relative_linear.weight", "decoder.ngram_input_embed.weight"]
    leaves = [state[name].requires_grad_() for name in names]
    rows, reference = [[token for token in row if token] for row in tokens.tolist()], PlainBang(state)
    sum(reference(row, length).log_softmax(-1)[:, 45].sum() for row, length in zip(rows, lengths)).backward()
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
    reference, expected = PlainBang(bang_state()), 0.0
    for row, (source, length) in enumerate(zip(inputs["src_tokens"].tolist(), (3, 2))):
        found = reference([token for token in source if token], length)
        expected += F.cross_entropy(found, target[row, :length], reduction="sum").item()
    assert losses == pytest.approx([expected, expected], rel=1e-5)


# -- weights ------------------------------------------------------------------------------------------------


def test_all_layouts_give_the_same_weights(tmp_path, dictionary, model, monkeypatch):
    """A bare state dict, in half precision, a checkpoint of fairseq 0.9; attention apart or as one matrix; two rows."""
    expected = model.state_dict()
    state = bang_state()
    mask, positions = (state[name] for name in ("decoder.ngram_input_embed.weight", "encoder.embed_positions.weight"))
    checkpoint = {"args": Namespace(arch="bang_nar", lr=[1e-4]), "model": state}
    layouts = {
        "checkpoint": checkpoint,
        "fused": fused(state),
        "released": fused(state, "ngram_self_attn"),
        "rows": {**state, "decoder.ngram_input_embed.weight": torch.cat([mask + 1, mask])},
        "positions": {**state, "encoder.embed_positions.weight": F.pad(positions, (0, 0, 0, 9))},
    }
    old = ModuleType("fairseq.meters")  # the names that meters had in fairseq 0.9
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "fairseq.meters", old)
        meters = {}
        for name in ("AverageMeter", "TimeMeter", "StopwatchMeter"):
            setattr(old, name, type(name, (), {"__module__": "fairseq.meters"}))
            meters[name] = getattr(old, name)()
            meters[name].sum = 1.5
        write_folder(tmp_path / "meters", {**checkpoint, "extra_state": {"train_meters": meters}})
    for name, layout in layouts.items():
        write_folder(tmp_path / name, layout)
    for name in ["meters", *layouts]:
        found = build(dictionary, tmp_path / name).state_dict()
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert torch.equal(found[key], value), (name, key)
    write_folder(tmp_path / "half", {name: value.half() for name, value in state.items()})
    assert all(value.dtype == torch.float32 for value in build(dictionary, tmp_path / "half").state_dict().values())


@pytest.mark.parametrize(
    "changes, message",
    [
        ({LAYER + "fc1.bias": None}, r"lacks decoder\.layers\.0\.fc1\.bias \(1 in all\)"),
        ({LAYER + "ngram_self_attn.in_proj_bias": None}, r"lacks .*ngram_self_attn\.q_proj\.bias.*\(3 in all\)"),
        ({"encoder.layers.1.fc1.bias": (64,)}, r"has encoder\.layers\.1\.fc1\.bias \(1 in all\), unknown"),
        ({"decoder.embed_out": (V, 32)}, r"has decoder\.embed_out \(1 in all\), unknown"),
        ({LAYER + "fc1.bias": (65,)}, r"fc1\.bias has shape \(65,\), the model needs \(64,\)"),
        ({LAYER + "ngram_self_attn.in_proj_weight": (90, 32)}, r"q_proj\.weight has shape \(30, 32\), .* \(32, 32\)"),
        ({LAYER + "encoder_attn.k_proj.weight": (32, 31)}, r"k_proj\.weight has shape \(32, 31\), .* \(32, 32\)"),
        ({"decoder.ngram_input_embed.weight": (9, 32)}, r"input_embed\.weight has shape \(9, 32\), .* \(32,\)"),
        (
            {"decoder.embed_positions.weight": (100, 32)},
            r"embed_positions\.weight has shape \(100, 32\), the model needs \(162, 32\).*--encoder-layers",
        ),
        ({"decoder.embed_tokens.weight": (V, 32)}, r"decoder\.embed_tokens\.weight differ"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, dictionary, changes, message):
    shapes = {name: shape and torch.zeros(shape) for name, shape in changes.items()}
    state = {**fused(bang_state(), "ngram_self_attn"), **shapes}
    state = {name: tensor for name, tensor in state.items() if tensor is not None}
    with pytest.raises(ValueError, match=message):
        build(dictionary, write_folder(tmp_path / "bang", state))


def test_refused_folders(tmp_path, dictionary):
    folder = write_folder(tmp_path / "bang", bang_state())
    (folder / "vocab.txt").write_text("\n".join([*tiny_vocab(), "more"]) + "\n")
    with pytest.raises(ValueError, match="another vocabulary"):
        build(dictionary, folder)
    folder = write_folder(tmp_path / "bang", bang_state())
    torch.save({}, folder / "second.pt")
    with pytest.raises(ValueError, match="expected one \\*.pt, found checkpoint.pt, second.pt"):
        build(dictionary, folder)
    for path in folder.glob("*.pt"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match="there is no \\*.pt in it"):
        build(dictionary, folder)
    torch.save({"model": EvilPickle()}, folder / "evil.pt")
    with pytest.raises(ValueError, match="damaged or is no file of plain tensors"):
        build(dictionary, folder)


class EvilPickle:
    def __reduce__(self):
        return print, ("executed",)


def test_a_checkpoint_needs_the_folder_no_more(tmp_path, dictionary):
    """Of fairseq's, and of version 0.1, which had all options of the command line in a Namespace."""
    folder = write_folder(tmp_path / "bang", bang_state())
    task = MistTranslationTask(MistTranslationConfig(data="data-bin"), dictionary, dictionary)
    cfg = OmegaConf.structured(config(pretrained=str(folder), _name="bang_nar"))
    model = task.build_model(cfg)
    assert torch.equal(model.mask_embedding, bang_state()["decoder.ngram_input_embed.weight"][0])
    shutil.rmtree(folder)
    for saved in (cfg, Namespace(**{**vars(config()), "_name": "bang_nar", "lr": [1e-4]})):
        task.build_model(saved, from_checkpoint=True).load_state_dict(model.state_dict())


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
    reference = PlainBang(bang_state())
    model = build(dictionary, write_folder(tmp_path / "bang", bang_state()), bang_length=length)
    generator = model.build_generator(dictionary, Namespace(beam=5))
    tokens = sources([5, 9, 2], left=True)
    never = dictionary.tokenizer.special.never_predicted
    found = generator.generate([model], {"net_input": {"src_tokens": tokens, "src_lengths": None}})
    predicted, scores = generator._fill(tokens)
    assert len(found) == 3
    for row, source in enumerate(tokens.tolist()):
        expected = reference([token for token in source if token], length or 9)
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
