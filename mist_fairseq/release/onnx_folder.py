"""A model as an ONNX folder, which needs neither fairseq nor torch: for ``OnnxGenerator`` and other languages.

- ``model.onnx``, ``model.bin``: the encoder's graph, and its weights in fp32 under the encoder's names, in safetensors'
  format.
- ``model.int8.onnx``, ``model.int8.bin``: the same with matrices of 8-bit integers, a scale for each of their rows
  (``NAME.scale``), and activations with a scale for each row; those of length classifier, copy head and paths are in
  fp32.
- ``dict.txt``: the tokenizer (``mist_fairseq.text.tokenizer_files.load_tokenizer``).
- ``config.json``: version, sizes, position limits, and under ``encoder`` what ``EncoderConfig`` has.
- ``SHA256SUMS``: of the files above but ``config.json``, whose content the others repeat in their metadata.

On x86 processors without VNNI run the int8 graph with the session option ``session.x64quantprecision`` = 1: without it
sums of its products saturate in 16 bits. A folder of one precision lacks the files of the other. Word embeddings have
rows of zeros after the last token, up to a multiple of 128.

The graph uses ONNX Runtime's own operators (``com.microsoft``) on top of opset 18. Dimensions named by letters vary
from run to run: B sentences, L tokens, P tokens of a past that they see, K = P + L; the candidates of a beam count as
sentences. H heads, d values of each and the number of layers are fixed. Token ids and lengths are int64, ``second``
and ``allowed`` are bool, all else is float32. It is run for the source, and again for the target with the source as its
past:

- in: ``tokens`` (B, L), of the source ``[CLS] X [SEP]``, of the target [MASK]s and known tokens, with anything behind;
  ``lengths`` (B) of them, special tokens counted; ``past_lengths`` (B), of the source 0, of the target its source's
  length; ``past_key0``, ``past_value0``, ``past_key1``, ... (B, H, P, d), of the source without rows (P = 0), of the
  target what the source's run gave as ``key0``, ``value0``, ``key1``, ... A model with a copy head also has
  ``past_words`` (B, P), token ids, and ``past_hidden`` (B, P, H * d), likewise what it gave as ``words``, ``hidden``.
- out, of the source: ``length_scores`` (B, classes), logits of the output's length, its final [SEP] counted; ``key0``,
  ``value0``, ``key1``, ... (B, H, K, d) of each layer.
- out, of the target: ``predictions`` (B, L), *tokens* with every [MASK] among the first *lengths* replaced by the
  likeliest token, which is no special one but [SEP]; ``scores`` (B, L), the log-probability of what replaced it, 0
  elsewhere. With the input ``second``, which need not be given, both are of the second likeliest token. With
  ``allowed`` (V), which need not be given, only tokens are chosen for which it is true; V is the number of rows of the
  head, a multiple of 128, and the log-probabilities are those among all tokens. Of a model
  with paths (``mist.dag``) also ``edges`` (B, L, L), log-probabilities of going from a vertex to a later one.

Single pass: run the source; take the largest of ``length_scores[:, 2 : max_target_positions + 1]`` (a word and [SEP]
are the shortest output); run the target over as many [MASK]s. MIST: then run both again, the source
``[CLS] Y_p [SEP] X [SEP]`` with the predictions Y_p, cut to ``max_source_positions`` so that it still ends in [SEP],
and the target of [MASK]s anew, until nothing changes or N passes are done. Mask-Predict: N passes; after pass n put
[MASK] for the T (N - n) / N lowest scores and run the target again over the same source. With paths the target is as
many [MASK]s as ``encoder`` says for the source, and ``mist_fairseq.mist.path_search`` reads the text off what comes
back. All loops are in ``mist_fairseq.generate.decoding``.
"""

import hashlib
import importlib.util
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mist_fairseq.engines import gpu_number
from mist_fairseq.engines.native import NativeEngine, why_not
from mist_fairseq.engines.onnx_runtime import OnnxEngine, start_session
from mist_fairseq.files.exported import CONFIG, read_config, write_folder
from mist_fairseq.generate.decoding import Engine, whole_number
from mist_fairseq.mist.config import EncoderConfig, GraphSizes, PositionLimits
from mist_fairseq.text.tokenizer import Tokenizer
from mist_fairseq.text.tokenizer_files import load_tokenizer

if TYPE_CHECKING:
    from mist_fairseq.release.folder import Released

FORMAT, VERSION = "onnx", 2
DICTIONARY = "dict.txt"
FILES = {"fp32": ("model.onnx", "model.bin"), "int8": ("model.int8.onnx", "model.int8.bin")}  # graph and weights


def save_onnx(
    released: "Released", folder: str, overwrite: bool = False, precisions: Sequence[str] = tuple(FILES)
) -> list[str]:
    """Write a model as an ONNX folder, in ``fp32``, ``int8`` or both; the same model gives the same files.

    Returns and errors are as of ``write_folder``; ValueError: the model is not ``mist_*``, or there is no package onnx.
    """
    from mist_fairseq.engines.onnx_encoder import encoder_graph
    from mist_fairseq.mist.encoder import Encoder

    encoder = released.encoder
    if not isinstance(encoder, Encoder):
        raise ValueError(f"a {released.architecture} model cannot be written as ONNX: only mist_* architectures can")
    encoder.config.check_limits(released.limits)
    config = _configuration(released)
    contents: dict[str, Iterable[bytes]] = {}
    for precision in precisions:
        name, weights = FILES[precision]
        given = released.tokenizer.special, precision == "int8", weights, _metadata(config, precision)
        graph, content = encoder_graph(encoder, *given)
        contents |= {name: [graph.SerializeToString()], weights: [content]}
    return write_folder(folder, config, contents | {DICTIONARY: [released.tokenizer.saved()]}, overwrite)


