"""The systems that a benchmark can time: fairseq models, and the same run by CTranslate2, Hugging Face and as ONNX.

All of them answer the same sentences of binarized data, token ids in and token ids out.
"""

import copy
import os
import shlex
import tempfile
from argparse import Namespace

import numpy as np
import torch
from fairseq import checkpoint_utils, options, tasks, utils
from fairseq.dataclass.utils import convert_namespace_to_omegaconf, overwrite_args_by_name
from fairseq.iterative_refinement_generator import IterativeRefinementGenerator
from fairseq.tasks import TASK_DATACLASS_REGISTRY
from fairseq.tasks.translation_lev import TranslationLevenshteinTask
from omegaconf import open_dict

import mist_fairseq.tasks
from mist_fairseq.engines.cuda_graph import CudaGraphEngine
from mist_fairseq.experiments.benchmark.forced import force
from mist_fairseq.experiments.benchmark.inputs import Entry
from mist_fairseq.experiments.benchmark.measuring import milliseconds
from mist_fairseq.extras import install_line
from mist_fairseq.files.torch_files import load_torch_file, plain_values
from mist_fairseq.generate.decoding import decode
from mist_fairseq.hub.onnx_generator import OnnxGenerator
from mist_fairseq.models.baselines.huggingface_generator import HuggingFaceGenerator, import_transformers
from mist_fairseq.models.mist_model import MistModel
from mist_fairseq.models.nar_generator import NARGenerator
from mist_fairseq.release.onnx_folder import FILES, save_onnx

PARTS = ["source pass", "length", "target pass", "overhead"]
_PLUGIN = mist_fairseq.__path__[0]


class System:
    """A fairseq model that generates as its task does, and the base of the other engines."""

    settle = 0.02  # seconds until its threads leave the processor to others

    def __init__(self, entry: Entry, device: torch.device, forced: bool):
        self.entry, self.device = entry, device
        # Not the validation of a training that stored its options in the checkpoint.
        overrides = {"data": entry.data_path, "eval_bleu": False, **entry.options}
        if entry.engine == "fairseq":  # our models know what to make of it
            overrides["precision"] = entry.precision
        if entry.path is None:
            self.cfg = training_configuration(entry)
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
        self._start()
        if isinstance(self.generator, HuggingFaceGenerator):
            self.generator.score = False  # fairseq's beam search has its scores without another pass
        self.forcing = force(self.model, self.generator) if forced else None

    def _start(self):
        """Make ``generator``, as fairseq-generate does."""
        if "precision" not in self.task.cfg:  # else the model sees to it
            if self.entry.precision == "int8":
                raise ValueError("fairseq's own models do not run in int8: use fp32 or bf16, or engine ctranslate2")
            if self.entry.precision == "bf16":
                self.model.to(torch.bfloat16)
        self.model.to(self.device).prepare_for_inference_(self.cfg)
        self.generator = self.task.build_generator([self.model], self.cfg.generation)

    @property
    def is_ours(self) -> bool:
        """Whether source passes and target passes of an engine make up its time."""
        return isinstance(self.generator, NARGenerator)

    @property
    def captures(self) -> bool:
        """Whether the first batch of a shape takes longer, as it is captured."""
        return isinstance(getattr(self.model, "engine", None), CudaGraphEngine)

    def time_parts(self, sample: dict) -> dict[str, float]:
        """Generate, and return the milliseconds of each of ``PARTS``; the lengths of a batch are scored once."""
        engine, spent = self.model.engine, dict.fromkeys(PARTS, 0.0)
        encode, fill = engine.encode, engine.fill

        def timed_encode(*given):
            elapsed, state = milliseconds(encode, *given)
            if not spent["source pass"]:
                spent["length"], _ = milliseconds(lambda: state.length_scores)
            spent["source pass"] += elapsed
            return state

        def timed_fill(*given):
            elapsed, filled = milliseconds(fill, *given)
            spent["target pass"] += elapsed
            return filled

        engine.encode, engine.fill = timed_encode, timed_fill
        total, _ = milliseconds(self.decode, sample)
        engine.encode, engine.fill = encode, fill
        return spent | {"overhead": total - sum(spent.values())}

    def load_data(self, subset: str):
        """Load a split of the data."""
        self.task.load_dataset(subset)
        self.dataset = self.task.dataset(subset)

    def batch(self, indices) -> dict:
        """Return a batch of sentences, on the device, with what its outputs are forced to."""
        sample = self.dataset.collater([self.dataset[int(i)] for i in indices])
        lengths = passes = None
        if self.forcing is not None:
            if sample["target"] is None:
                raise ValueError(f"{self.entry.data_path} has no targets, whose lengths the outputs should have")
            shortest = 3 if isinstance(self.task, TranslationLevenshteinTask) else 2  # a word and the special ones
            lengths = sample["target"].ne(self.dictionary.pad()).sum(1).clamp(min=shortest)
            if self.entry.passes:
                passes = torch.tensor([_draw(self.entry.passes, int(i)) for i in sample["id"]])
            if isinstance(self.generator, NARGenerator):
                longest, beam = self.model.limits.target, self.generator.decoding.width
                sample["lengths"] = lengths.clamp(max=longest).repeat_interleave(beam)
        sample["forced"] = sample["id"], lengths, passes
        return utils.move_to_cuda(sample) if self.device.type == "cuda" else sample

    def decode(self, sample: dict) -> list:
        """Generate; this is what is timed. The hypotheses have the engine's own form."""
        if self.forcing is not None:
            self.forcing(*sample["forced"])
        return self.task.inference_step(self.generator, [self.model], copy.copy(sample))

    def read(self, sample: dict, hypotheses: list) -> dict[int, tuple[list[int], int]]:
        """Return by sentence tokens without special ones, and passes over the target; ValueError if one is missing."""
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
        """Return readable text."""
        return self.dictionary.string(torch.tensor(tokens), self.cfg.common_eval.post_process)


