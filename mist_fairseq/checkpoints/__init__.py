"""fairseq checkpoints: loaded, averaged, converted."""

import mist_fairseq.tasks  # noqa: F401 # a checkpoint's task and model must be known to fairseq