def _configuration(released: "Released") -> dict[str, Any]:
    """``config.json``; ``export`` tells this model from any other."""
    import mist_fairseq

    sizes = released.encoder.config
    config = {
        "format": FORMAT,
        "version": VERSION,
        "max_source_positions": released.limits.source,
        "max_target_positions": released.limits.target,
        "layers": sizes.layers,
        "heads": sizes.heads,
        "hidden_size": sizes.hidden_size,
        "vocabulary_size": sizes.vocab_size,
        "length_classes": sizes.length_classes,
        "vocabulary": released.tokenizer.fingerprint(),
        "encoder": asdict(sizes),
    }
    digest = hashlib.sha256(json.dumps([mist_fairseq.__version__, config]).encode())
    for name, value in sorted(released.state().items()):
        digest.update(name.encode())
        digest.update(value.float().cpu().contiguous().numpy().tobytes())
    return {**config, "export": digest.hexdigest()}


def _metadata(config: dict[str, Any], precision: str) -> dict[str, str]:
    """What a graph's file says of itself, so that no wrong one goes unnoticed."""
    about = {"format": f"mist_fairseq {FORMAT}", "precision": precision, "export": str(config.get("export"))}
    return {**about, "config": json.dumps(config, sort_keys=True)}


def read_onnx(
    folder: str, precision: str, threads: int | None, device: object = "cpu", accelerate: str = "auto"
) -> tuple[Engine, Tokenizer, PositionLimits]:
    """Load an exported folder; see ``OnnxGenerator.from_pretrained``."""
    if precision not in FILES:
        raise ValueError(f"precision is {precision!r}, expected {' or '.join(FILES)}")
    if accelerate not in ("auto", "native", "onnxruntime"):
        raise ValueError(f"accelerate is {accelerate!r}, expected auto, native or onnxruntime")
    on_gpu = device != "auto" and gpu_number(device) is not None
    if precision == "int8" and on_gpu:
        raise ValueError(f"precision int8 is for CPUs, device is {str(device)!r}: use fp32, or device cpu")
    if precision != "int8" and accelerate == "native":
        raise ValueError(f"accelerate native is for precision int8, not {precision}: use onnxruntime")
    whole_number("threads", 1 if threads is None else threads)
    path = Path(folder)
    advice = "MistGenerator reads a folder of --to folder, of which scripts/export.py --to onnx makes one in ONNX"
    config = read_config(folder, FORMAT, VERSION, [DICTIONARY, *FILES[precision]], advice)
    names = ("max_source_positions", "max_target_positions")
    limits = PositionLimits(*(whole_number(f"{path / CONFIG}: {name}", config.get(name)) for name in names))
    tokenizer = load_tokenizer(path / DICTIONARY)
    if tokenizer.fingerprint() != config.get("vocabulary"):
        raise ValueError(f"{path / DICTIONARY} is not the vocabulary that {CONFIG} names: export the model again")
    if precision == "int8" and accelerate != "onnxruntime":
        reason = _why_not_native(config)
        if not reason:
            return _native(path / FILES["int8"][1], config, tokenizer, threads), tokenizer, limits
        if accelerate == "native":
            raise ValueError(f"accelerate native cannot be used: {reason}. Use onnxruntime")
    graph = path / FILES[precision][0]
    session = start_session(str(graph), threads or 0, device="cpu" if precision == "int8" else device)
    _check_belongs(graph, session.get_modelmeta().custom_metadata_map, config, precision)
    encoder = config.get("encoder", {})
    sizes = GraphSizes(encoder["upsample"], encoder["least_vertices"]) if encoder.get("head") == "dag" else None
    return OnnxEngine.of_session(session, sizes), tokenizer, limits


def _why_not_native(config: dict[str, Any]) -> str:
    """As ``engines.native.why_not``, of what a ``config.json`` says."""
    if importlib.util.find_spec("safetensors") is None:
        return "the package safetensors is not installed"
    try:
        return why_not(EncoderConfig(**config["encoder"]))
    except (KeyError, TypeError, ValueError):
        return f"{CONFIG} has no encoder's sizes that this version knows"


def _native(weights: Path, config: dict[str, Any], tokenizer: Tokenizer, threads: int | None) -> NativeEngine:
    """The engine of a file of weights in int8."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(weights, "numpy") as file:
            about = dict(json.loads((file.metadata() or {}).get("about", "{}")))
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
    except (SafetensorError, TypeError, ValueError) as error:
        raise ValueError(f"{weights} is damaged: export the model again ({error})") from error
    _check_belongs(weights, about, config, "int8")
    given = EncoderConfig(**config["encoder"]), arrays, tokenizer.special
    try:
        return NativeEngine.of_weights(*given, threads or len(os.sched_getaffinity(0)))
    except ValueError as error:
        raise ValueError(f"{weights} is of another export: export the model again ({error})") from error


def _check_belongs(file: Path, given: Mapping[str, str], config: dict[str, Any], precision: str) -> None:
    """ValueError unless what a file says of itself is *config* and *precision*."""
    for name, expected in _metadata(config, precision).items():
        if given.get(name) != expected:
            both = f"{file} and {CONFIG} beside it do not belong together (by their {name})"
            raise ValueError(f"{both}: one was renamed, changed, or is of another export; export the model again")
