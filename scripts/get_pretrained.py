"""Put a pre-trained encoder into a folder, or check one that you filled, as ``mist download``."""

from mist_fairseq.command.download import main

if __name__ == "__main__":
    main()
