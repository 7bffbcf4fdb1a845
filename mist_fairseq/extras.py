"""What to install where a package is missing: the extras of ``setup.py``."""


def install_line(extra: str) -> str:
    """The command that adds what *extra* needs to the package as it is installed.

    ``runtime``, ``serve`` and ``hub`` bring neither torch nor fairseq.
    """
    return f"pip install 'mist-fairseq[{extra}]'"
