"""A model as ONNX files that need neither fairseq nor torch: for ``OnnxGenerator`` and other languages.

- ``source.onnx``: the source pass with the length classifier.
- ``target.onnx``: the target pass with the masked-LM head.
- ``source.int8.onnx``, ``target.int8.onnx``: the same with matrix products of 8-bit integers, weights with a scale for
  each output channel, activations with a scale for each row.
- ``dict.txt``: the tokenizer (``mist_fairseq.text.files.load_tokenizer``).
- ``config.json``: version, sizes, position limits.
- ``SHA256SUMS``: of the files above but ``config.json``, whose content each ONNX file repeats.

Each ONNX file says in its metadata which pass, precision, vocabulary and export it is of.

The graphs use ONNX Runtime's own operators (``com.microsoft``) on top of opset 18. All dimensions named by letters vary
from run to run: B sentences, S source and T target positions, and the candidates of a beam count as sentences. H heads,
d values of each and the number of layers are fixed. Token ids, lengths and positions are int64, all else is float32.

Source pass:
    - in: ``tokens`` (B, S), ``[CLS] X [SEP]`` with anything behind it; ``lengths`` (B), of each with [CLS] and [SEP].
    - out: ``length_scores`` (B, classes), logits of the output's length, its final [SEP] counted; ``key0``, ``value0``,
      ``key1``, ... (B, H, S, d) of each layer.

Target pass:
    - in: ``tokens`` (B, T), [MASK]s and known tokens; ``lengths`` (B) of the target, final [SEP] counted;
      ``source_lengths`` (B); ``past_key0``, ``past_value0``, ... (B, H, S, d): what the source pass gave.
    - out: ``predictions`` (B, T), *tokens* with every [MASK] among the first *lengths* replaced by the likeliest token,
      which is never [PAD], [CLS] or [MASK]; ``scores`` (B, T), the log-probability of what replaced it, 0 elsewhere.

Single pass: run the source; take the largest of ``length_scores[:, 2 : max_target_positions + 1]`` (a word and [SEP]
are the shortest output); run the target over as many [MASK]s. MIST: then run both again, the source pass over
``[CLS] Y_p [SEP] X [SEP]`` with the predictions Y_p, cut to ``max_source_positions`` so that it still ends in [SEP],
the target pass over [MASK]s anew, until nothing changes or N passes are done. Mask-Predict: N passes; after pass n put
[MASK] for the T (N - n) / N lowest scores and run the target pass again over the same source. ``OnnxGenerator`` is that
loop in 100 lines of numpy.
"""

import functools
import hashlib
import json
from pathlib import Path

import torch

import mist_fairseq
from mist_fairseq.engines.onnx_graphs import source_graph, target_graph
from mist_fairseq.files.folders import write_folder
from mist_fairseq.hub.onnx_generator import DICTIONARY, FORMAT, PASSES, VERSION, metadata_of
from mist_fairseq.mist.encoder import Encoder
from mist_fairseq.release.folder import Released


@torch.no_grad()
def save_onnx(released: Released, folder: str, overwrite: bool = False) -> list[str]:
    """Write a model as an ONNX folder.

    The same model gives the same files. A folder that is only half written is refused where it is read.

    Args:
        released: of a ``mist_*`` architecture.
        folder: to write to; made if it is not there.
        overwrite: replace files that are there.

    Returns:
        The names of the files.

    Raises:
        FileExistsError: the folder has such files already.
        ValueError: the model is of another architecture, or the package onnx is not installed.
    """
    if not isinstance(released.encoder, Encoder):
        raise ValueError(
            f"A {released.architecture} model cannot be written as ONNX: that is for mist_* architectures, in which one encoder "
            "reads the source and fills the target"
        )
    released.encoder.config.check_limits(released.limits)
    config = _configuration(released)
    files = {
        name: functools.partial(_write_graph, released, config, side, precision)
        for precision, names in PASSES.items()
        for side, name in zip(("source", "target"), names)
    }
    return write_folder(folder, config, files | {DICTIONARY: released.tokenizer.save}, overwrite)


def _write_graph(released: Released, config: dict, side: str, precision: str, path: Path):
    graph = _graph(released, side, precision == "int8")
    for key, value in metadata_of(config, side, precision).items():
        graph.metadata_props.add(key=key, value=value)
    path.write_bytes(graph.SerializeToString())


def _graph(released: Released, side: str, int8: bool):
    version, special = mist_fairseq.__version__, released.tokenizer.special
    if side == "source":
        return source_graph(released.encoder, int8, version)
    return target_graph(
        released.encoder, torch.tensor(special.never_predicted), special.mask, int8, version
    )


def _configuration(released: Released) -> dict:
    """``config.json``; ``export`` tells this model from any other."""
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
        digest.update(value.float().cpu().contiguous().numpy())
    return {**config, "export": digest.hexdigest()}
