"""For torch.hub: ``torch.hub.load(PATH, "mist", DIR, source="local")`` gives a ``MistGenerator``, PATH this folder."""

dependencies = ["array_api_compat", "safetensors", "tokenizers", "torch"]


def mist(folder: str, **options):
    """A model that ``scripts/export.py`` wrote; arguments as of ``MistGenerator.from_pretrained``."""
    from mist_fairseq import MistGenerator

    return MistGenerator.from_pretrained(folder, **options)
