"""fairseq tasks over raw text. Importing this package makes all of mist_fairseq known to fairseq.

``--user-dir mist_fairseq`` imports it by itself, ``import mist_fairseq.tasks`` does the same in Python.
"""

import inspect
import logging

from mist_fairseq.extras import install_line

_INSTALL = (
    f"mist_fairseq.tasks needs fairseq 0.12.3 or newer: {install_line('train')} with Python 3.11 or 3.12, or a current "
    "checkout of it"
)


def _register():
    """Import all that registers itself with fairseq or replaces a function of it."""
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
    import mist_fairseq.models.mist_model
    import mist_fairseq.optim.bert_adamw
    import mist_fairseq.patches.amp
    import mist_fairseq.patches.checkpoint_files
    import mist_fairseq.patches.clipping
    import mist_fairseq.patches.command_line
    import mist_fairseq.patches.ema
    import mist_fairseq.patches.text_input
    import mist_fairseq.patches.workers
    import mist_fairseq.scoring.fairseq_scorers
    import mist_fairseq.tasks.mist_task
    import mist_fairseq.tasks.translation  # noqa: F401


# While it is imported fairseq gives the root logger a handler and the level DEBUG, by ``logging.basicConfig``, which
# does nothing where there is a handler.
_handler = logging.NullHandler()
logging.getLogger().addHandler(_handler)
try:
    _register()
finally:
    logging.getLogger().removeHandler(_handler)
