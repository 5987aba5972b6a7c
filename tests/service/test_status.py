import grpc
import pytest

from reluguard.detector import errors as detector_errors
from reluguard.service import errors as service_errors
from reluguard.service.errors import OverloadedError
from reluguard.service.status import CODES, INTERNAL, status_of


def test_every_error_a_request_can_meet_is_in_the_table() -> None:
    """What isn't in the table is meant not to be: starting, or the client's side."""
    ours = {getattr(service_errors, name) for name in service_errors.__all__}
    outside = {service_errors.ServiceError, service_errors.StartError, service_errors.CallError}
    assert ours - outside <= set(CODES)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("/secret/path"),
        detector_errors.ModelError("/secret/path"),
        detector_errors.GuardError("/secret/path"),
        service_errors.StartError("/secret/path"),
    ],
    ids=repr,
)
def test_anything_else_is_an_internal_error_without_its_text(error: Exception) -> None:
    """No exception text leaves the server unless its class is in the table."""
    assert status_of(error) is INTERNAL
    assert INTERNAL.message == "internal error"


def test_a_subclass_follows_its_base() -> None:
    """The table is looked up along the class's bases."""
    error = detector_errors.ImageTooLargeError("expected at most 4 images, got 5")
    assert status_of(error).code is grpc.StatusCode.INVALID_ARGUMENT
    assert status_of(error).message == "expected at most 4 images, got 5"


def test_overload_says_when_to_come_back() -> None:
    """The pushback travels with the status."""
    status = status_of(OverloadedError("full", retry_after_s=0.25))
    assert (status.code, status.retry_after_s) == (grpc.StatusCode.RESOURCE_EXHAUSTED, 0.25)
