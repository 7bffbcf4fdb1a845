"""Against Hugging Face's BertModel and a plain implementation of UniLM's relative positions."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertModel
from transformers.models.t5.modeling_t5 import T5Attention

from mist_fairseq.data.dictionary import load_dictionary
from mist_fairseq.mist.encoder import Encoder, EncoderConfig, argmax, padding_mask, relative_position_bucket
from mist_fairseq.models.mist import MistConfig, MistModel, PositionLimits
from mist_fairseq.pretrained.folder import load_pretrained, read_sizes
from tests.helpers import bert_state, decode, encode, sources, targets, tiny_model, write_bert_folder


def joint_mask(S, T):
    """The paper's attention mask over one unpadded ``[CLS] X [SEP] Y_M``: 1 where a row may look at a column."""
    mask = torch.zeros(S + T, S + T)
    for row in range(S + T):
        for column in range(S + T):
            if row >= S or column < S:
                mask[row, column] = 1
    return mask


def test_hidden_states_equal_hugging_face(minilm):
    """Real MiniLM weights, a ragged batch of ours against one unpadded joint pass a sentence of theirs."""
    theirs = BertModel.from_pretrained(minilm, add_pooling_layer=False).eval()
    dictionary = load_dictionary(minilm + "/vocab.txt")
    config = MistConfig()
    for name, value in read_sizes(minilm).items():
        setattr(config, name, value)
    config.precision = "fp32"
    ours = MistModel(config, dictionary, PositionLimits(464, 48))
    load_pretrained(ours.encoder, minilm)
    ours.eval()
    source_lengths, target_lengths = [5, 31, 2, 17, 464], [7, 1, 12, 48, 48]
    src, src_lengths = sources(source_lengths, dictionary)
    tgt, tgt_lengths = targets(target_lengths, dictionary)
    tgt[0, ::2] = dictionary.mask()
    with torch.no_grad():
        state = encode(ours, src, src_lengths)
        hidden = decode(ours, tgt, tgt_lengths, state)
        for row, (S, T) in enumerate(zip(source_lengths, target_lengths)):
            expected = theirs(
                input_ids=torch.cat([src[row, :S], tgt[row, :T]])[None],
                attention_mask=joint_mask(S, T)[None],
                token_type_ids=torch.tensor([[0] * S + [1] * T]),
                position_ids=torch.arange(S + T)[None],
            ).last_hidden_state[0]
            torch.testing.assert_close(state.hidden[row, :S], expected[:S], atol=1e-4, rtol=0)
            torch.testing.assert_close(hidden[row], expected[S:], atol=1e-4, rtol=0)


def plain_unilm(state, config, tokens, types, mask):
    """UniLM's forward pass over one joint sequence, with explicit loops over heads and positions."""

    def linear(x, name):
        return x @ state[name + ".weight"].T + state[name + ".bias"]

    def norm(x, name):
        x = (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, unbiased=False, keepdim=True) + 1e-12)
        return x * state[name + ".weight"] + state[name + ".bias"]

    def bucket(relative):
        half = config["rel_pos_bins"] // 2
        exact = half // 2
        offset = half if relative > 0 else 0
        distance = abs(relative)
        if distance < exact:
            return offset + distance
        far = exact + int(math.log(distance / exact) / math.log(config["max_rel_pos"] / exact) * (half - exact))
        return offset + min(far, half - 1)

    length, heads = len(tokens), config["num_attention_heads"]
    x = norm(
        state["bert.embeddings.word_embeddings.weight"][tokens]
        + state["bert.embeddings.position_embeddings.weight"][torch.arange(length)]
        + state["bert.embeddings.token_type_embeddings.weight"][types],
        "bert.embeddings.LayerNorm",
    )
    size = x.shape[1] // heads
    for i in range(config["num_hidden_layers"]):
        layer = f"bert.encoder.layer.{i}."
        fused = x @ state[layer + "attention.self.qkv_linear.weight"].T
        query, key, value = fused.chunk(3, dim=-1)
        query = query + state[layer + "attention.self.q_bias"].flatten()
        value = value + state[layer + "attention.self.v_bias"].flatten()
        outputs = []
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            scores = torch.full((length, length), -float("inf"))
            for row in range(length):
                for column in range(length):
                    if mask[row, column]:
                        bias = state["bert.encoder.rel_pos_bias.weight"][head, bucket(column - row)]
                        scores[row, column] = query[row, part] @ key[column, part] / math.sqrt(size) + bias
            outputs.append(scores.softmax(-1) @ value[:, part])
        attended = linear(torch.cat(outputs, dim=-1), layer + "attention.output.dense")
        x = norm(x + attended, layer + "attention.output.LayerNorm")
        inner = torch.nn.functional.gelu(linear(x, layer + "intermediate.dense"))
        x = norm(x + linear(inner, layer + "output.dense"), layer + "output.LayerNorm")
    return x


