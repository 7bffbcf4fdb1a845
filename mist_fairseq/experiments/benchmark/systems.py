"""The systems that a benchmark can time: fairseq models, and the same run by CTranslate2, Hugging Face and as ONNX.

All of them answer the same sentences of binarized data, token ids in and token ids out.
"""

import copy
import os
import shlex
import tempfile
from argparse import Namespace
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq import checkpoint_utils, options, tasks, utils
from fairseq.dataclass.utils import convert_namespace_to_omegaconf, overwrite_args_by_name
from fairseq.iterative_refinement_generator import IterativeRefinementGenerator
from fairseq.tasks import TASK_DATACLASS_REGISTRY
from fairseq.tasks.translation_lev import TranslationLevenshteinTask
from omegaconf import open_dict

import mist_fairseq.tasks  # noqa: F401 # registers with fairseq
from mist_fairseq.experiments.benchmark.forced import Forcing, force
from mist_fairseq.experiments.benchmark.yaml_files import read_yaml
from mist_fairseq.files.torch_files import load_torch_file
from mist_fairseq.generate.generator import Decoding, Source
from mist_fairseq.hub.onnx_generator import OnnxGenerator
from mist_fairseq.models.baselines.huggingface import HuggingFaceGenerator, import_transformers
from mist_fairseq.models.mist import MistModel
from mist_fairseq.release.onnx_folder import save_onnx

GROUPS = ["AR", "Semi-NAR", "NAR"]
PRECISIONS = ["fp32", "bf16", "int8"]
_PLUGIN = str(Path(__file__).parents[2])


@dataclass
class Entry:
    """One system of the list.

    Attributes:
        name: of its row.
        path: checkpoint of fairseq.
        arguments: instead of a checkpoint, what fairseq-train would be given (``--task``, ``--arch``, sizes): random
            weights.
        engine: what runs it, one of ``ENGINES``.
        group: ``AR``, ``Semi-NAR`` or ``NAR``, as in the paper's tables.
        precision: ``fp32``, ``bf16`` or, for ctranslate2 and our own models, ``int8``.
        options: of task, model and generation by fairseq's names: ``beam``, ``decoding``, ``iter_decode_max_iter``, ...
        data: folder of binarized data.
        folder: where *path* and *data* are looked for.
        passes: probability of each number of passes over the target, where lengths are prescribed; None for the
            system's own number.
    """

    name: str
    path: str | None = None
    arguments: str | None = None
    engine: str = "fairseq"
    group: str = "NAR"
    precision: str = "fp32"
    options: dict = field(default_factory=dict)
    data: str = ""
    folder: str = ""
    passes: dict[int, float] | None = None

    @property
    def data_path(self) -> str:
        """Where the data is."""
        return os.path.join(self.folder, self.data)

    def __post_init__(self):
        where = f"system {self.name!r}"
        if not self.name or not isinstance(self.name, str):
            raise ValueError(f"a system's name is {self.name!r}, expected text")
        if (self.path is None) == (self.arguments is None):
            raise ValueError(f"{where}: give either path, a checkpoint, or arguments, for random weights")
        known = {"engine": list(ENGINES), "group": GROUPS, "precision": PRECISIONS}
        for key, values in known.items():
            if getattr(self, key) not in values:
                raise ValueError(f"{where}: {key} is {getattr(self, key)!r}, expected one of {', '.join(values)}")
        for key in ("path", "arguments", "data"):
            value = getattr(self, key)
            if not isinstance(value, str) and not (value is None and key != "data"):
                raise ValueError(f"{where}: {key} is {value!r}, expected text")
        if not isinstance(self.options, dict):
            raise ValueError(f"{where}: options are {self.options!r}, expected names with values")
        if self.passes is not None and not isinstance(self.passes, dict):
            raise ValueError(f"{where}: passes are {self.passes!r}, expected numbers with their probabilities")


