"""The HTTP server: ``python -m mist_fairseq.serve DIR``. An ONNX folder is served without torch and fairseq.

``command`` is the command line, ``app`` the web application; ``batching`` lets requests share the model's batches.
"""
