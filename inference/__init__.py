"""Map of the room: contract (the words), models/datasets/training/export (PyTorch), runtime (ONNX Runtime)."""
