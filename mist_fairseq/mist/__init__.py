"""The method in PyTorch alone: configuration, layers, the two passes, losses. Knows nothing of fairseq."""
