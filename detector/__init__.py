"""Run-time core: from an ONNX model and a guard to verdicts. No torch, scikit-learn or grpc here."""