def _draw(passes: dict[int, float], i: int) -> int:
    """Draw the number of passes of sentence *i*, the same each time."""
    numbers, weights = zip(*passes.items())
    return int(np.random.default_rng(i).choice(numbers, p=np.array(weights) / sum(weights)))


def _check_options(entry: Entry, cfg):
    """Refuse options that nothing would read."""
    if isinstance(cfg, Namespace):  # of old checkpoints, all options in one
        cfg = {"task": vars(cfg), "model": {}, "generation": {}}
    parts = [cfg["task"], cfg["model"], cfg["generation"], _task_options(cfg)]
    known = {name for part in parts for name in (vars(part) if isinstance(part, Namespace) else part or ())}
    for name in entry.options:
        if name not in known or name == "precision":
            raise ValueError(f"option {name!r} is none of its task, model or generation")


def _task_options(cfg) -> dict[str, object]:
    """Return the task's options with their defaults, also those that are newer than a checkpoint."""
    kind = TASK_DATACLASS_REGISTRY.get((cfg["task"] or {}).get("_name"))
    return {} if kind is None else vars(kind())


class CTranslate2System(System):
    """fairseq's Transformer, converted by CTranslate2's own converter and run by it."""

    settle = 0.25  # its OpenMP threads wait busily for 200 ms

    def _start(self):
        try:
            import ctranslate2
        except ImportError as error:
            raise ValueError(f"CTranslate2 is not installed: {install_line('benchmark')}") from error
        precision = {"fp32": "float32", "bf16": "bfloat16", "int8": "int8"}[self.entry.precision]
        given = {"device": self.device.type, "compute_type": precision, "intra_threads": torch.get_num_threads()}
        with tempfile.TemporaryDirectory() as folder:
            checkpoint, out = os.path.join(self.entry.folder, self.entry.path or ""), os.path.join(folder, "model")
            if self.entry.path is None:
                checkpoint = os.path.join(folder, "random.pt")
                torch.save({"args": self.cfg.model, "model": self.model.state_dict()}, checkpoint)
            converter = ctranslate2.converters.FairseqConverter(checkpoint, self.entry.data_path, user_dir=_PLUGIN)
            load, dictionary = converter._load, self.dictionary

            def load_with_our_special_tokens():
                with plain_values():
                    spec = load()
                spec.config.bos_token, spec.config.unk_token = dictionary.bos_word, dictionary.unk_word
                spec.config.eos_token = spec.config.decoder_start_token = dictionary.eos_word
                return spec

            converter._load = load_with_our_special_tokens
            converter.convert(out)
            self.generator = ctranslate2.Translator(out, inter_threads=1, **given)  # reads all of it
        self.model = None

    def batch(self, indices):
        """Return sources as CTranslate2 takes them, lists of pieces; it appends the final one itself."""
        sample = super().batch(indices)
        rows = sample["net_input"]["src_tokens"].tolist()
        sample["pieces"] = [[self.dictionary[i] for i in row if i not in self._special] for row in rows]
        return sample

    def decode(self, sample):
        """Return CTranslate2's result for each sentence of a batch."""
        generation = self.cfg.generation
        given = {"beam_size": generation.beam, "length_penalty": generation.lenpen}
        given["max_decoding_length"] = generation.max_len_b
        if self.forcing is not None:  # one length for the batch, the longest
            given["min_decoding_length"] = given["max_decoding_length"] = int(sample["forced"][1].max())
        return self.generator.translate_batch(sample["pieces"], **given)

    def _read(self, result):
        tokens = [self.dictionary.index(piece) for piece in result.hypotheses[0]]
        # The final token is not among them, nor, with a prescribed length, ever made.
        return tokens, len(tokens) + (self.forcing is None)


