"""How big a model's configuration says that it is, compared with the file of its weights before any memory is taken."""

from collections.abc import Mapping
from functools import partial

# Beside four times the weights of the file, for what it may lack: heads, a length classifier, layers left out.
_SLACK = 10_000_000
# A layer takes as much time and memory as if it had so many, at least.
_LAYER = 10_000


def fewest_parameters(options: Mapping, vocab_size: int = 1) -> int:
    """A lower bound of a Transformer's or LSTM's parameters, with a table of positions, learnt or not.

    Args:
        options: of a model, under fairseq's names (``encoder_layers``, ``decoder_ffn_embed_dim``, ...).
        vocab_size: V, where the options have none.

    Raises:
        ValueError: a size is negative.
    """
    size = partial(_size, options)
    vocab_size = max(vocab_size, size("vocab_size"))
    total, rows = 0, sum(map(size, ("max_positions", "token_types", "length_classes")))
    for side, positions in (("encoder", "max_source_positions"), ("decoder", "max_target_positions")):
        width = size(f"{side}_embed_dim") or size("encoder_embed_dim")
        layer = 4 * width**2 + 2 * width * size(f"{side}_ffn_embed_dim") + 4 * size(f"{side}_hidden_size") ** 2
        total += size(f"{side}_layers") * layer
        total += (size(positions) + size(f"{side}_output_dim")) * width
        total += size(f"{side}_out_embed_dim") * (size(f"{side}_hidden_size") or width)  # an LSTM's
    buckets = size("rel_pos_bins") * max(size("encoder_attention_heads"), 1)
    return total + (vocab_size + rows) * size("encoder_embed_dim") + buckets


def _size(options: Mapping, name: str) -> int:
    try:
        value = int(options.get(name) or 0)
    except (TypeError, ValueError, OverflowError):
        return 0  # whoever builds the model will say so
    if value < 0:
        raise ValueError(f"{name} is {value}, expected a number from 0")
    return value


def check_size(options: Mapping, available: int, source: str, vocab_size: int = 1):
    """Refuse a configuration of a far bigger model than there are weights.

    Args:
        options: as of ``fewest_parameters``.
        available: the number of weights.
        source: the file, for messages.
        vocab_size: V.

    Raises:
        ValueError: it is, or a size is negative.
    """
    try:
        needed = fewest_parameters(options, vocab_size)
        layers = _size(options, "encoder_layers") + _size(options, "decoder_layers")
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    needed = max(needed, layers * _LAYER)
    if needed > 4 * available + _SLACK:
        raise ValueError(
            f"{source}: its configuration is that of a model of at least {min(needed, 10**18):,} weights, but there "
            f"are {available:,}: the sizes are wrong or the weights belong to another model"
        )


def prophetnet_sizes(config: Mapping) -> dict[str, int]:
    """Hugging Face's configuration of a ProphetNet under fairseq's names, as far as it sets the number of weights.

    Raises:
        ValueError, TypeError: a size is no number.
    """
    buckets = int(config.get("num_buckets", 32)) * int(config.get("num_decoder_attention_heads", 16))
    return {
        "encoder_layers": int(config.get("num_encoder_layers", 12)),
        "decoder_layers": int(config.get("num_decoder_layers", 12)),
        "encoder_embed_dim": int(config.get("hidden_size", 1024)),
        "encoder_ffn_embed_dim": int(config.get("encoder_ffn_dim", 4096)),
        "decoder_ffn_embed_dim": int(config.get("decoder_ffn_dim", 4096)),
        "max_positions": int(config.get("max_position_embeddings", 512)),
        "token_types": int(config.get("ngram", 2)) + buckets,
        "vocab_size": int(config.get("vocab_size", 30522)),
    }
