"""The baselines of the paper's tables. ``--user-dir`` imports this package, and so registers them."""

from mist_fairseq.models.baselines import bang, mass, nat_mass, prophetnet  # noqa: F401
