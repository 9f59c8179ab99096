"""Map of the room: contract (words), models, datasets, training, export (PyTorch), runtime (ONNX)."""
