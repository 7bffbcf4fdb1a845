"""Generation by ONNX Runtime, with neither torch nor fairseq: numpy, tokenizers and onnxruntime are enough.

    from mist_fairseq.hub.onnx_generator import OnnxGenerator

    generator = OnnxGenerator.from_pretrained("onnx-folder", precision="int8")
    generator.generate(["how do i learn the guitar"])

The folder is what ``scripts/export.py --to onnx`` writes (``mist_fairseq.release.onnx_folder``, where the graphs are
described for use from other languages). Dimensions: B sentences, K candidates of each, S source and T target positions.
"""

import json
from pathlib import Path

from mist_fairseq.engines.onnx_runtime import OnnxEngine, start_session
from mist_fairseq.files.folders import CONFIG, read_config
from mist_fairseq.generate.generator import TextGenerator
from mist_fairseq.mist.config import PositionLimits
from mist_fairseq.text.files import load_tokenizer
from mist_fairseq.text.tokenizer import Tokenizer

FORMAT, VERSION = "onnx", 1
DICTIONARY = "dict.txt"
# By precision: the source pass and the target pass.
PASSES = {"fp32": ("source.onnx", "target.onnx"), "int8": ("source.int8.onnx", "target.int8.onnx")}

# Before, it reads files that a model names outside of its folder (1.23), crashes (1.21), or gives other numbers than
# PyTorch (1.20).
OLDEST = "1.24.1"

_NUMBERS = ["layers", "max_source_positions", "max_target_positions"]


class OnnxGenerator(TextGenerator):
    """A model in ONNX and its tokenizer behind ``generate``, which several threads may call at the same time.

    Args:
        source, target: sessions of the two passes.
        tokenizer: of source and target.
        config: ``config.json``.
    """

    _origin: tuple[str, str, int | None]

    def __init__(self, source, target, tokenizer: Tokenizer, config: dict):
        self.engine = OnnxEngine.of_sessions(source, target)
        self.tokenizer = tokenizer
        self.limits = PositionLimits(config["max_source_positions"], config["max_target_positions"])

    @classmethod
    def from_pretrained(cls, folder: str, precision: str = "fp32", threads: int | None = None) -> "OnnxGenerator":
        """Load an exported folder.

        Args:
            folder: what ``scripts/export.py --to onnx`` wrote.
            precision: ``fp32`` or ``int8``.
            threads: of the CPU, by default one for each core.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file is damaged, of another version or of another export than the others; says which. Or
                ONNX Runtime is not installed.
        """
        if precision not in PASSES:
            raise ValueError(f"precision is {precision!r}, expected {' or '.join(PASSES)}")
        if threads is not None and (type(threads) is not int or threads < 1):
            raise ValueError(f"threads is {threads!r}, expected a whole number of at least 1")
        path = Path(folder)
        config = _read_config(path, precision)
        tokenizer = load_tokenizer(str(path / DICTIONARY))
        if tokenizer.fingerprint() != config["vocabulary"]:
            raise ValueError(f"{path / DICTIONARY} is not the vocabulary that {CONFIG} names: export the model again")
        sessions = []
        for side, name in zip(("source", "target"), PASSES[precision]):
            session = start_session(str(path / name), threads or 0)
            _check_metadata(session, path / name, config, {"pass": side, "precision": precision})
            sessions.append(session)
        states = len(sessions[0].get_outputs()) - 1
        if states != 2 * config["layers"]:
            raise ValueError(f"{path / CONFIG}: layers is {config['layers']}, the source pass has {states // 2}")
        source, target = sessions
        generator = cls(source, target, tokenizer, config)
        generator._origin = str(path.resolve()), precision, threads
        return generator

    def __reduce__(self):
        """Copies and pickles load the folder again: sessions cannot be copied."""
        return type(self).from_pretrained, self._origin


# -- files ------------------------------------------------------------------------------------------------------


def _read_config(folder: Path, precision: str) -> dict:
    otherwise = "Export the model with scripts/export.py --to onnx"
    config = read_config(folder, FORMAT, VERSION, [DICTIONARY, *PASSES[precision]], otherwise)
    path = folder / CONFIG
    for name in _NUMBERS:
        if type(config.get(name)) is not int or config[name] < 1:
            raise ValueError(f"{path}: {name} is {config.get(name)!r}, expected a whole number of at least 1")
    for name in ("vocabulary", "export"):
        if not isinstance(config.get(name), str):
            raise ValueError(f"{path}: {name} is {config.get(name)!r}, expected text")
    return config


def metadata_of(config: dict, side: str, precision: str) -> dict[str, str]:
    """What an ONNX file says of itself, so that no wrong one goes unnoticed.

    Args:
        config: ``config.json``.
        side: ``source`` or ``target``.
        precision: ``fp32`` or ``int8``.
    """
    return {
        "format": f"mist_fairseq {FORMAT}",
        "version": str(config["version"]),
        "pass": side,
        "precision": precision,
        "vocabulary": config["vocabulary"],
        "export": config["export"],
        "config": json.dumps(config, sort_keys=True),
    }


def _check_metadata(session, path: Path, config: dict, what: dict[str, str]):
    """Refuse an ONNX file that is not the folder's."""
    found = session.get_modelmeta().custom_metadata_map
    expected = metadata_of(config, what["pass"], what["precision"])
    if found.get("format") != expected["format"]:
        raise ValueError(f"{path} is not of mist_fairseq: export the model with scripts/export.py --to onnx")
    if found.get("version") != expected["version"]:
        raise ValueError(
            f"{path} has version {found.get('version')!r}, this mist_fairseq reads version {VERSION}: export the "
            "model again"
        )
    for name in ("pass", "precision"):
        if found.get(name) != expected[name]:
            raise ValueError(f"{path} has {name} {found.get(name)!r}, expected {expected[name]!r}: was it renamed?")
    for name in ("vocabulary", "export"):
        if found.get(name) != expected[name]:
            raise ValueError(
                f"{path} is of another {name} than {CONFIG} beside it: the folder mixes files of several exports; "
                "export the model again"
            )
    if found.get("config") != expected["config"]:
        raise ValueError(f"{path.parent / CONFIG} was changed since the export: export the model again")
