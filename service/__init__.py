"""The gRPC edge: transport, admission, batching, health, metrics."""

__all__ = ["version"]


def version() -> str:
    """Return the installed version of reluguard."""
    from importlib import metadata

    return metadata.version("reluguard")
