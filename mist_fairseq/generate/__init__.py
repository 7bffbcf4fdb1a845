"""Raw text in, readable text out: the decoding loops, once for every engine."""
