"""Small vocabularies, models and pre-trained folders for the tests."""

import importlib.util
import json
import string
from argparse import Namespace
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file, save
from torch import Tensor

from mist_fairseq.data.dictionary import TokenizerDictionary
from mist_fairseq.files.exported import CONFIG, SUMS, write_sums
from mist_fairseq.mist.config import EncoderConfig, EncoderDecoderConfig, PositionLimits
from mist_fairseq.mist.encoder import Encoder
from mist_fairseq.mist.encoder_decoder import EncoderDecoder
from mist_fairseq.models.mist_model import MistConfig, MistModel
from mist_fairseq.release.folder import Released
from mist_fairseq.text.tokenizer import CLS, MASK, PAD, SEP, UNK
from mist_fairseq.text.wordpiece import wordpiece_tokenizer

WORDS = """how can learn the guitar fast what is best way to in of and who why when where do you it""".split()


def load_script(name: str):
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tiny_vocab() -> list[str]:
    """Special tokens, not at BERT's places, some words, and letters and digits to spell the rest."""
    letters = string.ascii_lowercase + string.digits
    return [PAD, "[unused1]", UNK, CLS, SEP, MASK, *string.punctuation, *letters, *("##" + c for c in letters)] + WORDS


def tiny_dictionary(symbols: list[str] | None = None) -> TokenizerDictionary:
    return TokenizerDictionary(wordpiece_tokenizer(symbols or tiny_vocab()))


def tiny_config(**changes) -> MistConfig:
    config = MistConfig()
    sizes = dict(
        encoder_layers=2,
        encoder_embed_dim=32,
        encoder_ffn_embed_dim=64,
        encoder_attention_heads=4,
        max_positions=64,
        length_classes=32,
        precision="fp32",
    )
    for name, value in {**sizes, **changes}.items():
        setattr(config, name, value)
    return config


def spread(model):
    """In evaluation mode, with weights large enough that outputs differ from each other."""
    for parameter in model.parameters():
        if parameter.dim() >= 2:
            parameter.data.mul_(5)
    return model.eval()


def tiny_model(dictionary=None, source=40, target=20, seed=0, **changes) -> MistModel:
    """fairseq's model."""
    torch.manual_seed(seed)
    return spread(MistModel(tiny_config(**changes), dictionary or tiny_dictionary(), PositionLimits(source, target)))


def tiny_released(dictionary=None, source=40, target=20, seed=0, **sizes) -> Released:
    """The same model without fairseq; *sizes* by the names of ``EncoderConfig``."""
    tokenizer = (dictionary or tiny_dictionary()).tokenizer
    sizes = dict(hidden_size=32, layers=2, heads=4, ffn_size=64, max_positions=64, length_classes=32) | sizes
    torch.manual_seed(seed)
    encoder = spread(Encoder(EncoderConfig(len(tokenizer.symbols), **sizes)))
    return Released(encoder, tokenizer, PositionLimits(source, target))


def tiny_encoder_decoder(dictionary=None, source=40, target=20, seed=0, **sizes) -> Released:
    """As ``tiny_released``, of the other kind."""
    tokenizer = (dictionary or tiny_dictionary()).tokenizer
    sizes = dict(hidden_size=32, encoder_layers=2, decoder_layers=2, heads=4, ffn_size=64, length_classes=32) | sizes
    torch.manual_seed(seed)
    encoder = spread(EncoderDecoder(EncoderDecoderConfig(len(tokenizer.symbols), **sizes)))
    return Released(encoder, tokenizer, PositionLimits(source, target))


def tiny_generator(released=None, precision="fp32", accelerate="none"):
    """A model in Python."""
    from mist_fairseq import MistGenerator

    released = released or tiny_released()
    return MistGenerator(released.encoder, released.tokenizer, released.limits, precision, accelerate)


