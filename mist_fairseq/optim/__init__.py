"""BERT's optimizer."""
