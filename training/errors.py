"""What can go wrong offline, one class per thing a caller could do about it.

DetectorError
├── DataError    the images or labels can't be used
├── TwinError    there is no differentiable copy of the model, or it says something else
├── AttackError  an attack is unknown, misconfigured or lacks what it needs
└── WorkerError  a worker process died
"""

from reluguard.detector.errors import DetectorError

__all__ = ["AttackError", "DataError", "TwinError", "WorkerError"]


class DataError(DetectorError):
    """The images or labels can't be used."""


class TwinError(DetectorError):
    """There is no differentiable copy of the model, or it does not answer as the model does."""


class AttackError(DetectorError):
    """An attack is unknown, misconfigured or lacks what it needs."""


class WorkerError(DetectorError):
    """A worker process died before its work was done."""