class HuggingFaceSystem(System):
    """fairseq's Transformer in Hugging Face's Marian, which computes the same, by ``generate``."""

    def _start(self):
        transformers = import_transformers()
        args, dictionary = self.cfg.model, self.dictionary
        pad, eos = dictionary.pad(), dictionary.eos()
        # Sinusoids, of which each side has as many as it needs; they begin behind that of padding.
        sides = [self.model.encoder, self.model.decoder]
        positions = max((side.embed_positions.weights for side in sides), key=len)[pad + 1 :]
        names = ["encoder", "decoder"]
        sizes = {f"{name}_{part}": f"{name}_{part}" for name in names for part in ("layers", "attention_heads")}
        sizes |= {f"{name}_ffn_dim": f"{name}_ffn_embed_dim" for name in names} | {"d_model": "encoder_embed_dim"}
        tokens = {"pad_token_id": pad, "bos_token_id": dictionary.bos(), "eos_token_id": eos}
        config = transformers.MarianConfig(
            **{theirs: getattr(args, ours) for theirs, ours in sizes.items()},
            **tokens,
            vocab_size=len(dictionary),
            max_position_embeddings=len(positions),
            activation_function=args.activation_fn,
            scale_embedding=True,
            forced_eos_token_id=None,
            decoder_start_token_id=eos,
        )
        tables = [*(side.embed_tokens.weight for side in sides), self.model.decoder.output_projection.weight]
        if args.no_scale_embedding or not all(torch.equal(table, tables[0]) for table in tables):
            raise ValueError("Hugging Face's Marian has one matrix for all embeddings, scaled: --share-all-embeddings")
        model = transformers.MarianMTModel(config)
        state = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        state["lm_head.weight"] = state.pop("model.decoder.output_projection.weight")
        state["model.shared.weight"] = state["model.encoder.embed_tokens.weight"]
        state |= {f"model.{side}.embed_positions.weight": positions for side in names}
        state = {name: value for name, value in state.items() if not name.endswith(".version")}
        model.load_state_dict(state | {"final_logits_bias": model.final_logits_bias})  # which stays 0
        precision = torch.bfloat16 if self.entry.precision == "bf16" else torch.float32
        self.model = model.eval().to(self.device, precision)
        self.generator = HuggingFaceGenerator(self.model, pad=pad, eos=eos, start=eos, options=self.cfg.generation)


class OnnxSystem(System):
    """Our model as ``scripts/export.py --to onnx`` writes it, run with neither torch nor fairseq."""

    def _start(self):
        if self.device.type != "cpu":
            raise ValueError("engine onnx runs on CPUs")
        if not isinstance(self.model, MistModel):
            raise ValueError(f"engine onnx is for --task mist, not for {type(self.model).__name__}")
        precision, accelerate = self.entry.precision, self.entry.options.get("accelerate", "auto")
        self.generator = self.task.build_generator([self.model], self.cfg.generation)  # for its options
        with tempfile.TemporaryDirectory() as folder:
            save_onnx(self.model.released, folder, precisions=[precision] if precision in FILES else list(FILES))
            self.onnx = OnnxGenerator.from_pretrained(folder, precision, torch.get_num_threads(), accelerate=accelerate)
        self.model.engine = self.onnx.engine
        self.model.to("meta")  # its weights are not needed any more, its sizes are

    def batch(self, indices):
        """Return a batch with its sources and lengths as arrays of numpy."""
        sample = super().batch(indices)
        inputs = sample["net_input"]
        arrays = inputs["src_tokens"], inputs["src_lengths"], sample.get("lengths")
        sample["arrays"] = [None if tensor is None else tensor.numpy() for tensor in arrays]
        return sample

    def decode(self, sample):
        """Return the best output's ids and passes for each sentence of a batch."""
        tokens, lengths, target_lengths = sample["arrays"]
        given = self.generator.decoding, self.onnx.tokenizer.special, self.onnx.limits
        forced = {"target_lengths": target_lengths, "stop_unchanged": self.forcing is None}
        candidates = decode(self.model.engine, tokens, lengths, *given, **forced)
        rows = [ranked[0][0] for ranked in candidates.ranked()]
        ids = [candidates.tokens[row, : candidates.lengths[row]].tolist() for row in rows]
        return list(zip(ids, candidates.steps[rows].tolist()))

    def _read(self, answer):
        ids, passes = answer
        kept = self.onnx.tokenizer.text_positions(ids, self.generator.decoding.keep_repeats)
        return [ids[i] for i in kept if ids[i] not in self._special], passes


_CLASSES = {"fairseq": System, "ctranslate2": CTranslate2System, "huggingface": HuggingFaceSystem, "onnx": OnnxSystem}


def load_system(entry: Entry, forced: bool = False, device: torch.device | None = None) -> System:
    """Load a system, by default to a GPU; *forced* gives outputs their references' lengths and ``entry.passes``."""
    return _CLASSES[entry.engine](entry, device or torch.device("cuda" if torch.cuda.is_available() else "cpu"), forced)


def training_configuration(entry: Entry):
    """Return the configuration that fairseq-train makes of a system's arguments; ValueError if it refuses them."""
    given = [entry.data_path, "--user-dir", _PLUGIN, *shlex.split(entry.arguments or "")]
    try:
        args = options.parse_args_and_arch(options.get_training_parser(), given)
    except SystemExit as error:
        raise ValueError(f"fairseq-train does not take the arguments {entry.arguments!r}") from error
    return convert_namespace_to_omegaconf(args)
