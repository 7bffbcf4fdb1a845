"""MASS (Song et al. 2019), the paper's autoregressive baseline: fairseq's transformer with MASS's sizes and weights.

``read_mass`` reads what ``--pretrained`` names, here and for ``nat_mass``: a folder with ``mass-base-uncased.pt`` and
``dict.txt`` as microsoft/MASS publishes them for summarization (its ``MASS-summarization/mass/s2s_model.py``).
"""

import logging
from pathlib import Path

import torch
from fairseq.models import register_model, register_model_architecture
from fairseq.models.transformer import TransformerModel, base_architecture
from torch import Tensor

from mist_fairseq.data.dictionary import TokenizerDictionary
from mist_fairseq.pretrained.bert import read_weights

logger = logging.getLogger(__name__)

MASS_POSITIONS = 512  # of the encoder and of the decoder
WEIGHTS, VOCABULARY = "mass-base-uncased.pt", "dict.txt"
PRETRAINED_HELP = f"folder with {WEIGHTS} and {VOCABULARY} of microsoft/MASS: the initial weights"


def check_mass_dictionary(folder: str, dictionary: TokenizerDictionary):
    """Refuse data that was binarized with another vocabulary than the folder's ``dict.txt``, lines ``token count``.

    Raises:
        FileNotFoundError: the folder has no dict.txt.
        ValueError: its tokens are not the data's.
    """
    path = Path(folder) / VOCABULARY
    if not path.is_file():
        raise FileNotFoundError(f"--pretrained {folder}: there is no {VOCABULARY} in it")
    lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    expected = [line.rpartition(" ")[0] for line in lines]
    if expected != dictionary.symbols:
        raise ValueError(
            f"the data was binarized with another vocabulary ({len(dictionary)} entries) than {path} "
            f"({len(expected)} entries): run fairseq-preprocess with --joined-dictionary --srcdict and the vocab.txt "
            "of BERT (uncased)"
        )


def read_mass(
    folder: str, vocab_size: int, hidden_size: int, ffn_size: int, encoder_layers: int, decoder_layers: int, pad: int
) -> dict[str, Tensor]:
    """MASS's weights under MASS's names, query, key and value of each attention apart and in this order.

    Older files hold the three as one ``in_proj_weight`` and ``in_proj_bias``.

    Args:
        folder: with ``mass-base-uncased.pt``, a state dict.
        vocab_size, hidden_size, ffn_size, encoder_layers, decoder_layers: what the model has.
        pad: id of [PAD]; positions count from ``pad + 1``.

    Raises:
        FileNotFoundError: there is no weights file.
        ValueError: it cannot be read, lacks a weight, has one too many or one of another shape (names the weight).
    """
    path = Path(folder) / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"--pretrained {folder}: there is no {WEIGHTS} in it")
    state = _split_attention(read_weights(path))
    shapes = _shapes(vocab_size, hidden_size, ffn_size, encoder_layers, decoder_layers, pad)
    missing, unknown = sorted(shapes.keys() - state.keys()), sorted(state.keys() - shapes.keys())
    sizes = f"a model of {encoder_layers} --encoder-layers and {decoder_layers} --decoder-layers"
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing[:3])} ({len(missing)} in all), which {sizes} needs")
    if unknown:
        raise ValueError(f"{path} has {', '.join(unknown[:3])} ({len(unknown)} in all), unknown to {sizes}")
    for name, shape in shapes.items():
        if state[name].shape != shape:
            raise ValueError(f"{path}: {name} has shape {tuple(state[name].shape)}, the model needs {shape}")
    if not torch.equal(state["encoder.embed_tokens.weight"], state["decoder.embed_tokens.weight"]):
        raise ValueError(
            f"{path}: encoder.embed_tokens.weight and decoder.embed_tokens.weight differ, MASS shares them"
        )
    logger.info("%d tensors in %s", len(shapes), path)
    return {name: state[name] for name in shapes}


def _split_attention(state: dict[str, Tensor]) -> dict[str, Tensor]:
    split = {}
    for name, tensor in state.items():
        prefix, fused, kind = name.rpartition("in_proj_")
        if fused:
            for projection, part in zip("qkv", tensor.chunk(3)):
                split[f"{prefix}{projection}_proj.{kind}"] = part
        elif name not in ("encoder.version", "decoder.version"):
            split[name] = tensor
    return split


