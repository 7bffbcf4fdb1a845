"""Released models: a folder that stands alone, Hugging Face's format, ONNX."""
