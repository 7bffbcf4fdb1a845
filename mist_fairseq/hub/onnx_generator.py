"""Generation by ONNX Runtime, with neither torch nor fairseq: numpy, tokenizers and onnxruntime are enough.

    from mist_fairseq.hub.onnx_generator import OnnxGenerator

    generator = OnnxGenerator.from_pretrained("onnx-folder", precision="int8")
    generator.generate(["how do i learn the guitar"])

The folder is what ``scripts/export.py --to onnx`` writes (``mist_fairseq.release.onnx_folder``, where the graphs are
described for use from other languages). Dimensions: B sentences, K candidates of each, S source and T target positions.
"""

import functools
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mist_fairseq.files.folders import CONFIG, read_config
from mist_fairseq.generate.generator import Decoding, Hypothesis, Source, TextGenerator
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

    Attributes:
        stop_unchanged: MIST ends for a sentence that a pass did not change; a benchmark may want all passes.
    """

    stop_unchanged = True
    _origin: tuple[str, str, int | None]

    def __init__(self, source, target, tokenizer: Tokenizer, config: dict):
        self._source, self._target = source, target
        self._configure(tokenizer, config["max_source_positions"], config["max_target_positions"])
        self._own = [f"{part}{i}" for i in range(config["layers"]) for part in ("key", "value")]

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

    def _generate_batch(self, sources, decoding):
        return self.generate_ids(sources, decoding)

    def generate_ids(
        self, sources: list[Source], decoding: Decoding
    ) -> list[tuple[list[Hypothesis], dict[int, float]]]:
        """Generate for one batch of token ids.

        Args:
            sources: ``[CLS] X [SEP]``; either all with a length or none.
            decoding: how to generate.

        Returns:
            Of each source its hypotheses, best first, and the probabilities of its lengths, likeliest first.

        Raises:
            ValueError: a source or a length is more than the model's, or a source has no tokens.
        """
        source_lengths = np.array([len(source.ids) for source in sources])
        if source_lengths.min() < 1:
            raise ValueError("a source has no tokens, expected [CLS] X [SEP]")
        if source_lengths.max() > self.max_source:
            raise ValueError(f"a source has {source_lengths.max()} tokens, more than the model's {self.max_source}")
        tokens = np.full((len(sources), source_lengths.max()), self.tokenizer.special.pad)
        for row, source in zip(tokens, sources):
            row[: len(source.ids)] = source.ids
        length_scores, *past = self._source.run(None, {"tokens": tokens, "lengths": source_lengths})
        if sources[0].length is None:
            lengths, probabilities = self._choose_lengths(length_scores, decoding)  # (B, K), dictionaries
        else:
            lengths, probabilities = np.array([[source.length or 0] for source in sources]) + 1, [{} for _ in sources]
            if lengths.max() > self.max_target:
                raise ValueError(f"a length is {lengths.max() - 1}, expected at most {self.max_target - 1}")
        beam = lengths.shape[1]
        if beam > 1:
            past = [part.repeat(beam, axis=0) for part in past]
            tokens, source_lengths = tokens.repeat(beam, axis=0), source_lengths.repeat(beam)
        found = self._start(lengths.flatten(), source_lengths, past)
        if decoding.decoding == "mist":
            self._iterate_mist(found, tokens, source_lengths, decoding.passes)
        elif decoding.decoding == "mask-predict":
            self._iterate_mask_predict(found, source_lengths, past, decoding.passes)
        hypotheses = [self._hypothesis(found, row, decoding.keep_repeats) for row in range(len(found.lengths))]
        ranked = [
            sorted(hypotheses[i : i + beam], key=lambda hypothesis: -hypothesis.score)
            for i in range(0, len(hypotheses), beam)
        ]
        return list(zip(ranked, probabilities))

    # -- decoding, as mist_fairseq.models.generator does it ----------------------------------------------------------

    def _choose_lengths(self, scores: np.ndarray, decoding: Decoding) -> tuple[np.ndarray, list[dict[int, float]]]:
        """The likeliest lengths, final [SEP] counted, and all with their probabilities. (B, classes) -> (B, K)."""
        shortest = decoding.min_length + 1
        longest = min(self.max_target, (decoding.max_length or self.max_target) + 1)
        allowed = scores[:, shortest : longest + 1]
        order = (-allowed).argsort(axis=1, kind="stable")
        shares = np.exp(allowed - allowed.max(axis=1, keepdims=True))
        shares = np.take_along_axis(shares / shares.sum(axis=1, keepdims=True), order, axis=1)
        probabilities = [
            dict(zip(numbers, row)) for numbers, row in zip((order + decoding.min_length).tolist(), shares.tolist())
        ]
        return order[:, : decoding.length_beam] + shortest, probabilities

    def _masks(self, lengths: np.ndarray) -> np.ndarray:
        """[MASK]s of the given lengths, right-padded. *Shapes:* (B) -> (B, T)."""
        real = np.arange(lengths.max()) < lengths[:, None]
        return np.where(real, self.tokenizer.special.mask, self.tokenizer.special.pad)

    def _fill(self, tokens: np.ndarray, lengths: np.ndarray, source_lengths: np.ndarray, past: list[np.ndarray]):
        """Predict every [MASK]; the other tokens stay, with score 0. *Shapes:* (B, T) -> tokens, scores (B, T)."""
        feed = {"tokens": tokens, "lengths": lengths, "source_lengths": source_lengths}
        feed |= {f"past_{name}": part for name, part in zip(self._own, past)}
        predictions, scores = self._target.run(["predictions", "scores"], feed)
        known = len(self.tokenizer.symbols)
        if predictions.shape != tokens.shape or predictions.min() < 0 or predictions.max() >= known:
            raise ValueError("the target pass predicts what is no token of the vocabulary: its graph is another one")
        return predictions, scores

    def _start(self, lengths: np.ndarray, source_lengths: np.ndarray, past: list[np.ndarray]) -> "_Candidates":
        """The first pass."""
        tokens, scores = self._fill(self._masks(lengths), lengths, source_lengths, past)
        return _Candidates(tokens, scores, lengths, np.ones_like(lengths), [tokens])

    def _iterate_mist(self, found: "_Candidates", sources: np.ndarray, source_lengths: np.ndarray, iterations: int):
        """Mix the output into the source and fill again; a sentence that no longer changes is done."""
        active = np.arange(len(found.lengths))
        for _ in range(1, iterations):
            previous, lengths = found.tokens[active], found.lengths[active]
            mixed, mixed_lengths = mix_source(
                *(previous, lengths, sources[active], source_lengths[active]),
                limit=self.max_source,
                sep=self.tokenizer.special.sep,
                pad=self.tokenizer.special.pad,
            )
            past = self._source.run(self._own, {"tokens": mixed, "lengths": mixed_lengths})
            tokens, scores = self._fill(self._masks(lengths), lengths, mixed_lengths, past)
            width = tokens.shape[1]
            found.tokens = found.tokens.copy()
            found.tokens[active, :width] = tokens
            found.scores[active, :width] = scores
            found.steps[active] += 1
            found.history.append(found.tokens)
            if self.stop_unchanged:
                active = active[(tokens != previous[:, :width]).any(1)]
            if len(active) == 0:
                break

    def _iterate_mask_predict(
        self, found: "_Candidates", source_lengths: np.ndarray, past: list[np.ndarray], iterations: int
    ):
        """Mask the least confident tokens and predict these again, over the same source."""
        for done in range(1, iterations):
            masked = least_confident(found.scores, found.lengths, found.lengths * (iterations - done) // iterations)
            given = np.where(masked, self.tokenizer.special.mask, found.tokens)
            found.tokens, scores = self._fill(given, found.lengths, source_lengths, past)
            found.scores = np.where(masked, scores, found.scores)
            found.steps += 1
            found.history.append(found.tokens)

    def _hypothesis(self, found: "_Candidates", row: int, keep_repeats: bool) -> Hypothesis:
        length, steps = found.lengths[row], int(found.steps[row])
        tokens, scores = found.tokens[row, :length].tolist(), found.scores[row, :length]
        kept = self.tokenizer.text_positions(tokens, keep_repeats)
        history = [step[row, :length].tolist() for step in found.history[:steps]]
        return Hypothesis(
            ids=[tokens[i] for i in kept],
            scores=scores[kept].tolist(),
            score=float(scores.mean(dtype=np.float64)),
            steps=steps,
            history=[[ids[i] for i in self.tokenizer.text_positions(ids, keep_repeats)] for ids in history],
        )


@dataclass
class _Candidates:
    """A batch of outputs; as ``mist_fairseq.models.generator.Hypotheses``, in numpy."""

    tokens: np.ndarray
    scores: np.ndarray
    lengths: np.ndarray
    steps: np.ndarray
    history: list[np.ndarray]


def least_confident(scores: np.ndarray, lengths: np.ndarray, number: np.ndarray) -> np.ndarray:
    """The positions that Mask-Predict masks again, as ``mist_fairseq.models.generator.least_confident``.

    *Shapes:* (B, T), (B), (B) -> (B, T).
    """
    scores = np.where(np.arange(scores.shape[1]) < lengths[:, None], scores, np.inf)
    rank = scores.argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")
    return rank < np.minimum(number, lengths)[:, None]


def mix_source(
    pseudo: np.ndarray,
    pseudo_lengths: np.ndarray,
    source: np.ndarray,
    source_lengths: np.ndarray,
    *,
    limit: int,
    sep: int,
    pad: int,
) -> tuple[np.ndarray, np.ndarray]:
    """``[CLS] Y_p [SEP] X [SEP]``, as ``mist_fairseq.mist.mixing.mix_source``, no wider than its longest row.

    *Shapes:* (B, T), (B), (B, S), (B) -> (B, W), (B).
    """
    T, S = pseudo.shape[1], source.shape[1]
    last = np.take_along_axis(pseudo, pseudo_lengths[:, None] - 1, axis=1)[:, 0]
    inserted = pseudo_lengths + (last != sep)  # (B): Y_p and its [SEP]
    lengths = np.minimum(source_lengths + inserted, limit)
    position = np.arange(lengths.max())[None].repeat(len(lengths), axis=0)  # (B, W)
    from_pseudo = np.take_along_axis(pseudo, (position - 1).clip(0, T - 1), axis=1)
    from_source = np.take_along_axis(source, (position - inserted[:, None]).clip(0, S - 1), axis=1)
    mixed = np.where(position <= pseudo_lengths[:, None], from_pseudo, sep)
    mixed = np.where(position > inserted[:, None], from_source, mixed)
    mixed[:, 0] = source[:, 0]
    mixed = np.where(position == lengths[:, None] - 1, sep, mixed)
    return np.where(position < lengths[:, None], mixed, pad), lengths


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


# -- sessions ---------------------------------------------------------------------------------------------------


@functools.cache
def _sums_in_32_bits() -> bool:
    """Whether this x86 processor adds products of 8-bit integers without saturating (VNNI)."""
    try:
        return "vnni" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)[:3]]


def is_supported() -> bool:
    """Whether ONNX Runtime is installed, and not too old."""
    try:
        import onnxruntime
    except ImportError:
        return False
    return _numbers(onnxruntime.__version__) >= _numbers(OLDEST)


def start_session(model: str | bytes, threads: int = 0):
    """What runs an ONNX graph on the CPU.

    Args:
        model: a file's name, or a serialized graph.
        threads: how many, 0 for one for each core.

    Raises:
        ValueError: ONNX Runtime is not installed or too old, or cannot read the file; names it.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ValueError(
            "ONNX Runtime is not installed: pip install -e .[onnxruntime] or, without torch and fairseq, "
            "pip install onnxruntime"
        ) from error
    if not is_supported():
        raise ValueError(
            f"ONNX Runtime is {onnxruntime.__version__}, expected {OLDEST} or newer: "
            f"pip install 'onnxruntime>={OLDEST}'"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors
    if not _sums_in_32_bits():
        options.add_session_config_entry("session.x64quantprecision", "1")
    options.add_session_config_entry("session.force_spinning_stop", "1")  # its threads wait busily, but in a run only
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of many classes, all derived from this one alone
        if isinstance(model, bytes):
            raise
        raise ValueError(
            f"{model} is damaged, or of a version that ONNX Runtime {onnxruntime.__version__} does not read: export "
            f"the model again, or install a newer onnxruntime ({error})"
        ) from error
