"""ProphetNet through --task mist_translation, and Hugging Face's beam search behind fairseq's generator."""

import json
import sys
from argparse import Namespace

import pytest
import torch
from fairseq.criterions.label_smoothed_cross_entropy import LabelSmoothedCrossEntropyCriterion
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GenerationConfig,
    ProphetNetForConditionalGeneration,
)
from transformers import ProphetNetConfig as TheirConfig

from mist_fairseq.models.baselines.huggingface_generator import HuggingFaceGenerator, right_padded
from mist_fairseq.models.baselines.prophetnet import ProphetNetConfig, ProphetNetModel
from mist_fairseq.tasks.translation import MistTranslationConfig, MistTranslationTask
from tests.helpers import ragged, tiny_dictionary, tiny_vocab
from tests.models.baselines.plain import options

SIZES = dict(hidden_size=32, encoder_ffn_dim=48, decoder_ffn_dim=64, num_encoder_layers=1, num_decoder_layers=1)
SIZES |= dict(num_encoder_attention_heads=4, num_decoder_attention_heads=2, max_position_embeddings=40)


def twin(dictionary, seed=0, **changes) -> ProphetNetForConditionalGeneration:
    """Hugging Face's own model, with weights large enough that outputs differ from each other."""
    torch.manual_seed(seed)
    sep = dictionary.eos()
    ids = dict(pad_token_id=dictionary.pad(), eos_token_id=sep, bos_token_id=sep, decoder_start_token_id=sep)
    # What the released folder sets for generation must have no effect.
    config = TheirConfig(vocab_size=len(dictionary), **{**SIZES, **ids, "no_repeat_ngram_size": 1, **changes})
    model = ProphetNetForConditionalGeneration(config)
    for parameter in model.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    model.get_input_embeddings().weight.data[sep] *= 4  # so that some outputs end before they have to
    return model.eval()


@pytest.fixture
def folder(dictionary, tmp_path):
    folder = tmp_path / "prophetnet"
    twin(dictionary).save_pretrained(folder)
    (folder / "prophetnet.tokenizer").write_text("\n".join(tiny_vocab()) + "\n", encoding="utf-8")
    return folder


def new_task(dictionary, **changes) -> MistTranslationTask:
    return MistTranslationTask(MistTranslationConfig(data="data-bin", **changes), dictionary, dictionary)


def configuration(**changes) -> ProphetNetConfig:
    return ProphetNetConfig(**{**options(), "max_positions": 40, **changes})


def build(folder, dictionary, **changes) -> ProphetNetModel:
    config = configuration(pretrained=str(folder), **changes)
    return ProphetNetModel.build_model(config, new_task(dictionary)).eval()


def batch(dictionary, source_lengths=(9, 5, 2, 7), target_lengths=(4, 6, 1, 6), left=True, seed=0) -> dict:
    generator = torch.Generator().manual_seed(seed)
    sources = ragged(source_lengths, 40, len(dictionary), dictionary.pad(), generator)
    if left:
        sources = torch.stack([row.roll(max(source_lengths) - n) for row, n in zip(sources, source_lengths)])
    target = ragged(target_lengths, 40, len(dictionary), dictionary.pad(), generator)
    for row, length in enumerate(target_lengths):
        target[row, length - 1] = dictionary.eos()
    previous = target.roll(1, dims=1)
    previous[:, 0] = dictionary.eos()
    previous[target.eq(dictionary.pad())] = dictionary.pad()
    inputs = {"src_tokens": sources, "src_lengths": torch.tensor(source_lengths), "prev_output_tokens": previous}
    return {"target": target, "ntokens": sum(target_lengths), "net_input": inputs}


def test_padding_moves_to_the_right():
    tokens = torch.tensor([[1, 1, 5, 6], [7, 8, 9, 2], [3, 1, 1, 1]])
    assert right_padded(tokens, 1).tolist() == [[5, 6, 1, 1], [7, 8, 9, 2], [3, 1, 1, 1]]


def step_by_step(model, source, previous) -> torch.Tensor:
    """Hugging Face's logits of one sentence, a token at a time as it generates. *Shapes:* (S), (T) -> (T, V)."""
    encoded = model.get_encoder()(input_ids=source[None])
    cache, logits = None, []
    for token in previous:
        output = model(
            encoder_outputs=encoded, decoder_input_ids=token.view(1, 1), past_key_values=cache, use_cache=True
        )
        cache = output.past_key_values
        logits.append(output.logits[0, 0])
    return torch.stack(logits)


@pytest.mark.parametrize("left", [True, False], ids=["left-padded", "right-padded"])
def test_ragged_batches_equal_hugging_faces_single_sentences(left, dictionary, folder):
    theirs, ours = twin(dictionary), build(folder, dictionary)
    sample = batch(dictionary, left=left)
    with torch.no_grad():
        logits = ours(**sample["net_input"])
        for row, (source, previous) in enumerate(
            zip(sample["net_input"]["src_tokens"], sample["net_input"]["prev_output_tokens"])
        ):
            source, previous = source[source != dictionary.pad()], previous[previous != dictionary.pad()]
            expected = step_by_step(theirs, source, previous)
            torch.testing.assert_close(logits[row, : len(previous)], expected, rtol=1e-4, atol=1e-4)
    assert logits.std() > 0.5


