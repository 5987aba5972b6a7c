"""What can go wrong in the detector, one class per thing a caller could do about it.

DetectorError
├── ImageError       the caller's image or tensor does not fit the model
│   └── ImageTooLargeError   it is bigger than the limit, in pixels, bytes or rows
├── ModelError       the ONNX model can't be read, run or guarded
│   └── NoTapsError  the model has no piecewise-linear gate to read
├── GuardError       the guard can't be read or is damaged
│   ├── GuardFormatError     it was written by another format version
│   └── ModelMismatchError   it was fitted to another model
├── CapturesError    captured images can't be read
├── HeldError        another process works in the folder
└── SettingsError    a setting has no meaning
"""

__all__ = [
    "CapturesError",
    "DetectorError",
    "GuardError",
    "GuardFormatError",
    "HeldError",
    "ImageError",
    "ImageTooLargeError",
    "ModelError",
    "ModelMismatchError",
    "NoTapsError",
    "SettingsError",
]


class DetectorError(Exception):
    """Base of every error this package raises on purpose."""


class ImageError(DetectorError):
    """The caller's image or tensor does not fit the model."""


class ImageTooLargeError(ImageError):
    """The caller sent more pixels, bytes or rows than the limit allows."""


class ModelError(DetectorError):
    """The ONNX model can't be read, run or guarded."""


class NoTapsError(ModelError):
    """The model has no piecewise-linear gate whose sign could be read."""


class GuardError(DetectorError):
    """The guard can't be read, or its files are damaged."""


class GuardFormatError(GuardError):
    """The guard was written by a format version this reader doesn't know."""


class ModelMismatchError(GuardError):
    """The guard was fitted to another model."""


class CapturesError(DetectorError):
    """Captured images can't be read, or their files are damaged."""


class HeldError(DetectorError):
    """Another process works in a folder that only one may work in."""


class SettingsError(DetectorError):
    """A setting has no meaning."""
