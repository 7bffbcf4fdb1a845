"""MIST as a fairseq plugin: ``--user-dir mist_fairseq`` or ``import mist_fairseq`` registers everything.

Jiang et al., *Improving Non-autoregressive Generation with Mixup Training*.

Where fairseq is not installed nothing is registered, and only ``OnnxGenerator`` and ``mist_fairseq.serve``
work, which need neither fairseq nor torch.
"""

import argparse
import importlib.util
import inspect

__version__ = "0.1.0"

_INSTALL = (
    "mist_fairseq needs fairseq 0.12.3 or newer: pip install ve-fairseq==0.12.3, or install a current "
    "checkout of fairseq"
)


def _register():
    """Make tasks, models and the like known to fairseq."""
    try:
        import fairseq
        import torch
        from fairseq.tasks import FairseqTask
    except Exception as error:  # fairseq <= 0.12.2 does not import on Python >= 3.11
        raise ImportError(f"{_INSTALL} (found one that fails to import: {type(error).__name__}: {error})") from error

    # A feature rather than a version: checkouts and forks number themselves as they like.
    if "from_checkpoint" not in inspect.signature(FairseqTask.build_model).parameters:
        raise ImportError(f"{_INSTALL} (found {getattr(fairseq, '__version__', 'one without a version')})")

    # torch loads checkpoints without executing code and refuses all but plain values. Those of fairseq's older models,
    # the baselines, hold their options as a Namespace.
    torch.serialization.add_safe_globals([argparse.Namespace])

    # --user-dir finds tasks/ and models/ by itself, the other kinds it does not; a plain import finds none.
    import mist_fairseq.criterions.mist_loss
    import mist_fairseq.models.baselines.bang
    import mist_fairseq.models.baselines.mass
    import mist_fairseq.models.baselines.nat_mass
    import mist_fairseq.models.baselines.prophetnet
    import mist_fairseq.models.mist
    import mist_fairseq.optim.bert_adamw
    import mist_fairseq.scoring.scorers
    import mist_fairseq.tasks.mist
    import mist_fairseq.tasks.translation  # noqa: F401
    from mist_fairseq.patches import binarized, checkpoints, text_lines, workers

    checkpoints.install()
    workers.install()
    binarized.install()
    text_lines.install()


def __getattr__(name: str):
    if name == "MistGenerator":
        if not _HAS_FAIRSEQ:
            raise ImportError(f"{_INSTALL} (found none); mist_fairseq.hub.onnx_generator works without it")
        from mist_fairseq.hub.mist_generator import MistGenerator

        return MistGenerator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


_HAS_FAIRSEQ = importlib.util.find_spec("fairseq") is not None
if _HAS_FAIRSEQ:
    _register()