def see_gpus(monkeypatch, number):
    """Let torch see so many GPUs; nothing can run on them."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: number > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: number)


def ragged(lengths, low, high, pad, generator=None) -> torch.Tensor:
    """Right-padded random tokens of the given lengths, ids from low up to, not including, high."""
    tokens = torch.full((len(lengths), max(lengths)), pad)
    for row, length in enumerate(lengths):
        tokens[row, :length] = torch.randint(low, high, (length,), generator=generator)
    return tokens


def sources(lengths, dictionary, seed=0) -> tuple[torch.Tensor, torch.Tensor]:
    """Random ``[CLS] X [SEP]``."""
    generator = torch.Generator().manual_seed(seed)
    tokens = ragged(lengths, 40, len(dictionary), dictionary.pad(), generator)
    tokens[:, 0] = dictionary.bos()
    for row, length in enumerate(lengths):
        tokens[row, length - 1] = dictionary.eos()
    return tokens, torch.tensor(lengths)


def targets(lengths, dictionary, seed=1) -> tuple[torch.Tensor, torch.Tensor]:
    """Random ``Y [SEP]``."""
    generator = torch.Generator().manual_seed(seed)
    tokens = ragged(lengths, 40, len(dictionary), dictionary.pad(), generator)
    for row, length in enumerate(lengths):
        tokens[row, length - 1] = dictionary.eos()
    return tokens, torch.tensor(lengths)


def flat(lengths, width=None) -> torch.Tensor:
    """Flat indices of real positions, the slow way."""
    width = width or int(max(lengths))
    return torch.tensor([row * width + i for row, length in enumerate(lengths) for i in range(int(length))])


def indices(src_lengths, target_lengths, limit=40) -> dict[str, torch.Tensor]:
    """The collater's flat indices."""
    width = min(int(max(src_lengths)) + int(max(target_lengths)) + 1, limit)
    mixed = [min(int(s) + int(t) + 1, limit) for s, t in zip(src_lengths, target_lengths)]
    return {"src_index": flat(src_lengths), "target_index": flat(target_lengths), "mixed_index": flat(mixed, width)}


def encode(model, tokens, lengths):
    return model.encoder.encode_source(tokens, lengths, flat(lengths, tokens.shape[1]))


def decode(model, tokens, lengths, state) -> tuple[torch.Tensor, ...]:
    """Hidden states of each target, (T_i, D)."""
    return model.encoder.decode_target(tokens, lengths, flat(lengths, tokens.shape[1]), state).split(lengths.tolist())


def plain_logits(model, hidden, state) -> torch.Tensor:
    """The tokens' scores in one sentence, with the source's copied one by one. *Shapes:* (T, D) -> (T, V)."""
    logits, head = model.encoder.token_logits(hidden), getattr(model.encoder, "copy_head", None)
    for s, token in enumerate(state.tokens[0].tolist() if head else []):
        score = head(hidden) @ state.hidden[0, s] / hidden.shape[1] ** 0.5
        logits = logits.index_copy(1, torch.tensor([token]), torch.logaddexp(logits[:, token], score)[:, None])
    return logits


def batch(source_lengths, target_lengths, dictionary, seed=0) -> dict:
    """What the collater makes of random sentences; its ``net_input`` has the tensors of ``objective.Batch``."""
    src_tokens, src_lengths = sources(source_lengths, dictionary, seed)
    target_tokens, lengths = targets(target_lengths, dictionary, seed + 1)
    return {
        "id": torch.arange(len(src_tokens)),
        "nsentences": len(src_tokens),
        "ntokens": int(lengths.sum()),
        "target": target_tokens,
        "net_input": {
            "src_tokens": src_tokens,
            "src_lengths": src_lengths,
            "target_tokens": target_tokens,
            "target_lengths": lengths,
            "ids": torch.arange(len(src_tokens)),
            **indices(src_lengths, lengths),
        },
    }


def part(sample, rows) -> dict:
    """Some sentences of a ``batch``, without padding columns that none of them needs."""
    inputs = {name: value[rows] for name, value in sample["net_input"].items() if not name.endswith("_index")}
    lengths, target_lengths = inputs["src_lengths"], inputs["target_lengths"]
    inputs["src_tokens"] = inputs["src_tokens"][:, : lengths.max()]
    inputs["target_tokens"] = inputs["target_tokens"][:, : target_lengths.max()]
    inputs |= indices(lengths, target_lengths)
    return {"nsentences": len(lengths), "ntokens": int(target_lengths.sum()), "net_input": inputs}


