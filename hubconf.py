"""For torch.hub: ``torch.hub.load(REPOSITORY, "mist", DIR)`` gives a ``MistGenerator``."""

dependencies = ["fairseq", "safetensors", "sentencepiece", "tokenizers", "torch"]


def mist(folder: str, **options):
    """A model that ``scripts/export.py`` wrote; arguments as of ``MistGenerator.from_pretrained``."""
    from mist_fairseq import MistGenerator

    return MistGenerator.from_pretrained(folder, **options)
