"""fairseq's functions that are replaced, one file each."""
