"""Metrics, and how the paper's tables prepare texts for them."""
