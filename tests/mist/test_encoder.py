"""Against Hugging Face's BertModel and a plain implementation of UniLM's relative positions."""

import math

import pytest
import torch
from transformers import BertModel

from mist_fairseq.data.dictionary import load_dictionary
from mist_fairseq.mist.config import OPTION_NAMES, EncoderConfig, PositionLimits
from mist_fairseq.mist.encoder import Encoder
from mist_fairseq.pretrained.weights import load_pretrained, read_sizes
from mist_fairseq.release.folder import Released
from tests.helpers import (
    bert_state,
    decode,
    encode,
    flat,
    joint_mask,
    sources,
    targets,
    tiny_encoder_decoder,
    tiny_released,
    write_bert_folder,
)


def pretrained(folder, dictionary) -> Released:
    """The encoder of a folder of BERT's or UniLM's."""
    sizes = {OPTION_NAMES[option]: value for option, value in read_sizes(str(folder)).items()}
    encoder = Encoder(EncoderConfig(len(dictionary), **sizes)).eval()
    load_pretrained(encoder, str(folder))
    return Released(encoder, dictionary.tokenizer, PositionLimits(464, 48))


def test_hidden_states_equal_hugging_face(minilm):
    """Real MiniLM weights, a ragged batch of ours against one unpadded joint pass a sentence of theirs."""
    theirs = BertModel.from_pretrained(minilm, add_pooling_layer=False).eval()
    dictionary = load_dictionary(minilm + "/vocab.txt")
    ours = pretrained(minilm, dictionary)
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
    model = pretrained(write_bert_folder(tmp_path / "unilm", state, config), dictionary)
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


def relative(dictionary) -> Released:
    return tiny_released(dictionary, rel_pos_bins=8)


@pytest.mark.parametrize("build", [tiny_released, relative, tiny_encoder_decoder])
def test_a_sentence_alone_equals_the_sentence_in_a_batch(dictionary, build):
    model = build(dictionary)
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


def test_positions_reach_exactly_to_the_end(dictionary):
    """A full source and a full target use the last position, and padding beyond it does no harm."""
    model = tiny_released(dictionary, source=44, target=20, max_positions=64)
    src, src_lengths = sources([44, 5], dictionary)
    tgt, tgt_lengths = targets([20, 2], dictionary)
    state = encode(model, src, src_lengths)
    hidden = decode(model, tgt, tgt_lengths, state)
    assert all(rows.isfinite().all() for rows in hidden)


def test_masks_do_not_depend_on_token_values(dictionary):
    model = tiny_released(dictionary)
    src, src_lengths = sources([6], dictionary)
    src[0, 2] = dictionary.pad()  # a real token with padding's id still counts
    changed = src.clone()
    changed[0, 2] = 50
    state, other = (encode(model, tokens, src_lengths) for tokens in (src, changed))
    assert not torch.allclose(state.hidden[0, 0], other.hidden[0, 0])


@pytest.mark.parametrize("learn", [False, True])
def test_a_source_state_keeps_no_queries(dictionary, learn):
    """In inference, and in training that computes the layers again."""
    model = tiny_released(dictionary)
    model.encoder.checkpoint_activations = learn
    with torch.set_grad_enabled(learn):
        state = encode(model, *sources([9, 4], dictionary))
    for key, value in zip(state.keys, state.values, strict=True):
        held = {part.untyped_storage().data_ptr(): part.untyped_storage().nbytes() for part in (key, value)}
        assert sum(held.values()) == key.nbytes + value.nbytes


@pytest.mark.parametrize("sizes", [{}, {"shared_layers": True}, {"rel_pos_bins": 8, "max_rel_pos": 12}], ids=str)
def test_layers_that_are_computed_again_give_the_same_gradients(dictionary, sizes):
    """With dropout, whose random numbers are drawn again; and much less is kept."""
    gradients, kept = [], []
    for again in (False, True):
        model = tiny_released(dictionary, dropout=0.1, attention_dropout=0.1, layers=6, **sizes)
        encoder = model.encoder.train()
        encoder.checkpoint_activations = again
        held: dict[int, int] = {}

        def keep(tensor, held=held):
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        torch.manual_seed(3)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            state = encode(model, *sources([9, 4, 30], dictionary))
            hidden = encoder.decode_target(*targets([5, 12, 7], dictionary), flat([5, 12, 7]), state)
        hidden.square().sum().backward()
        gradients.append([parameter.grad for parameter in encoder.layers.parameters()])
        kept.append(sum(held.values()))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)
    assert kept[1] < kept[0] / 2, kept