def read_entries(path: Path) -> tuple[list[Entry], dict]:
    """The systems of a YAML file, and its other settings.

    Top level: ``systems``, a list of ``Entry``, and common to all ``data``, ``subset``, ``reference``, ``source``,
    ``protocol`` and ``metrics``. Files are looked for from the YAML file's folder on.

    Raises:
        ValueError: the file is no such YAML; says what is wrong.
    """
    content = read_yaml(path)
    settings = ["data", "subset", "reference", "source", "protocol", "metrics"]
    if not isinstance(content, dict) or not isinstance(content.get("systems"), list):
        raise ValueError(f"{path} has no list of systems")
    common = {key: value for key, value in content.items() if key != "systems"}
    _check_keys(common, settings, str(path))
    entries, keys = [], [one.name for one in fields(Entry) if one.name != "folder"]
    for given in content["systems"]:
        if not isinstance(given, dict):
            raise ValueError(f"{path}: a system is {given!r}, expected name, path and the like")
        _check_keys(given, keys, f"{path}: system {given.get('name')!r}")
        try:
            entries.append(Entry(**{"name": "", "data": common.get("data", ""), **given, "folder": str(path.parent)}))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    check_names(entries, str(path))
    named = {key: str(path.parent / str(common[key])) for key in ("reference", "source") if common.get(key)}
    return entries, common | named


def check_names(entries: list[Entry], where: str):
    """Refuse two systems of the same name."""
    names = [entry.name for entry in entries]
    if len(set(names)) < len(names):
        raise ValueError(f"{where}: two systems have the same name")


def _check_keys(given: dict, known: list[str], where: str):
    for key in given:
        if key not in known:
            raise ValueError(f"{where}: {key!r} is unknown, expected {', '.join(known)}")


class System:
    """A fairseq model that generates as its task does, and the base of the other engines.

    Args:
        entry: what to load.
        device: where to.
        forced: give every output the length of its reference, and ``entry.passes``.

    Attributes:
        settle: seconds until its threads leave the processor to others.
    """

    settle = 0.0

    def __init__(self, entry: Entry, device: torch.device, forced: bool = False):
        self.entry, self.device = entry, device
        # Not the validation of a training that stored its options in the checkpoint.
        overrides = {"data": entry.data_path, "eval_bleu": False, **entry.options}
        if entry.engine == "fairseq":  # our models know what to make of it
            overrides["precision"] = entry.precision
        if entry.path is None:
            self.cfg = _training_configuration(entry)
            _check_options(entry, self.cfg)
            overwrite_args_by_name(self.cfg, overrides)
            self.task = tasks.setup_task(self.cfg.task)
            self.model = self.task.build_model(self.cfg.model)
        else:
            path = os.path.join(entry.folder, entry.path)
            if entry.options and os.path.isfile(path):
                state = load_torch_file(path, mmap=True)
                _check_options(entry, state.get("cfg") or state["args"])
            models, self.cfg, self.task = checkpoint_utils.load_model_ensemble_and_task([path], overrides)
            (self.model,) = models
            with open_dict(self.cfg):
                for name, default in _task_options(self.cfg).items():
                    if name not in self.cfg.task:
                        self.cfg.task[name] = self.task.cfg[name] = overrides.get(name, default)
        self.model.eval()
        self.parameters = sum(parameter.numel() for parameter in self.model.parameters())
        self.dictionary = self.task.target_dictionary
        self._special = {self.dictionary.pad(), self.dictionary.bos(), self.dictionary.eos()}
        self._shortest = 3 if isinstance(self.task, TranslationLevenshteinTask) else 2  # a word and the special ones
        self._start()
        if isinstance(self.generator, HuggingFaceGenerator):
            self.generator.score = False  # fairseq's beam search has its scores without another pass
        self.forcing = self._force() if forced else None

    def _start(self):
        """Make ``generator``, as fairseq-generate does."""
        if "precision" not in self.task.cfg:  # else the model sees to it
            if self.entry.precision == "int8":
                raise ValueError("fairseq's own models do not run in int8: use fp32 or bf16, or engine ctranslate2")
            if self.entry.precision == "bf16":
                self.model.to(torch.bfloat16)
        self.model.to(self.device).prepare_for_inference_(self.cfg)
        self.generator = self.task.build_generator([self.model], self.cfg.generation)

    def _force(self) -> Forcing:
        return force(self.model, self.generator)

    def load_data(self, subset: str):
        """Load a split of the data."""
        self.task.load_dataset(subset)
        self.dataset = self.task.dataset(subset)

    def batch(self, indices) -> dict:
        """A batch of sentences, on the device, with what its outputs are forced to."""
        sample = self.dataset.collater([self.dataset[int(i)] for i in indices])
        lengths = passes = None
        if self.forcing is not None:
            if sample["target"] is None:
                raise ValueError(f"{self.entry.data_path} has no targets, whose lengths the outputs should have")
            lengths = sample["target"].ne(self.dictionary.pad()).sum(1).clamp(min=self._shortest)
            if self.entry.passes:
                passes = torch.tensor([_draw(self.entry.passes, int(i)) for i in sample["id"]])
        sample["forced"] = sample["id"], lengths, passes
        return utils.move_to_cuda(sample) if self.device.type == "cuda" else sample

    def decode(self, sample: dict) -> list:
        """What is timed: token ids in, hypotheses out."""
        if self.forcing is not None:
            self.forcing.prescribe(*sample["forced"])
        return self.task.inference_step(self.generator, [self.model], copy.copy(sample))

    def read(self, sample: dict, hypotheses: list) -> dict[int, tuple[list[int], int]]:
        """Of what ``decode`` gave: by sentence, tokens without special ones and the passes over the target.

        Raises:
            ValueError: there are fewer or more outputs than sentences.
        """
        if len(hypotheses) != len(sample["id"]):
            raise ValueError(f"{len(hypotheses)} outputs for {len(sample['id'])} sentences")
        return {i: self._read(hypothesis) for i, hypothesis in zip(sample["id"].tolist(), hypotheses)}

    def _read(self, ranked: list[dict]) -> tuple[list[int], int]:
        tokens = ranked[0]["tokens"].tolist()
        # fairseq's iterative refinement counts passes from 0; word by word there are as many as tokens.
        refined = isinstance(self.generator, IterativeRefinementGenerator)
        passes = ranked[0]["steps"] + refined if "steps" in ranked[0] else len(tokens)
        return [token for token in tokens if token not in self._special], int(passes)

    def text(self, tokens: list[int]) -> str:
        """Readable output."""
        return self.dictionary.string(torch.tensor(tokens), self.cfg.common_eval.post_process)

    def close(self):
        """Remove what was written."""


