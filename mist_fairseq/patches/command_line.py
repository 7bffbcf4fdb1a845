"""fairseq's command line and dictionaries: what is typed for another task than the data's is told in words."""

from fairseq import options
from fairseq.data import Dictionary
from fairseq.models import ARCH_MODEL_REGISTRY
from fairseq.tasks import TASK_DATACLASS_REGISTRY

from mist_fairseq.models.mist_model import MistModel
from mist_fairseq.patches import replaces

_TASKS = "--task mist, or for the baselines --task mist_translation or mist_translation_lev"


@replaces(options, "parse_args_and_arch")
def _parse_args_and_arch(parse, parser, input_args=None, *args, **kwargs):
    given, _ = parser.parse_known_args(input_args)
    if getattr(given, "task", "") is None:
        raise ValueError(f"no --task is given: add {_TASKS}")
    if hasattr(given, "arch"):
        _check_arch(given.arch, given.task)
    found = parse(parser, input_args, *args, **kwargs)
    if getattr(found, "total_num_update", 0) is None and found.lr_scheduler == "polynomial_decay":
        raise ValueError("--lr-scheduler polynomial_decay needs --total-num-update, as a rule that of --max-update")
    return found


def _check_arch(arch: str | None, task: str):
    """Refuse no ``--arch``, and one of our models where the task has no ``--precision``: with another ``--task``."""
    is_mist = hasattr(TASK_DATACLASS_REGISTRY.get(task), "precision")
    ours = sorted(name for name, kind in ARCH_MODEL_REGISTRY.items() if issubclass(kind, MistModel))
    if arch is None:
        some = ", ".join(ours) if is_mist else f"transformer, for one; data of this plugin need {_TASKS}"
        raise ValueError(f"no --arch is given: --task {task} takes {some}")
    if arch in ours and not is_mist:
        by_default = ", fairseq's default" if task == "translation" else ""
        raise ValueError(f"--arch {arch} does not go with --task {task}{by_default}: add --task mist")


@replaces(Dictionary, "add_from_file")
def _add_from_file(add_from_file, self, f):
    try:
        add_from_file(self, f)
    except FileNotFoundError:
        raise
    except Exception as error:  # fairseq has three kinds
        if not isinstance(f, str):
            raise
        message = f"{f} is no dictionary of fairseq's: a tokenizer, and data of this plugin, need {_TASKS}"
        raise ValueError(message) from error
