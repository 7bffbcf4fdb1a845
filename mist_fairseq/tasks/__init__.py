"""fairseq tasks over raw text. Importing this package makes all of mist_fairseq known to fairseq.

``--user-dir mist_fairseq`` imports it by itself, ``import mist_fairseq.tasks`` does the same in Python.
"""

import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager

_INSTALL = (
    "mist_fairseq needs fairseq 0.12.3 or newer for this: pip install ve-fairseq==0.12.3, or install a current "
    "checkout of fairseq"
)


@contextmanager
def _root_logging_kept() -> Iterator[None]:
    """Keep fairseq from configuring the root logger while it is imported.

    By itself it gives the root logger a handler and the level DEBUG, through ``logging.basicConfig``. That does nothing
    where there is a handler.
    """
    handler = logging.NullHandler()
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)


def _register():
    """Import all that registers itself with fairseq, and replace the functions that ``patches`` lists."""
    try:
        import fairseq
        from fairseq.tasks import FairseqTask
    except Exception as error:  # fairseq up to 0.12.2 raises other errors than ImportError with Python 3.11
        raise ImportError(f"{_INSTALL} (importing fairseq failed: {type(error).__name__}: {error})") from error
    # A feature instead of the version: checkouts and forks have version numbers of their own.
    if "from_checkpoint" not in inspect.signature(FairseqTask.build_model).parameters:
        raise ImportError(f"{_INSTALL} (this is {getattr(fairseq, '__version__', 'one without a version')})")

    import mist_fairseq.criterions.mist_loss
    import mist_fairseq.models.baselines
    import mist_fairseq.models.mist
    import mist_fairseq.optim.bert_adamw
    import mist_fairseq.scoring.scorers
    import mist_fairseq.tasks.mist
    import mist_fairseq.tasks.translation  # noqa: F401
    from mist_fairseq import patches

    patches.install()


with _root_logging_kept():
    _register()
