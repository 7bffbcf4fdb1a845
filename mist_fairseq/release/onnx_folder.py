"""A model as an ONNX folder, which needs neither fairseq nor torch: for ``OnnxGenerator`` and other languages.

- ``model.onnx``, ``model.bin``: the encoder's graph, and its weights in fp32 under the encoder's names.
- ``model.int8.onnx``, ``model.int8.bin``: the same with matrices of 8-bit integers, a scale for each of their rows
  (``NAME.scale``), and activations with a scale for each row.
- ``dict.txt``: the tokenizer (``mist_fairseq.text.files.load_tokenizer``).
- ``config.json``: version, sizes, position limits.
- ``SHA256SUMS``: of the files above but ``config.json``, whose content each ``.onnx`` file repeats in its metadata.

On x86 processors without VNNI run the int8 graph with the session option ``session.x64quantprecision`` = 1: without it
sums of its products saturate in 16 bits. A folder of one precision lacks the files of the other. Word embeddings have
rows of zeros after the last token, up to a multiple of 128.

The graph uses ONNX Runtime's own operators (``com.microsoft``) on top of opset 18. Dimensions named by letters vary
from run to run: B sentences, L tokens, P tokens of a past that they see, K = P + L; the candidates of a beam count as
sentences. H heads, d values of each and the number of layers are fixed. Token ids and lengths are int64, all else is
float32. It is run for the source, and again for the target with the source as its past:

- in: ``tokens`` (B, L), of the source ``[CLS] X [SEP]``, of the target [MASK]s and known tokens, with anything behind;
  ``lengths`` (B) of them, special tokens counted; ``past_lengths`` (B), of the source 0, of the target its source's
  length; ``past_key0``, ``past_value0``, ``past_key1``, ... (B, H, P, d), of the source without rows (P = 0), of the
  target what the source's run gave as ``key0``, ``value0``, ``key1``, ...
- out, of the source: ``length_scores`` (B, classes), logits of the output's length, its final [SEP] counted; ``key0``,
  ``value0``, ``key1``, ... (B, H, K, d) of each layer.
- out, of the target: ``predictions`` (B, L), *tokens* with every [MASK] among the first *lengths* replaced by the
  likeliest token, which is never [PAD], [CLS] or [MASK]; ``scores`` (B, L), the log-probability of what replaced it, 0
  elsewhere.

Single pass: run the source; take the largest of ``length_scores[:, 2 : max_target_positions + 1]`` (a word and [SEP]
are the shortest output); run the target over as many [MASK]s. MIST: then run both again, the source
``[CLS] Y_p [SEP] X [SEP]`` with the predictions Y_p, cut to ``max_source_positions`` so that it still ends in [SEP],
and the target of [MASK]s anew, until nothing changes or N passes are done. Mask-Predict: N passes; after pass n put
[MASK] for the T (N - n) / N lowest scores and run the target again over the same source. That loop is
``mist_fairseq.generate.decoding``.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mist_fairseq.engines.onnx_runtime import OnnxEngine, start_session
from mist_fairseq.files.exported import CONFIG, read_config, write_folder
from mist_fairseq.mist.config import PositionLimits
from mist_fairseq.text.files import load_tokenizer
from mist_fairseq.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from mist_fairseq.release.folder import Released

FORMAT, VERSION = "onnx", 2
DICTIONARY = "dict.txt"
FILES = {"fp32": ("model.onnx", "model.bin"), "int8": ("model.int8.onnx", "model.int8.bin")}  # graph and weights


def save_onnx(
    released: "Released", folder: str, overwrite: bool = False, precisions: Sequence[str] = tuple(FILES)
) -> list[str]:
    """Write a model as an ONNX folder.

    The same model gives the same files. A folder that is only half written is refused where it is read.

    Args:
        released: the model, of a ``mist_*`` architecture.
        folder: to write to; made if it is not there.
        overwrite: replace files that are there.
        precisions: ``fp32``, ``int8`` or both.

    Returns:
        The names of the files.

    Raises:
        FileExistsError: the folder has such files already.
        ValueError: the model is of another architecture, or the package onnx is not installed.
    """
    from mist_fairseq.engines.onnx_encoder import encoder_graph
    from mist_fairseq.mist.encoder import Encoder

    encoder = released.encoder
    if not isinstance(encoder, Encoder):
        raise ValueError(
            f"A {released.architecture} model cannot be written as ONNX: that is for mist_* architectures, in "
            "which one encoder reads the source and fills the target"
        )
    encoder.config.check_limits(released.limits)
    config = _configuration(released)
    contents: dict[str, Any] = {}
    for precision in precisions:
        name, weights = FILES[precision]
        graph, pieces = encoder_graph(encoder, released.tokenizer.special, precision == "int8", weights)
        for key, value in metadata_of(config, precision).items():
            graph.metadata_props.add(key=key, value=value)
        contents[name] = lambda path, graph=graph: path.write_bytes(graph.SerializeToString())
        contents[weights] = lambda path, pieces=pieces: path.write_bytes(b"".join(pieces))
    return write_folder(folder, config, contents | {DICTIONARY: released.tokenizer.save}, overwrite)


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
    }
    digest = hashlib.sha256(json.dumps([mist_fairseq.__version__, config]).encode())
    for name, value in sorted(released.state().items()):
        digest.update(name.encode())
        digest.update(value.float().cpu().contiguous().numpy().tobytes())
    return {**config, "export": digest.hexdigest()}


def metadata_of(config: dict[str, Any], precision: str) -> dict[str, str]:
    """What a graph's file says of itself, so that no wrong one goes unnoticed."""
    return {
        "format": f"mist_fairseq {FORMAT}",
        "precision": precision,
        "export": config["export"],
        "config": json.dumps(config, sort_keys=True),
    }


