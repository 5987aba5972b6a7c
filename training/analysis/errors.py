"""What can go wrong in an analysis, one class per thing a caller could do about it.

AnalysisError
├── ShapeError        arrays that should describe the same images or bits do not
├── LabelError        the classes asked for are not among the labels
├── ConstantError     a layer says the same of every image, so nothing can be compared
└── OutOfMemoryError  the result would not fit: take fewer images
"""

from reluguard.detector.errors import DetectorError

__all__ = ["AnalysisError", "ConstantError", "LabelError", "OutOfMemoryError", "ShapeError"]


class AnalysisError(DetectorError):
    """Base of every error an analysis raises on purpose."""


class ShapeError(AnalysisError):
    """Arrays that should describe the same images or bits do not."""


class LabelError(AnalysisError):
    """The classes asked for are not among the labels."""


class ConstantError(AnalysisError):
    """A layer says the same of every image."""


class OutOfMemoryError(AnalysisError):
    """The result would not fit into memory."""
