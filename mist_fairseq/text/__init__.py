"""Tokenizers, which turn raw text into ids and back, and lines of text files. Needs neither torch nor fairseq."""
