"""MIST as a fairseq plugin: ``--user-dir mist_fairseq``, or ``import mist_fairseq.tasks`` in Python.

Jiang et al., *Improving Non-autoregressive Generation with Mixup Training*.

Importing ``mist_fairseq`` itself loads neither torch nor fairseq.
"""

import importlib
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mist_fairseq.hub.mist_generator import MistGenerator
    from mist_fairseq.hub.onnx_generator import OnnxGenerator

__version__ = "0.2.0"
__all__ = ["MistGenerator", "OnnxGenerator"]

_MODULES = {"MistGenerator": "mist_fairseq.hub.mist_generator", "OnnxGenerator": "mist_fairseq.hub.onnx_generator"}


def __getattr__(name: str):
    """The generators, imported when they are asked for."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(_MODULES[name]), name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{name} needs {error.name}: pip install {error.name}", name=error.name) from error


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})


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
