"""Whether a server with these settings could start, said without starting one."""

import os
from pathlib import Path

from reluguard.detector.errors import DetectorError
from reluguard.service.errors import StartError
from reluguard.service.listening import certificates
from reluguard.service.models.models import check_name
from reluguard.service.models.sources import sources_of
from reluguard.service.security import Tokens
from reluguard.service.settings import Settings

__all__ = ["problems"]


def problems(settings: Settings) -> list[str]:
    """Return what stands in the way of a start, a sentence each; nothing if all is well.

    Models and guards are opened and replayed as a server does it; no port is taken, and nothing is
    written.
    """
    found: list[str] = []
    try:
        if settings.tokens is not None:
            Tokens(settings.tokens)
        certificates(settings)
        sources = sources_of(settings)
    except StartError as error:
        return [str(error)]
    if not sources:
        found.append("expected at least one model to serve, got none")
    for source in sources.values():
        try:
            check_name(source.name)
            version = source.open()
        except (DetectorError, StartError, OSError) as error:
            found.append(f"{source.name}: {error}")
        else:
            found += [f"{source.name}: challenger: {version.refused}"] if version.refused else []
    for place in (settings.capture, settings.decision_log and settings.decision_log.parent):
        if place is not None and not _writable(place):
            found.append(f"expected a folder at {place} that can be written, it can't")
    if settings.decision_log is not None and settings.decision_log.is_dir():
        found.append(f"expected a file as decision log, {settings.decision_log} is a folder")
    return found


def _writable(folder: Path) -> bool:
    """Whether a folder is there and can be written, or can be made."""
    while not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)