def unilm_state(vocab_size, config):
    state = bert_state(vocab_size, config)
    generator = torch.Generator().manual_seed(3)
    for i in range(config["num_hidden_layers"]):
        layer = f"bert.encoder.layer.{i}.attention.self."
        parts = [state.pop(f"{layer}{name}.weight") for name in ("query", "key", "value")]
        state[layer + "qkv_linear.weight"] = torch.cat(parts)
        state[layer + "q_bias"] = state.pop(layer + "query.bias")[None, None]
        state[layer + "v_bias"] = state.pop(layer + "value.bias")[None, None]
        del state[layer + "key.bias"]
    shape = config["num_attention_heads"], config["rel_pos_bins"]
    state["bert.encoder.rel_pos_bias.weight"] = torch.randn(shape, generator=generator)
    return state


def test_unilm_equals_a_plain_implementation(tmp_path, dictionary):
    config = dict(
        num_hidden_layers=2,
        num_attention_heads=4,
        rel_pos_bins=8,
        max_rel_pos=12,
        type_vocab_size=6,
        source_type_id=4,
        target_type_id=5,
    )
    state = unilm_state(len(dictionary), config)
    folder = write_bert_folder(tmp_path / "unilm", state, config)
    sizes = MistConfig()
    for name, value in read_sizes(str(folder)).items():
        setattr(sizes, name, value)
    sizes.precision = "fp32"
    model = MistModel(sizes, dictionary, PositionLimits(40, 20)).eval()
    load_pretrained(model.encoder, str(folder))
    source_lengths, target_lengths = [4, 19, 11], [15, 3, 1]
    src, src_lengths = sources(source_lengths, dictionary)
    tgt, tgt_lengths = targets(target_lengths, dictionary)
    with torch.no_grad():
        encoded = encode(model, src, src_lengths)
        hidden = decode(model, tgt, tgt_lengths, encoded)
    for row, (S, T) in enumerate(zip(source_lengths, target_lengths)):
        tokens = torch.cat([src[row, :S], tgt[row, :T]])
        types = torch.tensor([4] * S + [5] * T)
        expected = plain_unilm(state, {**config, "hidden_size": 32}, tokens, types, joint_mask(S, T))
        torch.testing.assert_close(encoded.hidden[row, :S], expected[:S], atol=1e-4, rtol=0)
        torch.testing.assert_close(hidden[row], expected[S:], atol=1e-4, rtol=0)


@pytest.mark.parametrize("bins, distance", [(32, 128), (8, 12)])
def test_buckets_equal_t5(bins, distance):
    relative = torch.arange(-300, 301)
    expected = T5Attention._relative_position_bucket(relative, num_buckets=bins, max_distance=distance)
    assert torch.equal(relative_position_bucket(relative, bins, distance), expected)


@pytest.mark.parametrize("rel_pos_bins", [0, 8])
def test_a_sentence_alone_equals_the_sentence_in_a_batch(dictionary, rel_pos_bins):
    model = tiny_model(dictionary, rel_pos_bins=rel_pos_bins)
    src, src_lengths = sources([9, 3, 14], dictionary)
    tgt, tgt_lengths = targets([4, 11, 1], dictionary)
    with torch.no_grad():
        state = encode(model, src, src_lengths)
        hidden = decode(model, tgt, tgt_lengths, state)
        lengths = model.encoder.length_logits(state)
        for row in range(3):
            S, T = int(src_lengths[row]), int(tgt_lengths[row])
            alone = encode(model, src[row : row + 1, :S], src_lengths[row : row + 1])
            torch.testing.assert_close(alone.hidden[0], state.hidden[row, :S], atol=1e-4, rtol=0)
            torch.testing.assert_close(model.encoder.length_logits(alone)[0], lengths[row], atol=1e-4, rtol=0)
            again = decode(model, tgt[row : row + 1, :T], tgt_lengths[row : row + 1], alone)
            torch.testing.assert_close(again[0], hidden[row], atol=1e-4, rtol=0)


@pytest.mark.parametrize("rel_pos_bins", [0, 8])
@pytest.mark.parametrize("guesses", [[[4], [11], [2]], [[4, 9], [2, 3], [20, 2]], [[5, 2, 20], [7, 7, 6], [3, 4, 5]]])
def test_guesses_equal_separate_passes(dictionary, rel_pos_bins, guesses):
    """One pass over a source and targets of several lengths, against a pass for each; neither sees the others."""
    model = tiny_model(dictionary, rel_pos_bins=rel_pos_bins, token_types=6, source_type_id=4, target_type_id=5)
    src, src_lengths = sources([9, 3, 14], dictionary)
    with torch.no_grad():
        state, hidden = model.encoder.encode_and_guess(src, src_lengths, torch.tensor(guesses), dictionary.mask())
        assert hidden.shape == (3, len(guesses[0]), max(map(max, guesses)), 32)
        for row, lengths in enumerate(guesses):
            S = int(src_lengths[row])
            alone = encode(model, src[row : row + 1, :S], src_lengths[row : row + 1])
            torch.testing.assert_close(state.hidden[row, :S], alone.hidden[0], atol=1e-4, rtol=0)
            for found, expected in zip(state.keys + state.values, alone.keys + alone.values):
                torch.testing.assert_close(found[row, :, :S], expected[0], atol=1e-4, rtol=0)
            for k, length in enumerate(lengths):
                masks = torch.full((1, length), dictionary.mask())
                expected = decode(model, masks, torch.tensor([length]), alone)[0]
                torch.testing.assert_close(hidden[row, k, :length], expected, atol=1e-4, rtol=0)


