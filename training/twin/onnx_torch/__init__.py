"""ONNX graphs in torch, differentiable: one small function per operator.

Own code instead of onnx2torch 1.5.15, whose last release lacks what exporters emit today
(ReduceMean 18, Reshape 21, computed shapes and bounds). What is
missing here is one function.
"""

from reluguard.training.twin.onnx_torch.graph import OnnxModule, supported_operators

__all__ = ["OnnxModule", "supported_operators"]
