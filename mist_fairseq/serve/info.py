"""What a server says of itself and its model: ``/info``, and the labels of ``mist_model_info``."""

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

import mist_fairseq
from mist_fairseq.engines import engine_name
from mist_fairseq.files.exported import CONFIG, SUMS, count_parameters, read_any_config, read_sums
from mist_fairseq.generate.decoding import DECODINGS, Decoding, check_head
from mist_fairseq.generate.text_generator import TextGenerator
from mist_fairseq.pretrained.hub import SAFETENSORS, local_folder
from mist_fairseq.release.onnx_folder import FILES
from mist_fairseq.serve.limits import Limits


class Weights(BaseModel):
    """What is known of a model by its folder alone."""

    name: str = Field(default="model", description="Of its folder or on the hub, unless the server was told another.")
    hash: str | None = Field(
        default=None, description="SHA-256 of its file of weights, which fixes sizes and tokenizer, too."
    )
    format: str | None = Field(default=None, description="onnx or pytorch.")
    precision: str | None = Field(default=None, description="fp32, bf16 or int8.")
    parameters: int | None = Field(default=None, description="How many numbers were trained.")
    bytes: int | None = Field(default=None, description="Of its file of weights.")


class Info(Weights):
    """The model that a server has, and what may be asked of it."""

    accelerate: str | None = Field(default=None, description="The engine that runs it.")
    version: str = Field(default=mist_fairseq.__version__, description="Of mist_fairseq.")
    max_source_tokens: int = Field(description="The most that are read, special ones counted; the rest is cut.")
    max_target_tokens: int = Field(description="The most that are made, the final [SEP] counted.")
    lowercases: bool = Field(description="Whether the tokenizer lower-cases what it reads.")
    head: str = Field(description="What answers are read off: length, tokens of a chosen length, or dag, paths.")
    decodings: list[str] = Field(description="Those that this model can do.")
    defaults: dict[str, Any] = Field(description="Of the options of a request; null where it depends on others.")
    limits: dict[str, int | float] = Field(description="The server's, by the names of its options.")
    examples: list[str] = Field(description="Texts to try it with.")


def describe(
    generator: TextGenerator, limits: Limits, weights: Weights | None = None, examples: list[str] | None = None
) -> Info:
    """What ``/info`` answers."""
    graph = generator.engine.graph
    return Info(
        **(weights or Weights()).model_dump(),
        accelerate=engine_name(generator.engine),
        max_source_tokens=generator.limits.source,
        max_target_tokens=generator.limits.target,
        lowercases=_lowercases(generator),
        head="dag" if graph else "length",
        decodings=[name for name in DECODINGS if _can(generator, name)],
        defaults={option.name: option.default for option in fields(Decoding)},
        limits=asdict(limits),
        examples=examples or [],
    )


def read_weights_info(folder: str, precision: str = "fp32", name: str | None = None) -> Weights:
    """What is known of the model of a folder, or of a name on the hub, that was loaded in some precision."""
    path = Path(local_folder(folder, [CONFIG, SUMS]))
    config = read_any_config(str(path))
    is_onnx = config.get("format") == "onnx"
    file = path / (FILES[precision][1] if is_onnx else SAFETENSORS[0])
    return Weights(
        name=name or (path.resolve().name if Path(folder).is_dir() else folder),
        hash=read_sums(path).get(file.name),
        format="onnx" if is_onnx else "pytorch",
        precision=precision,
        parameters=count_parameters(file, config),
        bytes=file.stat().st_size,
    )


def _lowercases(generator: TextGenerator) -> bool:
    text = " ".join("THE QUICK BROWN FOX JUMPS OVER A LAZY DOG")
    encode = generator.tokenizer.encode
    return [index for _, index in encode(text)] == [index for _, index in encode(text.lower())]


def _can(generator: TextGenerator, decoding: str) -> bool:
    try:
        check_head(Decoding(decoding), generator.engine.graph, generator.limits, lengths_given=False)
    except ValueError:
        return False
    return True
