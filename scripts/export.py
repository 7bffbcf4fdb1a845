"""Make a fairseq checkpoint usable without fairseq's commands, as ``mist export``, whose options it has."""

from mist_fairseq.command.export import main

if __name__ == "__main__":
    main()
