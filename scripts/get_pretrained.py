"""Put a pre-trained encoder into a folder, or check one that you filled.

python scripts/get_pretrained.py minilm-l6 DIR      # downloads, 80 MB
python scripts/get_pretrained.py mpnet-base DIR     # downloads, 400 MB
python scripts/get_pretrained.py bert-base DIR      # checks DIR; says which files it must hold
"""

import argparse
import sys

from mist_fairseq.pretrained.download import ENCODERS, get_pretrained


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=sorted(ENCODERS))
    parser.add_argument("folder")
    args = parser.parse_args()
    try:
        print(get_pretrained(args.name, args.folder))
    except (OSError, ValueError, RuntimeError) as error:
        sys.exit(f"{args.name}: {error}")


if __name__ == "__main__":
    main()
