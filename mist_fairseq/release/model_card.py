"""The README.md of a released model: what it is, how it was made, how good it is, how to use it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mist_fairseq.files.markdown import markdown_table
from mist_fairseq.pretrained.hub import may_be_name
from mist_fairseq.release.folder import Released

# Settings of the training that a reader looks for: the part of fairseq's configuration and the names in it.
_SETTINGS = {
    "criterion": ["glancing_ratio", "mist_loss_factor", "mist_targets", "length_loss_factor", "label_smoothing"],
    "optimizer": ["_name", "adam_betas", "adam_eps", "weight_decay"],
    "lr_scheduler": ["_name", "warmup_updates", "total_num_update"],
    "optimization": ["lr", "max_update", "clip_norm", "update_freq"],
    "dataset": ["batch_size", "max_tokens"],
    "distributed_training": ["distributed_world_size"],
    "common": ["seed"],
    "task": ["precision"],
    "model": ["pretrained", "dropout", "attention_dropout"],
}

_USE = """```python
from mist_fairseq import MistGenerator

generator = MistGenerator.from_pretrained("DIR")  # this folder
generator.generate(["text"], decoding="mist", iterations=3)
```"""


@dataclass
class Description:
    """What a checkpoint does not know of itself."""

    name: str  # title of the card
    data: str = "Not told."  # what the model was trained on
    licence: str = "unknown"  # identifier of the weights' licence, such as mit
    language: str = ""  # of the texts, such as en
    notes: str = ""  # a paragraph on intended use and limits
    scores: list[str] | None = None  # JSON files that scripts/compare_decodings.py wrote
    hub_name: str = ""  # org/name, if it goes to the Hugging Face hub


def model_card(
    description: Description, released: Released, cfg: Mapping[str, Any] | None = None, updates: int | None = None
) -> str:
    """Markdown with the front matter of Hugging Face's model cards; *cfg* and *updates* are those of the training."""
    front = {"license": description.licence, "language": description.language, "library_name": "mist_fairseq"}
    front["pipeline_tag"] = "text2text-generation"
    parameters = sum(parameter.numel() for parameter in released.encoder.parameters())
    introduction = (
        f"A non-autoregressive text generator ({released.architecture}, {parameters / 1e6:.1f} million parameters), "
        "trained with mist_fairseq: *Improving Non-autoregressive Generation with Mixup Training* (MIST). It reads at "
        f"most {released.limits.source} tokens and writes at most {released.limits.target - 1}."
    )
    rows = [["updates", str(updates)]] if updates else []
    for part, names in _SETTINGS.items():
        values: dict[str, Any] = {name: ((cfg or {}).get(part) or {}).get(name) for name in names}
        if values.get("pretrained") and not may_be_name(values["pretrained"]):
            values["pretrained"] = Path(values["pretrained"]).name  # not where it was on the machine of the training
        rows += [[part if name == "_name" else name, str(value)] for name, value in values.items() if value is not None]
    paragraphs = ["\n".join(["---", *(f"{key}: {value}" for key, value in front.items() if value), "---"])]
    paragraphs += [f"# {description.name}", introduction, *([description.notes] if description.notes else [])]
    here = '"DIR")  # this folder'
    use = _USE.replace(here, f'"{description.hub_name}")') if description.hub_name else _USE
    paragraphs += ["## Use", use, "## Data", description.data]
    paragraphs += ["## Training", markdown_table(["setting", "value"], rows)]
    scores = [_scores(Path(path)) for path in description.scores or []]
    paragraphs += ["## Scores", *(scores or ["None were given when this model was exported."])]
    paragraphs += ["## Licence", f"The weights: {description.licence}."]
    return "\n\n".join(paragraphs) + "\n"


def _scores(path: Path) -> str:
    """A table of one file of scores, a row for each decoding; a ValueError names a file that is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        metrics, rows = list(content["decodings"][0]["values"]), []
        for one in content["decodings"]:
            count = one["iterations"]  # 0 of what takes no model
            iterations = f", {count} iteration{'s' if count > 1 else ''}" if count else ""
            rows.append([f"{one['decoding']}{iterations}", *(f"{one['values'][metric]:.2f}" for metric in metrics)])
        about = f"{content.get('data', '')} ({content['subset']} set, protocol {content['protocol']})".strip()
        table = markdown_table(["decoding", *metrics], rows)
        return f"{about}\n\n{table}\n\n```\n{content['command']}\n```"
    except (KeyError, IndexError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__} {error}"
        raise ValueError(f"{path} holds no scores that scripts/compare_decodings.py wrote: {reason}") from error
