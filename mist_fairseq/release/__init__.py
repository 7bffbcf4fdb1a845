"""A trained model as a folder: safetensors, ONNX, Hugging Face."""
