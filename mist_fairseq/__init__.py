"""MIST as a fairseq plugin: ``--user-dir mist_fairseq``, or ``import mist_fairseq.tasks`` in Python.

Jiang et al., *Improving Non-autoregressive Generation with Mixup Training*.

Importing ``mist_fairseq`` itself loads neither torch nor fairseq.
"""

import importlib
import sys
from typing import TYPE_CHECKING

from mist_fairseq.extras import install_line

if TYPE_CHECKING:
    from mist_fairseq.hub.mist_generator import MistGenerator
    from mist_fairseq.hub.onnx_generator import OnnxGenerator

__version__ = "0.2.0"
__all__ = ["MistGenerator", "OnnxGenerator"]

# Where each is, and the extra that it needs.
_GENERATORS = {
    "MistGenerator": ("mist_fairseq.hub.mist_generator", "train"),
    "OnnxGenerator": ("mist_fairseq.hub.onnx_generator", "runtime"),
}


def __getattr__(name: str):
    """The generators, imported when they are asked for."""
    if name not in _GENERATORS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, extra = _GENERATORS[name]
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{name} needs {error.name}: {install_line(extra)}", name=error.name) from error


def __dir__() -> list[str]:
    return sorted({*globals(), *_GENERATORS})


class _Path(list):
    """The package's ``__path__``, which registers the tasks when fairseq's ``--user-dir`` looks into it.

    fairseq imports ``tasks/`` and ``models/`` of its ``--user-dir``, but not where the package itself is imported
    already, by the script that calls fairseq. Then it only asks whether the folder is in ``__path__``; nothing else
    asks that, since Python's import system goes through the list.
    """

    def __contains__(self, folder):
        if "fairseq" in sys.modules:
            importlib.import_module("mist_fairseq.tasks")
        return super().__contains__(folder)


__path__ = _Path(__path__)
