"""The errors: one tree, every leaf public."""

import inspect

import pytest

from reluguard.detector import errors
from reluguard.detector.errors import (
    DetectorError,
    GuardError,
    GuardFormatError,
    ImageError,
    ImageTooLargeError,
    ModelError,
    ModelMismatchError,
    NoTapsError,
)


def test_every_error_is_public_and_ours() -> None:
    """Whatever the detector raises on purpose is caught by one name, and drawn in the tree."""
    found = {
        name: kind
        for name, kind in vars(errors).items()
        if inspect.isclass(kind) and issubclass(kind, Exception)
    }
    public = [name for name in errors.__all__ if inspect.isclass(getattr(errors, name))]
    assert sorted(found) == sorted(public)
    assert all(issubclass(kind, DetectorError) for kind in found.values())
    assert all(name in (errors.__doc__ or "") for name in found)


@pytest.mark.parametrize(
    ("special", "general"),
    [
        (ImageTooLargeError, ImageError),
        (NoTapsError, ModelError),
        (GuardFormatError, GuardError),
        (ModelMismatchError, GuardError),
    ],
)
def test_a_caller_may_catch_the_general_error(
    special: type[DetectorError], general: type[DetectorError]
) -> None:
    """A special case is still the case it is special of."""
    with pytest.raises(general, match="why"):
        raise special("why")
