"""Compiling: a guard written into the user's own ONNX graph, as ordinary operators."""
