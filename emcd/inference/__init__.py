"""Models: the embedded one in onnxruntime, and clients of external engines."""
