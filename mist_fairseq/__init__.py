"""MIST as a fairseq plugin: ``--user-dir mist_fairseq`` or ``import mist_fairseq`` registers everything.

Jiang et al., *Improving Non-autoregressive Generation with Mixup Training*.
"""

import argparse
import inspect

__version__ = "0.1.0"

_INSTALL = (
    "mist_fairseq needs fairseq 0.12.3 or newer: pip install ve-fairseq==0.12.3, or install a current "
    "checkout of fairseq"
)

try:
    import fairseq
    import torch
    from fairseq.tasks import FairseqTask
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "fairseq":
        raise
    raise ImportError(f"{_INSTALL} (found none)") from error
except Exception as error:  # fairseq <= 0.12.2 does not import on Python >= 3.11
    raise ImportError(f"{_INSTALL} (found one that fails to import: {type(error).__name__}: {error})") from error

# A feature rather than a version: checkouts and forks number themselves as they like.
if "from_checkpoint" not in inspect.signature(FairseqTask.build_model).parameters:
    raise ImportError(f"{_INSTALL} (found {getattr(fairseq, '__version__', 'one without a version')})")

# torch loads checkpoints without executing code and refuses all but plain values. Those of fairseq's older models, the
# baselines, hold their options as a Namespace.
torch.serialization.add_safe_globals([argparse.Namespace])

# --user-dir finds tasks/ and models/ by itself, the other kinds it does not; a plain import finds none.
from mist_fairseq.criterions import mist_loss  # noqa: E402, F401
from mist_fairseq.models import bang, mass, nat_mass, prophetnet  # noqa: E402, F401
from mist_fairseq.models import mist as _model  # noqa: E402, F401
from mist_fairseq.optim import bert_adamw  # noqa: E402, F401
from mist_fairseq.scoring import scorers  # noqa: E402, F401
from mist_fairseq.tasks import mist as _task  # noqa: E402, F401
from mist_fairseq.tasks import translation  # noqa: E402, F401
