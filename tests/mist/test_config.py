import pytest

from mist_fairseq.mist.config import EncoderConfig, EncoderDecoderConfig, PositionLimits, SpecialTokens


def test_special_tokens_that_no_target_has():
    assert SpecialTokens(pad=0, unk=1, cls=2, sep=3, mask=4, others=(7, 9)).never_predicted == (0, 2, 4, 1, 7, 9)


@pytest.mark.parametrize(
    "sizes, message",
    [
        ({"activation": "swish"}, "activation is 'swish', expected one of gelu, "),
        ({"rotary_base": 1e4, "heads": 32}, "rotary positions need heads of an even size, not 1"),
        ({"local_window": 4, "rel_pos_bins": 8}, "local layers go with no relative position bias"),
        ({"local_window": 4, "global_every": 0}, "each n-th sees all, from n = 1 on"),
        ({"local_window": 4, "rotary_base": 1e4}, "rotary positions need two bases"),
        ({"heads": 5}, "hidden size 32 is not a multiple of the 5 attention heads"),
        ({"heads": 0}, "0 attention heads"),
        ({"source_type": -1}, "source token type -1 is not one of the 2"),
        ({"target_type": 2}, "target token type 2 is not one of the 2"),
        ({"rel_pos_bins": 3, "max_rel_pos": 8}, "3 buckets of relative positions up to 8"),
        ({"rel_pos_bins": 32, "max_rel_pos": 8}, "32 buckets of relative positions up to 8"),
        ({"head": "crf"}, "head is 'crf', expected one of length, dag"),
        ({"head": "dag", "upsample": 0}, "--upsample 0 --least-vertices 48: expected at least 1, 3"),
        ({"head": "dag", "least_vertices": 2}, "--upsample 4 --least-vertices 2: expected at least 1, 3"),
        ({"head": "dag", "copy_head": True}, "--copy-head is for --head length"),
    ],
)
def test_impossible_sizes_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        EncoderConfig(50, 32, 1, **{"heads": 4, **sizes})


def test_limits_beyond_the_positions_are_refused():
    encoder = EncoderConfig(50, max_positions=64, length_classes=32)
    encoder.check_limits(PositionLimits(33, 31))
    with pytest.raises(ValueError, match="45 .* 20 = 65 exceed the model's 64 positions"):
        encoder.check_limits(PositionLimits(45, 20))
    with pytest.raises(ValueError, match="--max-target-positions 32 needs more than 32 --length-classes"):
        encoder.check_limits(PositionLimits(20, 32))


def test_an_encoder_decoder_has_positions_for_both():
    config = EncoderDecoderConfig(50, max_positions=64, length_classes=64)
    config.check_limits(PositionLimits(64, 63))
    for limits, message in (((65, 9), "--max-source-positions 65 exceeds"), ((9, 65), "--max-target-positions 65")):
        with pytest.raises(ValueError, match=message):
            config.check_limits(PositionLimits(*limits))
    with pytest.raises(ValueError, match="needs more than 64 --length-classes"):
        config.check_limits(PositionLimits(9, 64))
    with pytest.raises(ValueError, match="not a multiple of the 7 attention heads"):
        EncoderDecoderConfig(50, heads=7)
