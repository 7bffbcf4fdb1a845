"""fairseq's checkpoints: loaded, averaged, converted."""
