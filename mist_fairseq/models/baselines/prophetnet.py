"""ProphetNet (Qi et al. 2020), an autoregressive baseline of the paper: Hugging Face's model as one of fairseq's.

Needs the extra ``huggingface``. The vocabulary is BERT-uncased's, and ``prophetnet.tokenizer`` its ``vocab.txt``.
"""

import json
import logging
import types
from dataclasses import dataclass
from typing import Any, Optional

import torch
from fairseq.models import BaseFairseqModel, register_model
from torch import Tensor, nn

from mist_fairseq.generate.decoding import option
from mist_fairseq.models.baselines.huggingface_generator import HuggingFaceGenerator, import_transformers, right_padded
from mist_fairseq.models.baselines.nat_mass import EncoderDecoderOptions
from mist_fairseq.pretrained.names import convert
from mist_fairseq.pretrained.weights import WEIGHTS, check_vocabulary, find_file, read_config, read_weights

logger = logging.getLogger(__name__)

# In the task's state, which fairseq saves with each checkpoint and loads before it builds the checkpoint's model.
_STATE = "prophetnet"


@dataclass
class ProphetNetConfig(EncoderDecoderOptions):
    """Defaults are prophetnet-large-uncased; ``--pretrained`` replaces the sizes by its folder's."""

    pretrained: Optional[str] = option(
        None,
        "Hugging Face folder with config.json, prophetnet.tokenizer and model.safetensors or pytorch_model.bin; sets "
        "the sizes and the initial weights",
    )
    encoder_layers: int = option(12, "number of encoder layers")
    decoder_layers: int = option(12, "number of decoder layers")
    encoder_embed_dim: int = option(1024, "hidden size")
    encoder_ffn_embed_dim: int = option(4096, "inner size of the feed-forward networks")
    encoder_attention_heads: int = option(16, "number of attention heads")
    max_positions: int = option(512, "positions the model knows")
    ngram: int = option(2, "future tokens that are predicted at once in training")


