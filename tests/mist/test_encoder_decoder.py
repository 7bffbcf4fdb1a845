"""MASS's network; BANG's and MASS's against plain forwards are in tests/models/baselines."""

import copy

import pytest
import torch

from mist_fairseq.mist.encoder_decoder import BUCKETS, RelativeSelfAttention
from tests.helpers import decode, encode, sources, targets, tiny_encoder_decoder


def test_the_decoder_sees_the_whole_target_and_source(dictionary):
    model = tiny_encoder_decoder(dictionary)
    src, src_lengths = sources([6], dictionary)
    tgt, tgt_lengths = targets([5], dictionary)

    def first_row(src, tgt):
        with torch.no_grad():
            return decode(model, tgt, tgt_lengths, encode(model, src, src_lengths))[0][0]

    later, other = tgt.clone(), src.clone()
    later[0, 3], other[0, 4] = 41, 41
    before = first_row(src, tgt)
    assert (before - first_row(src, later)).abs().max() > 1e-3
    assert (before - first_row(other, tgt)).abs().max() > 1e-3


def test_positions_of_source_and_target_are_apart(dictionary):
    model = tiny_encoder_decoder(dictionary)
    src, lengths = sources([512], dictionary)
    with torch.no_grad():
        assert decode(model, src, lengths, encode(model, src, lengths))[0].shape == (512, 32)


def test_weights_kept_in_bf16_give_what_autocast_gives(dictionary):
    model = tiny_encoder_decoder(dictionary)
    kept = copy.deepcopy(model)
    kept.encoder.keep_in_(torch.bfloat16)
    assert kept.encoder.decoder.layers[0].cross_attention.query.weight.dtype == torch.bfloat16
    (src, src_lengths), (tgt, tgt_lengths) = sources([9, 4], dictionary), targets([5, 7], dictionary)
    outputs = []
    for one in (model, kept):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            source = encode(one, src, src_lengths)
            hidden = torch.cat(decode(one, tgt, tgt_lengths, source))
            outputs.append((source.hidden, one.encoder.length_logits(source), one.encoder.token_logits(hidden)))
    assert all(torch.equal(*pair) for pair in zip(*outputs))


@pytest.mark.parametrize("real", [[1, 1, 1], [1, 1, 0], [0, 1, 1]], ids=["whole", "right-padded", "left-padded"])
def test_bangs_positions_see_themselves_and_those_before(real):
    buckets = RelativeSelfAttention.buckets(torch.tensor([real], dtype=torch.bool))[0, 0].tolist()
    for query, row in enumerate(buckets):
        assert row == [query - key if key <= query and real[key] else BUCKETS for key in range(3)]
