"""What a process does once, as it imports this, for all the commands that ``warm`` forks from it.

It imports torch, fairseq and others' packages, and fills their caches: a command spends a second on its configuration
where hydra reads its first one. The plugin is not imported: ``--user-dir`` does that, as ever.
"""

import gc
import importlib
import warnings

from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf

from tests.end_to_end.warm import MODULES

for name in ("onnxruntime", "sacrebleu", "safetensors.torch", "tokenizers", "torch._dynamo", *MODULES.values()):
    importlib.import_module(name)

with warnings.catch_warnings():  # each of the commands warns by itself
    warnings.simplefilter("ignore")
    line = ["data", "--arch", "transformer", "--optimizer", "adam", "--lr", "0.1", "--save-dir", "/tmp"]
    convert_namespace_to_omegaconf(options.parse_args_and_arch(options.get_training_parser(), line))

gc.collect()
gc.freeze()  # a command looks for garbage among its own objects
