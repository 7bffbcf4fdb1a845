"""``MistGenerator``: a model in Python, raw text in and readable text out, with fairseq's hub conventions."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from mist_fairseq.checkpoints.loading import load_checkpoint
from mist_fairseq.generate.generator import Decoding, Hypothesis, TextGenerator
from mist_fairseq.models.generator import NARGenerator
from mist_fairseq.models.mist import PRECISIONS, MistModel
from mist_fairseq.release.folder import load_folder


class MistGenerator(TextGenerator, nn.Module):
    """A model that generates for raw texts.

    ::

        generator = MistGenerator.from_pretrained("released")
        generator.generate(["How can I learn the guitar fast?"], decoding="mist", iterations=3)

    ``to``, ``half``, ``eval`` and the like are those of ``nn.Module``.

    Args:
        model: a trained model.
        precision: ``fp32``, ``bf16`` or ``int8``; after ``half`` or ``bfloat16`` that of the weights.
        accelerate: what runs the model, as of the command line; by default ONNX Runtime on a CPU where it is installed
            and can do it, else PyTorch as it is.
    """

    def __init__(self, model: MistModel, precision: str = "fp32", accelerate: str = "auto"):
        known = [str(one) for one in PRECISIONS]
        if precision not in known:
            raise ValueError(f"precision is {precision!r}, expected one of {', '.join(known)}")
        nn.Module.__init__(self)
        self._configure(model.dictionary.tokenizer, model.limits.source, model.limits.target)
        self.model = model.eval()
        self.precision, self.accelerate = precision, accelerate
        self._prepare()

    @classmethod
    def from_pretrained(
        cls,
        folder: str,
        checkpoint_file: str | None = None,
        data_name_or_path: str = ".",
        *,
        precision: str = "fp32",
        accelerate: str = "auto",
    ) -> "MistGenerator":
        """Load a released model, or a fairseq checkpoint.

        Args:
            folder: a released model, which ``scripts/export.py`` wrote; or a folder of checkpoints.
            checkpoint_file: the checkpoint's name in *folder*, for instance ``checkpoint_best.pt``.
            data_name_or_path: for a checkpoint the folder of its ``dict.*.txt``; seen from *folder* if it begins with
                a dot, as in fairseq.
            precision, accelerate: as of the class.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file is damaged or does not fit the others, or the engine cannot do the precision.
        """
        if checkpoint_file is None:
            model = load_folder(str(folder))
        else:
            data = Path(data_name_or_path)
            data = Path(folder) / data if str(data_name_or_path).startswith(".") else data
            model, _, _ = load_checkpoint(str(Path(folder) / checkpoint_file), str(data))
        return cls(model, precision, accelerate)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.trained_limits.device

    def _apply(self, *args, **kwargs):
        """What ``to``, ``half`` and the like do; engines keep weights of their own, so a new one is built."""
        super()._apply(*args, **kwargs)
        self._prepare()
        return self

    def _prepare(self):
        weights = next(self.model.parameters()).dtype
        if weights == torch.float32:
            self.model.accelerate_(self.accelerate, self.precision)
        else:
            self.model.accelerate_("none" if self.accelerate == "auto" else self.accelerate, "fp32")

    def __getstate__(self):
        """Without the engine, which is neither copied nor pickled but built anew."""
        return {**self.__dict__, "_modules": {"model": self.model.without_engine()}}

    def __setstate__(self, state):
        super().__setstate__(state)
        self._prepare()

    def forward(self, *args, **kwargs):
        """``generate``."""
        return self.generate(*args, **kwargs)

    def _generate_batch(self, sources, decoding: Decoding):
        generator = NARGenerator(
            [self.model],
            self.model.dictionary,
            decoding=decoding.decoding,
            iterations=decoding.iterations,
            length_beam=decoding.width,
            min_length=decoding.min_length,
            max_length=decoding.max_length,
            keep_repeats=decoding.keep_repeats,
            precision=self.model.precision,
        )
        generator.retain_history = generator.retain_length_scores = True
        rows = [torch.tensor(source.ids) for source in sources]
        tokens = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.tokenizer.special.pad)
        net_input = {"src_tokens": tokens, "src_lengths": torch.tensor([len(row) for row in rows])}
        sample: dict[str, Any] = {"net_input": {name: value.to(self.device) for name, value in net_input.items()}}
        if sources[0].length is not None:
            sample["lengths"] = torch.tensor([source.length + 1 for source in sources], device=self.device)
        found = generator.generate(None, sample)
        return [
            ([_hypothesis(one) for one in ranked], _length_scores(ranked[0].get("length_scores"), decoding.min_length))
            for ranked in found
        ]


def _hypothesis(found: dict) -> Hypothesis:
    return Hypothesis(
        ids=found["tokens"].tolist(),
        scores=found["positional_scores"].tolist(),
        score=float(found["score"]),
        steps=found["steps"],
        history=[step["tokens"].tolist() for step in found["history"]],
    )


def _length_scores(scores: torch.Tensor | None, shortest: int) -> dict[int, float]:
    """Of each length its probability, likeliest first. *Shape:* (lengths)."""
    if scores is None:
        return {}
    values, order = scores.float().cpu().sort(descending=True, stable=True)
    return dict(zip((order + shortest).tolist(), values.tolist()))
