"""fairseq's configurations, each made once: hydra takes most of a second for one."""

from copy import deepcopy
from functools import cache

from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf, overwrite_args_by_name


@cache
def _made(words: tuple[str, ...]):
    args = options.parse_args_and_arch(options.get_training_parser(), ["DATA", *words])
    return convert_namespace_to_omegaconf(args)


def configuration(folder, *words: str):
    """What fairseq-train makes of a folder of data and its options."""
    found = deepcopy(_made(words))
    overwrite_args_by_name(found, {"data": str(folder)})
    return found
