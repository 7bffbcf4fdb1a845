"""``mist download``: a pre-trained encoder, or a model of the Hugging Face hub, in a folder.

mist download minilm-l6 DIR      # 80 MB
mist download mpnet-base DIR     # 400 MB
mist download bert-base DIR      # checks DIR; says which files it must hold
mist download org/name [DIR]     # into the hub's cache, and from there into DIR; org/name@revision
"""

import argparse
import shutil
import sys
from pathlib import Path

from mist_fairseq.files.whole import whole_file
from mist_fairseq.hub.loading import fetch_model
from mist_fairseq.pretrained.download import ENCODERS, get_pretrained


def main(arguments: list[str] | None = None) -> None:
    """Fetch what the command line names."""
    parser = argparse.ArgumentParser(
        prog="mist download", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help=f"{', '.join(sorted(ENCODERS))}, or a name on the hub")
    parser.add_argument("folder", nargs="?", metavar="DIR", help="of a name on the hub it may be left out")
    args = parser.parse_args(arguments)
    if args.name in ENCODERS and args.folder is None:
        parser.error(f"{args.name} needs a DIR to put it into")
    try:
        print(get_pretrained(args.name, args.folder) if args.name in ENCODERS else fetch(args.name, args.folder))
    except (OSError, ValueError, RuntimeError) as error:
        sys.exit(f"{args.name}: {error}")


def fetch(name: str, folder: str | None) -> str:
    """Fetch a model of the hub, copy its files into *folder* if it is given, and say in a line what is where."""
    cached = Path(fetch_model(name))
    files = sorted(path for path in cached.iterdir() if path.is_file())
    for file in files if folder else []:
        with whole_file(Path(str(folder), file.name)) as partial:
            shutil.copyfile(file, partial)
    return f"{folder or cached}: {', '.join(file.name for file in files)}"
