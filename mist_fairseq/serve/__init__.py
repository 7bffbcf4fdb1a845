"""The HTTP server: ``python -m mist_fairseq.serve DIR``. Needs neither torch nor fairseq for an ONNX folder.

``batching`` shares the model's batches among requests, ``app`` is the web application, ``command`` the command line.
"""