def test_no_stream_sees_later_tokens(dictionary, folder):
    """Hugging Face's own streams do: see _relative_position_bias."""
    ours = build(folder, dictionary, dropout=0.0, attention_dropout=0.0, activation_dropout=0.0).train()
    inputs = batch(dictionary)["net_input"]
    shorter = {**inputs, "prev_output_tokens": inputs["prev_output_tokens"][:, :3]}
    with torch.no_grad():
        assert ours(**inputs).shape[:2] == (8, 6)
        torch.testing.assert_close(ours(**inputs)[:, :3], ours(**shorter), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("ngram", [1, 2, 3])
def test_the_loss_in_training_is_hugging_faces_ngram_loss(ngram, dictionary, tmp_path):
    twin(dictionary, ngram=ngram).save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(tiny_vocab()) + "\n", encoding="utf-8")
    ours = build(tmp_path, dictionary, dropout=0.0, attention_dropout=0.0, activation_dropout=0.0).train()
    sample = batch(dictionary)
    criterion = LabelSmoothedCrossEntropyCriterion(new_task(dictionary), sentence_avg=False, label_smoothing=0.0)
    loss, size, _ = criterion(ours, sample)
    tokens = right_padded(sample["net_input"]["src_tokens"], dictionary.pad())
    labels = sample["target"].masked_fill(sample["target"] == dictionary.pad(), -100)
    output = ours.huggingface(
        input_ids=tokens,
        attention_mask=tokens.ne(dictionary.pad()).long(),
        decoder_input_ids=sample["net_input"]["prev_output_tokens"],
        labels=labels,
    )
    assert size == 17
    torch.testing.assert_close(loss, output.loss * ngram * size)
    with torch.no_grad():
        first = criterion(ours.eval(), sample)[0]
    expected = torch.nn.functional.cross_entropy(output.logits.flatten(0, 1), labels.flatten(), reduction="sum")
    torch.testing.assert_close(first, expected)