def _draw(passes: dict[int, float], i: int) -> int:
    """The number of passes of sentence *i*."""
    numbers, weights = zip(*passes.items())
    return int(np.random.default_rng(i).choice(numbers, p=np.array(weights) / sum(weights)))


class CTranslate2System(System):
    """fairseq's Transformer, converted by CTranslate2's own converter and run by it."""

    settle = 0.25  # its OpenMP threads wait busily for 200 ms

    def _start(self):
        try:
            import ctranslate2
        except ImportError as error:
            raise ValueError("CTranslate2 is not installed: pip install -e .[benchmark]") from error
        self._folder = tempfile.TemporaryDirectory()
        checkpoint, out = (
            os.path.join(self.entry.folder, self.entry.path or ""),
            os.path.join(self._folder.name, "model"),
        )
        if self.entry.path is None:
            checkpoint = os.path.join(self._folder.name, "random.pt")
            torch.save({"args": self.cfg.model, "model": self.model.state_dict()}, checkpoint)
        _converter(ctranslate2, self.dictionary)(checkpoint, self.entry.data_path, user_dir=_PLUGIN).convert(out)
        self.generator = ctranslate2.Translator(
            out,
            device=self.device.type,
            compute_type={"fp32": "float32", "bf16": "bfloat16"}.get(self.entry.precision, self.entry.precision),
            inter_threads=1,
            intra_threads=torch.get_num_threads(),
        )
        self.model = None
        if self.entry.path is None:
            os.remove(checkpoint)

    def _force(self):
        return Forcing()

    def batch(self, indices):
        """The sources as CTranslate2 takes them, lists of pieces; it appends the final one itself."""
        sample = super().batch(indices)
        rows = sample["net_input"]["src_tokens"].tolist()
        sample["pieces"] = [[self.dictionary[i] for i in row if i not in self._special] for row in rows]
        return sample

    def decode(self, sample):
        """CTranslate2's result for each sentence of a batch."""
        generation, length = self.cfg.generation, {}
        if self.forcing is not None:  # one length for the batch, the longest
            longest = int(sample["forced"][1].max())
            length = {"min_decoding_length": longest, "max_decoding_length": longest}
        return self.generator.translate_batch(
            sample["pieces"],
            beam_size=generation.beam,
            length_penalty=generation.lenpen,
            **{"max_decoding_length": generation.max_len_b, **length},
        )

    def _read(self, result):
        tokens = [self.dictionary.index(piece) for piece in result.hypotheses[0]]
        # The final token is not among them, nor, with a prescribed length, ever made.
        return tokens, len(tokens) + (self.forcing is None)

    def close(self):
        """Free the model, and delete its converted copy."""
        del self.generator
        self._folder.cleanup()


