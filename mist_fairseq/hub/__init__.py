"""A model in Python by one call: ``MistGenerator`` and ``OnnxGenerator``."""
