"""fairseq's functions that are replaced when ``mist_fairseq.tasks`` is imported, because fairseq has no option for it.

| fairseq's function | file | what goes wrong without |
| --- | --- | --- |
| ``checkpoint_utils.load_checkpoint_to_cpu`` | ``checkpoint_files`` | some options of a checkpoint run as Python; a model of whatever size they ask for is built; damage is not noticed |
| ``checkpoint_utils.torch_persistent_save`` | ``checkpoint_files`` | a write that fails, on a disk that is full for a moment, is tried again behind what is there of the file |
| ``PathManager.copy`` | ``checkpoint_files`` | a kill leaves half of ``checkpoint_last.pt``, from which no training goes on |
| ``EMA.step``, ``_step_internal``, ``restore`` | ``ema`` | ``--store-ema`` fails at whole numbers, moves a weight once for each of its names, and cannot go on from a checkpoint without |
| ``checkpoint_utils.load_ema_from_checkpoint`` | ``ema`` | checkpoints with fairseq's older options are not read |
| ``options.parse_args_and_arch`` | ``command_line`` | a forgotten ``--arch`` or ``--task`` is an error without words |
| ``Dictionary.add_from_file`` | ``command_line`` | data of this plugin without ``--task mist`` have an "incorrect dictionary format" |
| ``FileBinarizer.multiprocess_dataset`` | ``text_input`` | source and target get different numbers of lines; there are no checksums |
| ``IndexedRawTextDataset.read_data`` | ``text_input`` | the same with ``--dataset-impl raw`` |
| ``fairseq_cli.interactive.buffered_read`` | ``text_input`` | one input line gets several output lines |
| ``AMPOptimizer.step`` | ``amp`` | ``--amp`` divides gradients by the loss scale twice: as the scale grows, AdamW stops learning |
| ``utils.clip_grad_norm_`` | ``clipping`` | each tensor's norm is an operation of its own; ``--cpu`` fails where there is a GPU |
| ``distributed.utils.call_main`` | ``workers`` | with ``--distributed-init-method`` and no GPU, no worker is started, nothing trained, and the status is 0; likewise with ``--save-async`` |

Everything else that differs from fairseq is a class of ours behind fairseq's own extension points.
"""  # noqa: E501

import functools
import inspect
from collections.abc import Callable
from typing import Any


def replaces(owner: Any, name: str) -> Callable[[Callable], Callable]:
    """Put a function in the place of *owner*'s function *name*, which it gets as its first argument."""
    fairseqs = getattr(owner, name)

    def replace(ours: Callable) -> Callable:
        @functools.wraps(fairseqs)
        def function(*args, **kwargs):
            return ours(fairseqs, *args, **kwargs)

        unbound = isinstance(inspect.getattr_static(owner, name), staticmethod | classmethod)
        setattr(owner, name, staticmethod(function) if unbound else function)
        return ours

    return replace