def _check_options(entry: Entry, cfg):
    """Refuse options that nothing would read."""
    # Checkpoints of old have all options in one.
    parts = [cfg] if isinstance(cfg, Namespace) else [cfg[part] for part in ("task", "model", "generation")]
    known = {name for part in parts for name in (vars(part) if isinstance(part, Namespace) else part or ())}
    known |= set(_task_options(cfg))
    for name in entry.options:
        if name not in known or name == "precision":
            raise ValueError(f"option {name!r} is none of its task, model or generation")


def _task_options(cfg) -> dict[str, object]:
    """The task's options with their defaults, also those that it did not have yet when a checkpoint was written."""
    kind = None if isinstance(cfg, Namespace) else TASK_DATACLASS_REGISTRY.get((cfg["task"] or {}).get("_name"))
    return {} if kind is None else vars(kind())


def _converter(ctranslate2, dictionary):
    """CTranslate2's own converter, told the names of our special tokens."""
    base: Any = ctranslate2.converters.FairseqConverter

    class Converter(base):
        def _load(self):
            spec = super()._load()
            spec.config.bos_token, spec.config.unk_token = dictionary.bos_word, dictionary.unk_word
            spec.config.eos_token = spec.config.decoder_start_token = dictionary.eos_word
            return spec

    return Converter


class HuggingFaceSystem(System):
    """fairseq's Transformer in Hugging Face's Marian, which computes the same, by ``generate``."""

    def _start(self):
        transformers = import_transformers()
        args, generation, dictionary = self.cfg.model, self.cfg.generation, self.dictionary
        pieces = {"pad": dictionary.pad(), "bos": dictionary.bos(), "eos": dictionary.eos()}
        special = {f"{name}_token_id": i for name, i in [*pieces.items(), ("decoder_start", dictionary.eos())]}
        # Sinusoids, of which each side has as many as it needs; they begin behind that of padding.
        both = [getattr(self.model, side).embed_positions.weights for side in ("encoder", "decoder")]
        positions = max(both, key=len)[dictionary.pad() + 1 :]
        config = transformers.MarianConfig(
            vocab_size=len(dictionary),
            d_model=args.encoder_embed_dim,
            encoder_layers=args.encoder_layers,
            decoder_layers=args.decoder_layers,
            encoder_ffn_dim=args.encoder_ffn_embed_dim,
            decoder_ffn_dim=args.decoder_ffn_embed_dim,
            encoder_attention_heads=args.encoder_attention_heads,
            decoder_attention_heads=args.decoder_attention_heads,
            max_position_embeddings=len(positions),
            activation_function=args.activation_fn,
            scale_embedding=True,
            forced_eos_token_id=None,
            **special,
        )
        tables = (
            self.model.encoder.embed_tokens,
            self.model.decoder.embed_tokens,
            self.model.decoder.output_projection,
        )
        if args.no_scale_embedding or not all(torch.equal(table.weight, tables[0].weight) for table in tables):
            raise ValueError("Hugging Face's Marian has one matrix for all embeddings, scaled: --share-all-embeddings")
        model = transformers.MarianMTModel(config)
        state = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        state["lm_head.weight"] = state.pop("model.decoder.output_projection.weight")
        state["model.shared.weight"] = state["model.encoder.embed_tokens.weight"]
        state |= {f"model.{side}.embed_positions.weight": positions for side in ("encoder", "decoder")}
        missing, unexpected = model.load_state_dict(state, strict=False)
        wrong = [name for name in [*missing, *unexpected] if not name.endswith(("final_logits_bias", "version"))]
        if wrong:
            raise ValueError(f"Hugging Face's Marian has other weights than this model: {', '.join(wrong[:5])}")
        precision = torch.bfloat16 if self.entry.precision == "bf16" else torch.float32
        self.model = model.eval().to(self.device, precision)
        self.generator = HuggingFaceGenerator(
            self.model,
            pad=dictionary.pad(),
            eos=dictionary.eos(),
            start=dictionary.eos(),
            options=generation,
        )


