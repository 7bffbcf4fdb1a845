"""An encoder's weights as arrays, for engines that are not PyTorch.

Dimensions as in ``mist.encoder``; I inputs and O outputs of a product.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

    from mist_fairseq.mist.config import SpecialTokens
    from mist_fairseq.mist.encoder import Encoder

TOKEN_BLOCK = 128  # tokens whose largest score is found at once: tables of tokens have rows for whole blocks


def rounded(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """8-bit integers, and a scale for each row. *Shapes:* (O, I) -> (O, I), (O)."""
    scales = np.abs(matrix).max(axis=1).clip(1e-12) / np.float32(127)
    return np.rint(matrix / scales[:, None]).astype(np.int8), scales


def padded(weight: "torch.Tensor", value: float = 0.0) -> "torch.Tensor":
    """With rows for whole blocks of tokens. *Shape:* (V, ...) -> (blocks * TOKEN_BLOCK, ...)."""
    import torch.nn.functional as F

    missing = -len(weight) % TOKEN_BLOCK
    return F.pad(weight.detach().float(), (*(0, 0) * (weight.dim() - 1), 0, missing), value=value)


def head_bias(encoder: "Encoder", special: "SpecialTokens") -> "torch.Tensor":
    """The head's last bias, -inf for tokens that are never predicted. *Shape:* (blocks * TOKEN_BLOCK)."""
    import torch

    never = torch.tensor(special.never_predicted)
    return padded(encoder.head.bias.detach().float().cpu().index_fill(0, never, -torch.inf), -torch.inf)


def bias_by_distance(encoder: "Encoder") -> "torch.Tensor":
    """What attention adds by the distance of key from query, -farthest to farthest. *Shape:* (2 * farthest + 1, H)."""
    import torch

    from mist_fairseq.mist.layers import relative_position_bucket

    config, farthest = encoder.config, encoder.config.max_positions - 1
    distances = torch.arange(-farthest, farthest + 1)
    buckets = relative_position_bucket(distances, config.rel_pos_bins, config.max_rel_pos)
    weight: torch.Tensor = encoder.relative_bias.weight  # type: ignore[union-attr]
    return weight.detach().float().cpu().t()[buckets]


def check_heads(encoder: "Encoder") -> None:
    """ValueError if a head is of another kind than those that engines outside PyTorch write out."""
    from mist_fairseq.mist.copying import CopyHead
    from mist_fairseq.mist.dag import TransitionHead
    from mist_fairseq.mist.heads import LengthHead, MaskedLMHead

    heads = (encoder.length_head, LengthHead), (encoder.head, MaskedLMHead), (encoder.copy_head, CopyHead)
    for head, written in (*heads, (encoder.transition_head, TransitionHead)):
        if head is not None and type(head) is not written:
            raise ValueError(f"there is {written.__name__} only, not {type(head).__name__}: use --accelerate none")


def int8_weights(encoder: "Encoder", special: "SpecialTokens") -> dict[str, np.ndarray]:
    """What an int8 ONNX folder holds, see ``release.onnx_folder``, under the encoder's names.

    Matrices of products and the word embeddings are rounded, with their scales under ``NAME.scale``. ValueError as of
    ``check_heads``.
    """
    check_heads(encoder)
    tables = {"word_embeddings.weight", "head.weight"}
    precise = {"position_embeddings.weight", "type_embeddings.weight", "length_head.weight", "copy_head.weight"}
    precise |= {"transition_head.query_key.weight", "transition_head.gate.weight"}
    replaced = {"head.bias": head_bias(encoder, special)}
    if encoder.relative_bias is not None:
        replaced["relative_bias.weight"] = bias_by_distance(encoder)
    weights: dict[str, np.ndarray] = {}
    for name, value in encoder.state_dict().items():
        value = padded(value) if name in tables else replaced.get(name, value)
        array: Any = value.detach().float().cpu().numpy()
        if array.ndim == 2 and name not in {*precise, *replaced}:
            weights[name], weights[f"{name}.scale"] = rounded(array)
        else:
            weights[name] = np.array(array)
    return weights
