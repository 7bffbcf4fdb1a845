"""``MistGenerator``: a model in Python, raw text in and readable text out, with fairseq's hub conventions."""

import threading
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mist_fairseq.engines import build_engine, check_engine, choose_device
from mist_fairseq.generate.decoding import Engine
from mist_fairseq.generate.text_generator import TextGenerator
from mist_fairseq.mist.config import PositionLimits
from mist_fairseq.pretrained.hub import exported_folder
from mist_fairseq.release.folder import FILES, FORMAT, Released, load_folder, save_folder
from mist_fairseq.release.model_card import Description, model_card
from mist_fairseq.text.tokenizer import Tokenizer


class MistGenerator(TextGenerator, nn.Module):
    """A model that generates for raw texts.

    ::

        generator = MistGenerator.from_pretrained("released")
        generator.generate(["How can I learn the guitar fast?"], decoding="mist", iterations=3)

    ``to``, ``cuda``, ``half``, ``eval`` and the like are those of ``nn.Module``. What runs the model is built at the
    first use, where the model then is.

    Args:
        encoder: a trained ``Encoder`` or ``EncoderDecoder``.
        tokenizer: of source and target.
        limits: the most tokens of a source and of a target.
        precision: ``fp32``, ``bf16`` or ``int8``; after ``half`` or ``bfloat16`` that of the weights.
        accelerate: what runs the model, as of the command line; by default ONNX Runtime on a CPU where it is installed
            and can do it, else PyTorch as it is.
        device: where to move the encoder: ``cpu``, ``cuda``, ``cuda:1`` or the like, or ``auto``, a GPU if there is one
            and an engine can use it, else the CPU; by default it stays where it is.

    A ValueError says that there is no such precision, engine or device, at the first use that the engine cannot run.
    """

    def __init__(
        self,
        encoder: Any,
        tokenizer: Tokenizer,
        limits: PositionLimits,
        precision: str = "fp32",
        accelerate: str = "auto",
        device: str | torch.device | None = None,
    ):
        super().__init__()
        check_engine(encoder, accelerate, precision)
        self.encoder, self.tokenizer, self.limits = encoder.eval(), tokenizer, limits
        self.precision, self.accelerate = precision, accelerate
        self._engine: Engine | None = None
        self._lock = threading.Lock()
        if device is not None:
            self.to(choose_device(device, accelerate, precision))

    @classmethod
    def from_pretrained(
        cls,
        folder: str,
        checkpoint_file: str | None = None,
        data_name_or_path: str = ".",
        *,
        precision: str = "fp32",
        accelerate: str = "auto",
        device: str | torch.device = "auto",
    ) -> "MistGenerator":
        """Load a released model, which ``scripts/export.py`` wrote, or a fairseq checkpoint, which needs fairseq.

        Args:
            folder: of the released model, or of checkpoints; or a released model's name on the Hugging Face hub,
                ``org/name`` or ``org/name@revision``.
            checkpoint_file: the checkpoint's name in *folder*, for instance ``checkpoint_best.pt``.
            data_name_or_path: the folder of a checkpoint's ``dict.*.txt``; seen from *folder* if it begins with a dot.
            precision, accelerate, device: as of the class.

        Raises:
            FileNotFoundError: a file is missing, or the name cannot be had.
            ValueError: a file is damaged or does not fit the others, the engine cannot do the precision, or there is no
                such device.
        """
        device = choose_device(device, accelerate, precision)
        if checkpoint_file is None:
            released = load_folder(exported_folder(str(folder), FORMAT, FILES))
        else:
            from mist_fairseq.checkpoints.loading import load_checkpoint

            data = Path(folder if str(data_name_or_path).startswith(".") else "", data_name_or_path)
            released, _, _ = load_checkpoint(str(Path(folder) / checkpoint_file), str(data))
        return cls(released.encoder, released.tokenizer, released.limits, precision, accelerate, device)

    def save_pretrained(self, folder: str, overwrite: bool = False) -> list[str]:
        """Write a released folder, in fp32, as ``scripts/export.py --to folder`` does; the names of its files.

        The model card in it says nothing of the training.

        Raises:
            FileExistsError: the folder has such files already, and *overwrite* is off.
        """
        released = Released(self.encoder, self.tokenizer, self.limits)
        return save_folder(released, folder, model_card(Description(Path(folder).resolve().name), released), overwrite)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.parameters()).device

    def train(self, mode: bool = True) -> "MistGenerator":
        """Nothing: it only generates, without dropout."""
        return self

    @property
    def engine(self) -> Engine:  # type: ignore[override]
        """What runs the model, built for it as it is now."""
        with self._lock:
            if self._engine is None:
                accelerate, precision = self.accelerate, self.precision
                if next(self.parameters()).dtype != torch.float32:
                    accelerate, precision = "none" if accelerate == "auto" else accelerate, "fp32"
                self._engine = build_engine(self.encoder, self.tokenizer.special, accelerate, precision)
            return self._engine

    def _apply(self, *args: Any, **kwargs: Any) -> "MistGenerator":
        """What ``to``, ``half`` and the like do; engines keep weights of their own, so a new one will be built."""
        super()._apply(*args, **kwargs)
        self._engine = None
        return self

    def __reduce__(self):
        """Copies and pickles build an engine of their own."""
        return type(self), (self.encoder, self.tokenizer, self.limits, self.precision, self.accelerate)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """``generate``."""
        return self.generate(*args, **kwargs)
