"""The owner's ONNX file: read whole, hashed, brought to an opset, its class scores found."""
