"""Tokenizers: raw text to ids and back. Needs neither torch nor fairseq."""
