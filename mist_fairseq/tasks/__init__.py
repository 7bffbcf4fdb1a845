"""fairseq tasks over raw text."""
