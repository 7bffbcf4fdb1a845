"""Generation by ONNX Runtime, with neither torch nor fairseq: numpy, tokenizers and onnxruntime are enough.

    generator = OnnxGenerator.from_pretrained("onnx-folder", precision="int8")
    generator.generate(["how do i learn the guitar"])

``mist_fairseq.release.onnx_folder`` describes the folder for use from other languages.
"""

from pathlib import Path
from typing import Any

from mist_fairseq.files.exported import CONFIG, SUMS
from mist_fairseq.generate.decoding import Engine
from mist_fairseq.generate.text_generator import TextGenerator
from mist_fairseq.mist.config import PositionLimits
from mist_fairseq.pretrained.hub import exported_folder
from mist_fairseq.release.onnx_folder import DICTIONARY, FILES, FORMAT, read_onnx
from mist_fairseq.text.tokenizer import Tokenizer


class OnnxGenerator(TextGenerator):
    """A model in ONNX and its tokenizer behind ``generate``, which several threads may call at the same time."""

    _origin: tuple[Any, ...]

    def __init__(self, engine: Engine, tokenizer: Tokenizer, limits: PositionLimits):
        self.engine, self.tokenizer, self.limits = engine, tokenizer, limits

    @classmethod
    def from_pretrained(
        cls,
        folder: str,
        precision: str = "fp32",
        threads: int | None = None,
        device: Any = "cpu",
        accelerate: str = "auto",
    ) -> "OnnxGenerator":
        """Load what ``scripts/export.py --to onnx`` wrote, in ``fp32`` or ``int8``, by default with a thread a core.

        *device* is ``cpu``, ``cuda``, ``cuda:1`` or the like, or ``auto``, a GPU where ONNX Runtime can use one. A GPU
        needs the package onnxruntime-gpu in place of onnxruntime, and fp32.

        *accelerate* is ``onnxruntime``, ``native``, the engine of our own for int8 (``mist_fairseq.engines.native``),
        or ``auto``, which is ``native`` where it can be used.

        *folder* may be a name on the Hugging Face hub, ``org/name`` or ``org/name@revision``; then huggingface_hub is
        needed, too, and the files of the precision are fetched.

        Raises:
            FileNotFoundError: a file is missing, or the name cannot be had.
            ValueError: a file, which it names, is damaged or of another export, or ONNX Runtime is not installed or
                cannot use the device.
        """
        folder = exported_folder(str(folder), FORMAT, [CONFIG, SUMS, DICTIONARY, *FILES.get(precision, ())])
        generator = cls(*read_onnx(folder, precision, threads, device, accelerate))
        generator._origin = str(Path(folder).resolve()), precision, threads, device, accelerate
        return generator

    def __reduce__(self):
        """Copies and pickles load the folder again: sessions cannot be copied."""
        return type(self).from_pretrained, self._origin