def gradients(model) -> dict:
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_same_gradients(model, other):
    expected = gradients(other)
    for name, value in gradients(model).items():
        scale = max(1.0, float(expected[name].abs().max()))
        torch.testing.assert_close(value / scale, expected[name] / scale, atol=1e-5, rtol=0, msg=name)


def plain(value):
    """Something that can be compared by ==."""
    if isinstance(value, Tensor):
        return value.dtype, tuple(value.shape), value.contiguous().numpy().tobytes()
    if isinstance(value, DictConfig):
        return OmegaConf.to_container(value)
    if isinstance(value, Namespace):
        return plain(vars(value))
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return value


def joint_mask(S, T):
    """The paper's attention mask over one unpadded ``[CLS] X [SEP] Y_M``: 1 where a row may look at a column."""
    mask = torch.zeros(S + T, S + T)
    for row in range(S + T):
        for column in range(S + T):
            if row >= S or column < S:
                mask[row, column] = 1
    return mask


BERT_CONFIG = dict(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=64,
    type_vocab_size=2,
    hidden_act="gelu",
)


def bert_state(vocab_size, config=None, head=True, prefix="bert.", seed=0) -> dict[str, torch.Tensor]:
    """Random weights under BERT's names."""
    config = {**BERT_CONFIG, **(config or {})}
    generator = torch.Generator().manual_seed(seed)
    D, F = config["hidden_size"], config["intermediate_size"]

    def normal(*shape):
        return torch.randn(*shape, generator=generator) * 0.2

    state = {
        "embeddings.word_embeddings.weight": normal(vocab_size, D),
        "embeddings.position_embeddings.weight": normal(config["max_position_embeddings"], D),
        "embeddings.token_type_embeddings.weight": normal(config["type_vocab_size"], D),
        "embeddings.LayerNorm.weight": 1 + normal(D),
        "embeddings.LayerNorm.bias": normal(D),
        "pooler.dense.weight": normal(D, D),
        "pooler.dense.bias": normal(D),
    }
    for i in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{i}."
        for name, out, size in (
            ("attention.self.query", D, D),
            ("attention.self.key", D, D),
            ("attention.self.value", D, D),
            ("attention.output.dense", D, D),
            ("intermediate.dense", F, D),
            ("output.dense", D, F),
        ):
            state[f"{layer}{name}.weight"], state[f"{layer}{name}.bias"] = normal(out, size), normal(out)
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            state[f"{layer}{name}.weight"], state[f"{layer}{name}.bias"] = 1 + normal(D), normal(D)
    state = {prefix + name: value for name, value in state.items()}
    if head:
        state["cls.predictions.bias"] = normal(vocab_size)
        state["cls.predictions.transform.dense.weight"] = normal(D, D)
        state["cls.predictions.transform.dense.bias"] = normal(D)
        state["cls.predictions.transform.LayerNorm.weight"] = 1 + normal(D)
        state["cls.predictions.transform.LayerNorm.bias"] = normal(D)
        state["cls.predictions.decoder.weight"] = state[prefix + "embeddings.word_embeddings.weight"].clone()
    return state


def renew_sums(folder: Path):
    """Checksums of an exported folder as it is now, for tests of what else would see that it was changed."""
    write_sums(folder, [path.name for path in folder.iterdir() if path.name not in (CONFIG, SUMS)])


def change_released(folder: Path, changes: dict, **tensors):
    """Another configuration and other tensors in a released folder, as if it had been exported with them."""
    path, config = folder / "model.safetensors", json.loads((folder / CONFIG).read_text())
    for name, value in changes.items():
        (config["model"] if name in config["model"] else config)[name] = value
    (folder / CONFIG).write_text(json.dumps(config))
    path.write_bytes(save({**load_file(path), **tensors}, {"config": json.dumps(config, sort_keys=True)}))
    renew_sums(folder)


def write_bert_folder(folder: Path, state: dict, config=None, vocab=None, safetensors=True) -> Path:
    """A folder as ``save_pretrained`` writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**BERT_CONFIG, **(config or {})}))
    (folder / "vocab.txt").write_text("\n".join(vocab or tiny_vocab()) + "\n", encoding="utf-8")
    if safetensors:
        (folder / "model.safetensors").write_bytes(save({name: value.contiguous() for name, value in state.items()}))
    else:
        torch.save(state, folder / "pytorch_model.bin")
    return folder
