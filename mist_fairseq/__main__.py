"""``python -m mist_fairseq``, which is the command ``mist``."""

from mist_fairseq.command import main

if __name__ == "__main__":  # workers of mist generate import this file
    main()