@register_model("prophetnet", dataclass=ProphetNetConfig)
class ProphetNetModel(BaseFairseqModel):
    """Hugging Face's ProphetNet as a model of fairseq; its relative positions are repaired in place."""

    def __init__(self, huggingface: Any):
        super().__init__()
        self.huggingface = huggingface
        for layer in huggingface.prophetnet.decoder.layers:
            attention = layer.self_attn
            attention.get_predict_relative_pos_embeddings = types.MethodType(_relative_position_bias, attention)

    @classmethod
    def build_model(cls, cfg: ProphetNetConfig, task):
        """Build with the configuration of the checkpoint that is loaded, of ``--pretrained``, or of the options."""
        if getattr(task.cfg, "left_pad_target", False):
            raise ValueError("--left-pad-target does not work with ProphetNet: leave it")
        library, dictionary = import_transformers(), task.target_dictionary
        saved = task.state.state_dict.get(_STATE)
        if saved is not None:
            config = library.ProphetNetConfig.from_dict(json.loads(saved))
            return cls(library.ProphetNetForConditionalGeneration(config))
        config = _read_config(cfg.pretrained, dictionary) if cfg.pretrained else _new_config(cfg, dictionary)
        config.update({name: getattr(cfg, name) for name in ("dropout", "attention_dropout", "activation_dropout")})
        task.state.merge_state_dict({_STATE: config.to_json_string()})
        start = cfg.pretrained
        return cls(_load(start, config) if start else library.ProphetNetForConditionalGeneration(config))

    def max_positions(self) -> tuple[int, int]:
        """Most tokens of a source and of a target."""
        config = self.huggingface.config
        # Positions are counted from behind the padding's id, and those of a target from one further on.
        most = config.max_position_embeddings - config.pad_token_id - 1
        return most, most - 1

    def forward(self, src_tokens: Tensor, src_lengths: Tensor, prev_output_tokens: Tensor) -> Tensor:
        """Logits of the next tokens (B, T, V); in training of all n predicting streams, one behind the other.

        With ``get_targets`` fairseq's criterions then compute ProphetNet's loss, future n-gram prediction: the sum over
        n streams, the i-th of which predicts each token of the target from those that end i places before it. In
        evaluation there is the first stream alone, and the loss is an ordinary language model's.

        *Shapes:* ``X [SEP]``, padded left or right, (B, S), lengths, not used, ``[SEP] Y``, right-padded, (B, T).
        """
        config = self.huggingface.config
        tokens = right_padded(src_tokens, config.pad_token_id)
        mask = tokens.ne(config.pad_token_id).long()
        output = self.huggingface(tokens, attention_mask=mask, decoder_input_ids=prev_output_tokens, use_cache=False)
        if self.training and config.ngram > 1 and not config.disable_ngram_loss:
            return torch.cat([output.logits, *output.logits_ngram.unbind(1)])
        return output.logits

    def get_targets(self, sample: dict, net_output: Tensor) -> Tensor:
        """The target once for each stream in *net_output*. *Shape:* (n * B, T)."""
        return sample["target"].repeat(len(net_output) // len(sample["target"]), 1)

    def build_generator(self, dictionary, options) -> HuggingFaceGenerator:
        """Called by the task's ``build_generator``."""
        pad, sep, longest = dictionary.pad(), dictionary.eos(), self.max_positions()[1]
        return HuggingFaceGenerator(self.huggingface, pad=pad, eos=sep, start=sep, longest=longest, options=options)


def _relative_position_bias(attention, hidden: Tensor, weights: Tensor, positions: Tensor, buckets: Tensor | None):
    """Relative position bias (B, n, H, T, 2 * T) of the predicting streams, in place of Hugging Face's own function.

    That one mixes up heads, streams and positions where there are several positions (since pull request 21870 of 2023,
    in transformers 4.57 still), so that in training later tokens reach earlier ones.

    *attention* is of n streams and H heads, *hidden* of the predicting streams, (B, T, n, D), *buckets* of the
    distances to the main stream and to the stream itself, (B, T, 2 * T).
    """
    if buckets is None:  # a single step
        return type(attention).get_predict_relative_pos_embeddings(attention, hidden, weights, positions, buckets)
    bias = attention.relative_pos_embeddings(hidden).unflatten(-1, (attention.num_buckets, attention.num_attn_heads))
    bias = bias.permute(0, 2, 4, 1, 3)  # (B, n, H, T, buckets)
    return bias.gather(4, buckets.long()[:, None, None].expand(*bias.shape[:4], -1))


def _ids(dictionary) -> dict[str, int]:
    """[SEP] ends a text and is the decoder's first input, as in the released model and in fairseq."""
    sep = dictionary.eos()
    ids = {"pad_token_id": dictionary.pad(), "eos_token_id": sep, "decoder_start_token_id": sep}
    return {"vocab_size": len(dictionary), **ids}


def _new_config(cfg: ProphetNetConfig, dictionary):
    return import_transformers().ProphetNetConfig(
        hidden_size=cfg.encoder_embed_dim,
        num_encoder_layers=cfg.encoder_layers,
        num_decoder_layers=cfg.decoder_layers,
        num_encoder_attention_heads=cfg.encoder_attention_heads,
        num_decoder_attention_heads=cfg.encoder_attention_heads,
        encoder_ffn_dim=cfg.encoder_ffn_embed_dim,
        decoder_ffn_dim=cfg.encoder_ffn_embed_dim,
        max_position_embeddings=cfg.max_positions,
        ngram=cfg.ngram,
        bos_token_id=dictionary.eos(),
        **_ids(dictionary),
    )


def _read_config(folder: str, dictionary):
    """The folder's configuration, if it is of a ProphetNet with the dictionary's vocabulary."""
    path, values = read_config(folder)
    if values.get("model_type") != "prophetnet":
        raise ValueError(f"{path}: model_type is {values.get('model_type')!r:.60}, expected 'prophetnet'")
    vocabulary = check_vocabulary(folder, dictionary.tokenizer, ["prophetnet.tokenizer", "vocab.txt"])
    config = import_transformers().ProphetNetConfig.from_dict(values)
    for name, expected in _ids(dictionary).items():
        if getattr(config, name) != expected:
            raise ValueError(f"{path}: {name} is {getattr(config, name)!r:.60}, but by {vocabulary} it is {expected}")
    return config


def _load(folder: str, config) -> nn.Module:
    """The folder's model, read without executing code; its shapes are compared before memory is taken for it."""
    path, library = find_file(folder, WEIGHTS), import_transformers()
    state = read_weights(path)
    if not any(name.startswith("prophetnet.") for name in state):  # of a model without a head, which is tied
        state = {"prophetnet." + name: tensor for name, tensor in state.items()}
    for side, layers in (("encoder", config.num_encoder_layers), ("decoder", config.num_decoder_layers)):
        last = f"prophetnet.{side}.layers.{layers - 1}.feed_forward.output.bias"
        if last not in state:
            raise ValueError(f"{path} lacks {last}, and config.json says {layers} {side} layers")
    try:
        with torch.device("meta"):
            own = library.ProphetNetForConditionalGeneration(config).state_dict()
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{path.with_name('config.json')}: {error}") from error
    tied = {name for name in own if name.endswith(("word_embeddings.weight", "lm_head.weight"))}
    convert(state, own, {}, str(path), "config.json beside it is that of another model", tied)
    load = library.ProphetNetForConditionalGeneration.from_pretrained
    model, report = load(None, config=config, state_dict=state, output_loading_info=True)
    if report["missing_keys"]:
        raise ValueError(f"{path} lacks {', '.join(sorted(report['missing_keys'])[:3])}")
    logger.info("loaded %s; left aside: %s", path, ", ".join(sorted(report["unexpected_keys"])) or "nothing")
    return model