def read_onnx(folder: str, precision: str, threads: int | None) -> tuple[OnnxEngine, Tokenizer, PositionLimits]:
    """Load an exported folder; see ``OnnxGenerator.from_pretrained``."""
    if precision not in FILES:
        raise ValueError(f"precision is {precision!r}, expected {' or '.join(FILES)}")
    if threads is not None and (type(threads) is not int or threads < 1):
        raise ValueError(f"threads is {threads!r}, expected a whole number of at least 1")
    path = Path(folder)
    otherwise = "Export the model with scripts/export.py --to onnx"
    config = read_config(path, FORMAT, VERSION, [DICTIONARY, *FILES[precision]], otherwise)
    names = ("max_source_positions", "max_target_positions")
    for name in names:
        if type(config.get(name)) is not int or config[name] < 1:
            raise ValueError(f"{path / CONFIG}: {name} is {config.get(name)!r}, expected a whole number of at least 1")
    tokenizer = load_tokenizer(str(path / DICTIONARY))
    if tokenizer.fingerprint() != config.get("vocabulary"):
        raise ValueError(f"{path / DICTIONARY} is not the vocabulary that {CONFIG} names: export the model again")
    graph = path / FILES[precision][0]
    session = start_session(str(graph), threads or 0)
    _check_metadata(session.get_modelmeta().custom_metadata_map, graph, config, precision)
    return OnnxEngine.of_session(session), tokenizer, PositionLimits(*(config[name] for name in names))


def _check_metadata(given: dict[str, str], graph: Path, config: dict[str, Any], precision: str) -> None:
    """Refuse a graph that is not the folder's."""
    expected = metadata_of({"export": None, **config}, precision)
    if given.get("format") != expected["format"]:
        raise ValueError(f"{graph} is not of mist_fairseq: export the model with scripts/export.py --to onnx")
    if given.get("precision") != precision:
        raise ValueError(f"{graph} has precision {given.get('precision')!r}, expected {precision!r}: was it renamed?")
    if given.get("export") != expected["export"]:
        raise ValueError(
            f"{graph} is of another export than {CONFIG} beside it: the folder mixes files of several exports; export "
            "the model again"
        )
    if given.get("config") != expected["config"]:
        raise ValueError(f"{graph.parent / CONFIG} was changed since the export: export the model again")