def test_guesses_leave_a_source_state_to_decode_with(dictionary):
    model = tiny_model(dictionary)
    src, src_lengths = sources([9, 3, 14], dictionary)
    tgt, tgt_lengths = targets([4, 11, 1], dictionary)
    with torch.no_grad():
        state, _ = model.encoder.encode_and_guess(src, src_lengths, tgt_lengths[:, None] + 1, dictionary.mask())
        separate = encode(model, src, src_lengths)
        assert torch.equal(state.lengths, src_lengths)
        torch.testing.assert_close(
            model.encoder.length_logits(state), model.encoder.length_logits(separate), atol=1e-4, rtol=0
        )
        for found, expected in zip(*(decode(model, tgt, tgt_lengths, each) for each in (state, separate))):
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_guesses_reach_exactly_to_the_last_position(dictionary):
    model = tiny_model(dictionary, source=44, target=20, max_positions=64)
    src, src_lengths = sources([44, 5], dictionary)
    guesses = torch.tensor([[20, 1], [20, 1]])
    with torch.no_grad():
        _, hidden = model.encoder.encode_and_guess(src, src_lengths, guesses, dictionary.mask())
        masks = torch.full((2, 20), dictionary.mask())
        expected = decode(model, masks, guesses[:, 0], encode(model, src, src_lengths))
    for row in range(2):
        torch.testing.assert_close(hidden[row, 0], expected[row], atol=1e-4, rtol=0)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 5), st.integers(1, 600), st.sampled_from([1, 7, 128]), st.integers(1, 50), st.integers(0, 10**6))
def test_argmax_equals_torchs(rows, width, block, different, seed):
    """Of equal scores the first, in blocks that do and do not divide the width."""
    generator = torch.Generator().manual_seed(seed)
    random = torch.randn(rows, width, generator=generator)
    tied = torch.randint(different, (rows, width), generator=generator).float()
    for scores in (random, tied, tied.masked_fill(tied > different // 2, float("-inf"))):
        assert torch.equal(argmax(scores, block), scores.argmax(1))


@pytest.mark.parametrize("width", [1, 127, 128, 129, 256, 30522])
def test_argmax_in_the_first_and_last_place(width):
    scores = torch.zeros(4, width)
    scores[1, -1] = scores[2, 0] = 1
    scores[3] = float("-inf")
    assert argmax(scores).tolist() == [0, width - 1, 0, 0]


def test_length_is_read_from_the_mean_of_the_source(dictionary):
    model = tiny_model(dictionary)
    src, src_lengths = sources([9, 3], dictionary)
    state = encode(model, src, src_lengths)
    for row, length in enumerate((9, 3)):
        expected = state.hidden[row, :length].mean(0) @ model.encoder.length_head.weight.T
        torch.testing.assert_close(model.encoder.length_logits(state)[row], expected, atol=1e-5, rtol=1e-5)


def test_positions_reach_exactly_to_the_end(dictionary):
    """A full source and a full target use the last position, and padding beyond it does no harm."""
    model = tiny_model(dictionary, source=44, target=20, max_positions=64)
    src, src_lengths = sources([44, 5], dictionary)
    tgt, tgt_lengths = targets([20, 2], dictionary)
    state = encode(model, src, src_lengths)
    hidden = decode(model, tgt, tgt_lengths, state)
    assert all(rows.isfinite().all() for rows in hidden)


def test_masks_do_not_depend_on_token_values(dictionary):
    model = tiny_model(dictionary)
    src, src_lengths = sources([6], dictionary)
    src[0, 2] = dictionary.pad()  # a real token with padding's id still counts
    changed = src.clone()
    changed[0, 2] = 50
    state, other = (encode(model, tokens, src_lengths) for tokens in (src, changed))
    assert not torch.allclose(state.hidden[0, 0], other.hidden[0, 0])


def test_untied_head_starts_as_a_copy():
    encoder = Encoder(EncoderConfig(50, 16, 1, 2, 32, untie_head=True))
    assert torch.equal(encoder.head.weight, encoder.word_embeddings.weight)
    assert encoder.head.weight.data_ptr() != encoder.word_embeddings.weight.data_ptr()


@pytest.mark.parametrize("sizes, message", [({"heads": 5}, "5 attention heads"), ({"target_type": 2}, "target token")])
def test_impossible_sizes_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        EncoderConfig(50, 32, 1, **{"heads": 4, **sizes})


def test_padding_mask():
    assert padding_mask(torch.tensor([2, 0]), 3).tolist() == [[True, True, False], [False, False, False]]
