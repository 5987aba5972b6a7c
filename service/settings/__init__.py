"""How the server listens, what it serves and what it allows: read, checked, and as one value."""

from reluguard.service.settings.allowed import FailMode, Policy, TracingMode, WatchMode
from reluguard.service.settings.settings import PREFIX, Settings

__all__ = ["PREFIX", "FailMode", "Policy", "Settings", "TracingMode", "WatchMode"]
