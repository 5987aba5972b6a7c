"""Run-time core: from an ONNX model and a guard to verdicts. No torch, sklearn or grpc here."""
