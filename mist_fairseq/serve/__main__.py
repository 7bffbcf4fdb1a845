"""``python -m mist_fairseq.serve``."""

from mist_fairseq.serve.command import main

if __name__ == "__main__":
    main()
