"""The HTTP server: ``python -m mist_fairseq.serve DIR``. An ONNX folder is served without torch and fairseq."""
