"""Map of the room: graphs (what leaves), to_onnx, weights (16 and 8 bit), parity (the gate), package."""