def _shapes(V: int, D: int, ffn: int, encoder_layers: int, decoder_layers: int, pad: int) -> dict[str, tuple[int, ...]]:
    """MASS's weights and their shapes; of an attention query, key and value follow each other."""
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name, out, size):
        shapes[name + ".weight"], shapes[name + ".bias"] = (out, size), (out,)

    def norm(name):
        shapes[name + ".weight"] = shapes[name + ".bias"] = (D,)

    sides = {"encoder": (encoder_layers, ["self_attn"]), "decoder": (decoder_layers, ["self_attn", "encoder_attn"])}
    for side, (layers, attentions) in sides.items():
        shapes[f"{side}.embed_tokens.weight"] = (V, D)
        shapes[f"{side}.embed_positions.weight"] = (pad + 1 + MASS_POSITIONS, D)
        norm(f"{side}.emb_layer_norm")
        for i in range(layers):
            layer = f"{side}.layers.{i}."
            for attention in attentions:
                for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
                    linear(f"{layer}{attention}.{projection}", D, D)
                norm(f"{layer}{attention}_layer_norm")
            linear(layer + "fc1", ffn, D)
            linear(layer + "fc2", D, ffn)
            norm(layer + "final_layer_norm")
    return shapes


@register_model("mass")
class MassModel(TransformerModel):
    """fairseq's transformer, with ``--pretrained``. Args: as fairseq's."""

    @classmethod
    def add_args(cls, parser):
        """fairseq's options and ``--pretrained``."""
        super().add_args(parser)
        parser.add_argument("--pretrained", metavar="DIR", help=PRETRAINED_HELP)

    @classmethod
    def build_model(cls, args, task):
        """Build the model; when training starts, with the weights of ``--pretrained``.

        Raises:
            ValueError: the task's limit of the source is beyond MASS's positions, or the weights do not fit.
        """
        limit = task.max_positions()[0]
        if limit > MASS_POSITIONS:
            raise ValueError(f"--max-source-positions {limit} exceeds MASS's {MASS_POSITIONS} positions: lower it")
        # The tables of positions are MASS's, whatever the task cuts its sources to.
        args.max_source_positions = args.max_target_positions = MASS_POSITIONS
        model = super().build_model(args, task)
        if args.pretrained:
            check_mass_dictionary(args.pretrained, task.source_dictionary)
            model.load_mass(args.pretrained)
            # The configuration that checkpoints store: a checkpoint needs the folder no more.
            args.pretrained = None
        return model

    def load_mass(self, folder: str):
        """Load MASS's weights; errors as in ``read_mass``."""
        dictionary, args = self.encoder.dictionary, self.args
        state = read_mass(
            folder,
            len(dictionary),
            args.encoder_embed_dim,
            args.encoder_ffn_embed_dim,
            args.encoder_layers,
            args.decoder_layers,
            dictionary.pad(),
        )
        state = {name.replace("emb_layer_norm", "layernorm_embedding"): tensor for name, tensor in state.items()}
        state["decoder.output_projection.weight"] = state["decoder.embed_tokens.weight"]
        self.load_state_dict(self.state_dict() | state)


@register_model_architecture("mass", "mass_base")
def mass_base(args):
    """6 + 6 layers, 768 wide, 12 heads: MASS-base."""
    args.pretrained = getattr(args, "pretrained", None)
    args.encoder_learned_pos = args.decoder_learned_pos = True
    args.layernorm_embedding = args.share_all_embeddings = True
    args.activation_fn = getattr(args, "activation_fn", "gelu")
    args.encoder_embed_dim = getattr(args, "encoder_embed_dim", 768)
    args.encoder_ffn_embed_dim = getattr(args, "encoder_ffn_embed_dim", 3072)
    args.encoder_attention_heads = getattr(args, "encoder_attention_heads", 12)
    args.decoder_attention_heads = getattr(args, "decoder_attention_heads", args.encoder_attention_heads)
    args.attention_dropout = getattr(args, "attention_dropout", 0.1)
    args.activation_dropout = getattr(args, "activation_dropout", 0.1)
    base_architecture(args)
