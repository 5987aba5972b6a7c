"""What can go wrong offline, one class per thing a caller could do about it.

DetectorError
├── DataError             the images or labels can't be used
├── TwinError             there is no differentiable copy of the model, or it says something else
├── AttackError           an attack is unknown, misconfigured or lacks what it needs
├── WorkerError           a worker process died
└── AnalysisError         an analysis can't be made
    ├── ShapeError        arrays that should describe the same images or bits do not
    ├── LabelError        the classes asked for are not among the labels
    ├── ConstantError     a layer says the same of every image, so nothing can be compared
    └── OutOfMemoryError  the result would not fit: take fewer images
"""

from reluguard.detector.errors import DetectorError

__all__ = [
    "AnalysisError",
    "AttackError",
    "ConstantError",
    "DataError",
    "LabelError",
    "OutOfMemoryError",
    "ShapeError",
    "TwinError",
    "WorkerError",
]


class DataError(DetectorError):
    """The images or labels can't be used."""


class TwinError(DetectorError):
    """There is no differentiable copy of the model, or it does not answer as the model does."""


class AttackError(DetectorError):
    """An attack is unknown, misconfigured or lacks what it needs."""


class WorkerError(DetectorError):
    """A worker process died before its work was done."""


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
