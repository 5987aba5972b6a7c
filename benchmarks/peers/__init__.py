"""Other servers on the same guarded ONNX file, asked by the same callers."""
