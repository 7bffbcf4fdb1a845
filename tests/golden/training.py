"""fairseq-train, telling also what its log rounds away.

    python -m tests.golden.training FILE OPTIONS_OF_FAIRSEQ_TRAIN

FILE gets, for each update in JSON, what the criterion and the trainer log, in all digits, and a checksum of every
gradient as the optimizer got it (clipped). Nothing but fairseq is touched here.
"""

import contextlib
import hashlib
import json
import sys
from pathlib import Path

from fairseq.logging import meters
from fairseq.trainer import Trainer
from fairseq_cli import train

_OF_TIME = {"wps", "ups", "wall", "train_wall"}


# In 0.1 [UNK] and unused tokens could be predicted, which a training with glancing or mixing notices.
with contextlib.suppress(ImportError):  # of the code of 0.1
    from mist_fairseq.mist.config import SpecialTokens

    SpecialTokens.never_predicted = property(lambda self: (self.pad, self.cls, self.mask))


def main():
    file = Path(sys.argv.pop(1))
    updates: list[dict] = []
    reduce_and_log, rounded = Trainer._reduce_and_log_stats, meters.safe_round

    def record(trainer, logging_outputs, sample_size, grad_norm=None):
        logged = reduce_and_log(trainer, logging_outputs, sample_size, grad_norm)
        if grad_norm is not None:
            # The numbers of the update are those since the last: one interval of the log is one update.
            numbers = {name: float(value) for name, value in logged.items() if name not in _OF_TIME}
            gradients = {
                name: hashlib.sha256(parameter.grad.contiguous().numpy().tobytes()).hexdigest()[:12]
                for name, parameter in trainer.model.named_parameters()
                if parameter.grad is not None
            }
            updates.append({"gnorm": float(grad_norm), **numbers, "gradients": gradients})
        return logged

    Trainer._reduce_and_log_stats = record  # type: ignore[method-assign]
    meters.safe_round = lambda number, ndigits: rounded(number, 17)
    train.cli_main()
    file.write_text(json.dumps(updates))


if __name__ == "__main__":
    main()
