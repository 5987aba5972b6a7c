"""The gRPC edge: transport, admission, batching, health, metrics."""

from importlib import metadata

__all__ = ["version"]


def version() -> str:
    """Return the installed version of reluguard."""
    return metadata.version("reluguard")