class OnnxSystem(System):
    """Our model as ``scripts/export.py --to onnx`` writes it, run with neither torch nor fairseq."""

    def _start(self):
        if self.device.type != "cpu":
            raise ValueError("engine onnx runs on CPUs")
        if not isinstance(self.model, MistModel):
            raise ValueError(f"engine onnx is for --task mist, not for {type(self.model).__name__}")
        for name, usual in (("accelerate", "auto"), ("length_guesses", 0)):
            if name in self.entry.options and self.entry.options[name] != usual:
                raise ValueError(f"engine onnx has no option {name!r}: leave it out")
        task = self.cfg.task
        self.decoding = Decoding(
            decoding=str(task.decoding),
            iterations=task.decoding_iterations,
            length_beam=task.length_beam,
            min_length=task.min_length,
            max_length=task.max_length,
            keep_repeats=task.keep_repeats,
        )
        with tempfile.TemporaryDirectory() as folder:
            save_onnx(self.model, folder)
            self.generator = OnnxGenerator.from_pretrained(folder, self.entry.precision, torch.get_num_threads())
        self.model = None

    def _force(self):
        if self.decoding.width > 1:
            raise ValueError("output lengths cannot be prescribed with engine onnx and a length_beam: leave it at 1")
        self.generator.stop_unchanged = False
        return Forcing()

    def batch(self, indices):
        """The sources as lists of ids, without padding."""
        sample = super().batch(indices)
        inputs = sample["net_input"]
        rows = [row[:size].tolist() for row, size in zip(inputs["src_tokens"], inputs["src_lengths"].tolist())]
        lengths = [None] * len(rows)
        if self.forcing is not None:
            lengths = (sample["forced"][1].clamp(max=self.generator.max_target) - 1).tolist()
        sample["sources"] = [Source(ids, length) for ids, length in zip(rows, lengths)]
        return sample

    def decode(self, sample):
        """Of each sentence of a batch its hypotheses and the scores of its lengths."""
        return self.generator.generate_ids(sample["sources"], self.decoding)

    def _read(self, result):
        hypotheses, _ = result
        return [token for token in hypotheses[0].ids if token not in self._special], hypotheses[0].steps


ENGINES = {"fairseq": System, "ctranslate2": CTranslate2System, "huggingface": HuggingFaceSystem, "onnx": OnnxSystem}


def load_system(entry: Entry, device: torch.device, forced: bool = False) -> System:
    """Load a system of whichever engine. Args: as ``System``."""
    return ENGINES[entry.engine](entry, device, forced)


def _training_configuration(entry: Entry):
    """What fairseq-train makes of a system's arguments."""
    parser = options.get_training_parser()
    given = [entry.data_path, "--user-dir", _PLUGIN, *shlex.split(entry.arguments)]
    try:
        args = options.parse_args_and_arch(parser, given)
    except SystemExit as error:
        raise ValueError(f"fairseq-train does not take the arguments {entry.arguments!r}") from error
    return convert_namespace_to_omegaconf(args)