def test_training_reduces_the_loss(dictionary):
    torch.manual_seed(0)
    task = new_task(dictionary)
    model = ProphetNetModel.build_model(configuration(dropout=0.0), task).train()
    criterion = LabelSmoothedCrossEntropyCriterion(task, sentence_avg=False, label_smoothing=0.1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        loss, size, _ = criterion(model, batch(dictionary))
        (loss / size).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("beam, nbest, lenpen", [(1, 1, 1.0), (4, 1, 1.0), (4, 3, 2.0)])
def test_batches_generate_what_hugging_face_generates_of_single_sentences(beam, nbest, lenpen, dictionary, folder):
    theirs, ours = twin(dictionary), build(folder, dictionary)
    sep = dictionary.eos()
    search = Namespace(beam=beam, nbest=nbest, lenpen=lenpen, max_len_b=12, min_len=2)
    sample = batch(dictionary)
    hypotheses = new_task(dictionary).build_generator([ours], search).generate([ours], sample)
    assert [len(group) for group in hypotheses] == [nbest] * 4
    ended = 0
    for source, group in zip(sample["net_input"]["src_tokens"], hypotheses):
        output = theirs.generate(
            source[source != dictionary.pad()][None],
            num_beams=beam,
            num_return_sequences=nbest,
            length_penalty=lenpen,
            early_stopping=beam > 1,
            max_new_tokens=13,
            min_new_tokens=2,
            no_repeat_ngram_size=0,
            forced_eos_token_id=sep,
            return_dict_in_generate=True,
            output_scores=True,
        )
        for i, (hypothesis, row) in enumerate(zip(group, output.sequences.tolist())):
            tokens = hypothesis["tokens"].tolist()
            assert [sep, *tokens] == row[: 1 + len(tokens)] and set(row[1 + len(tokens) :]) <= {sep, dictionary.pad()}
            assert tokens.count(sep) == 1 and tokens[-1] == sep and 3 <= len(tokens) <= 13
            total = hypothesis["positional_scores"].sum()
            torch.testing.assert_close(hypothesis["score"], total / len(tokens) ** lenpen)
            ended += len(tokens) < 13
            if beam > 1:
                forced = hypothesis["positional_scores"][-1] if len(tokens) == 13 else 0.0  # not counted by theirs
                expected = output.sequences_scores[i] + forced / len(tokens) ** lenpen
                torch.testing.assert_close(hypothesis["score"], expected, rtol=1e-4, atol=1e-4)
    assert ended > 0


def test_any_hugging_face_model_generates(dictionary):
    ids = dict(pad_token_id=dictionary.pad(), eos_token_id=dictionary.eos(), decoder_start_token_id=dictionary.bos())
    sizes = dict(d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2)
    bart = BartForConditionalGeneration(
        BartConfig(vocab_size=len(dictionary), encoder_ffn_dim=16, decoder_ffn_dim=16, **sizes, **ids)
    )
    names = dict(pad=dictionary.pad(), eos=dictionary.eos(), start=dictionary.bos())
    sample, made = batch(dictionary), []
    for _ in range(2):
        generator = HuggingFaceGenerator(bart, **names, options=Namespace(beam=2, max_len_b=5))
        generator.score = False
        hypotheses = generator.generate([bart], sample)
        assert all(group[0]["score"] == 0 and 1 < len(group[0]["tokens"]) <= 6 for group in hypotheses)
        made.append([group[0]["tokens"].tolist() for group in hypotheses])
        bart.generation_config = GenerationConfig(forced_bos_token_id=9, repetition_penalty=9.0)  # has no effect
    assert made[0] == made[1]


@pytest.mark.parametrize(
    "search, message",
    [
        (dict(sampling=True), "--sampling does not work"),
        (dict(prefix_size=2), "--prefix-size does not work"),
        (dict(beam=2, nbest=3), "--nbest <= --beam, got 3 and 2"),
        (dict(min_len=50), "--min-len 50 is too long: at most 37"),
    ],
)
def test_options_that_cannot_work_are_refused(search, message, dictionary):
    model = ProphetNetModel.build_model(configuration(), new_task(dictionary))
    with pytest.raises(ValueError, match=message):
        model.build_generator(dictionary, Namespace(**search))


def test_longest_source_and_target_fit(dictionary):
    model = ProphetNetModel.build_model(configuration(), new_task(dictionary)).eval()
    source, target = model.max_positions()
    assert (source, target) == (39, 38)
    sample = batch(dictionary, source_lengths=(source,), target_lengths=(target,))
    with torch.no_grad():
        model(**sample["net_input"])
    generator = model.build_generator(dictionary, Namespace(beam=2, min_len=target - 1, max_len_b=500))
    assert len(generator.generate([model], sample)[0][0]["tokens"]) == target


@pytest.mark.parametrize("pretrained", [True, False])
def test_a_checkpoint_needs_no_folder(pretrained, dictionary, folder):
    """fairseq loads the task's state, then builds the model from its saved options, then loads the weights."""
    task, config = new_task(dictionary), configuration(pretrained=str(folder) if pretrained else None)
    model = ProphetNetModel.build_model(config, task).eval()
    loaded_task = new_task(dictionary)
    loaded_task.load_state_dict(json.loads(json.dumps(task.state_dict())))
    config.pretrained = "/nowhere" if pretrained else None
    loaded = ProphetNetModel.build_model(config, loaded_task).eval()
    loaded.load_state_dict(model.state_dict(), strict=True)
    sample = batch(dictionary)
    with torch.no_grad():
        assert torch.equal(loaded(**sample["net_input"]), model(**sample["net_input"]))


@pytest.mark.parametrize(
    "name, damage, error, message",
    [
        ("config.json", None, FileNotFoundError, "no config.json"),
        ("config.json", b"{", ValueError, "is not JSON"),
        ("config.json", dict(model_type="bart"), ValueError, "'bart', expected 'prophetnet'"),
        ("config.json", dict(eos_token_id=2), ValueError, "eos_token_id is 2, but by .* it is 4"),
        ("config.json", dict(num_decoder_layers=2), ValueError, "lacks prophetnet.decoder.layers.1"),
        ("config.json", dict(hidden_size=64), ValueError, r"\(131, 32\), the model needs \(131, 64\)"),
        ("config.json", dict(num_encoder_layers=10**9), ValueError, "lacks prophetnet.encoder.layers.9"),
        ("config.json", dict(encoder_ffn_dim=10**12), ValueError, r"the model needs \(1000000000000, 32\)"),
        ("prophetnet.tokenizer", None, FileNotFoundError, "no prophetnet.tokenizer"),
        ("model.safetensors", None, FileNotFoundError, "no model.safetensors"),
        ("model.safetensors", b"x", ValueError, "is damaged"),
    ],
)
def test_folders_that_do_not_fit_are_refused(name, damage, error, message, dictionary, folder):
    path = folder / name
    if damage is None:
        path.unlink()
    else:
        changes = isinstance(damage, dict)
        path.write_bytes(json.dumps(json.loads(path.read_text()) | damage).encode() if changes else damage)
    with pytest.raises(error, match=message):
        build(folder, dictionary)


def test_other_vocabularies_and_left_padded_targets_are_refused(dictionary, folder):
    with pytest.raises(ValueError, match=r"another vocabulary .*--srcdict .*prophetnet.tokenizer"):
        build(folder, tiny_dictionary([*tiny_vocab(), "more"]))
    with pytest.raises(ValueError, match="--left-pad-target"):
        ProphetNetModel.build_model(configuration(), new_task(dictionary, left_pad_target=True))


def test_without_transformers_an_error_says_what_to_install(dictionary, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'mist-fairseq\[huggingface\]'"):
        ProphetNetModel.build_model(configuration(), new_task(dictionary))
