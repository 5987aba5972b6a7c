"""Whether a server with these settings could start, said without starting one."""

from pathlib import Path

from reluguard.detector.errors import DetectorError, ModelError
from reluguard.detector.onnx_file.beside import model_file
from reluguard.service.errors import StartError
from reluguard.service.listening import certificates
from reluguard.service.models.models import Source, check_name, sources_in
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
        sources = _sources(settings)
    except (StartError, ModelError) as error:
        return [str(error)]
    if not sources:
        found.append("expected at least one model to serve, got none")
    for source in sources:
        try:
            check_name(source.name)
            version = source.open()
        except (DetectorError, StartError, OSError) as error:
            found.append(f"{source.name}: {error}")
        else:
            found += [f"{source.name}: challenger: {version.refused}"] if version.refused else []
    for place in (settings.capture, settings.decision_log and settings.decision_log.parent):
        if place is not None and not _may_be_folder(place):
            found.append(f"expected a folder at {place}, there is something else")
    return found


def _sources(settings: Settings) -> list[Source]:
    if settings.models is not None:
        folder = sources_in(
            settings.models,
            providers=settings.providers,
            threads=settings.threads,
            public_key=settings.public_key,
        )
        return list(folder.values())
    if settings.guard is None:
        return []
    model = model_file(settings.model, settings.guard)
    return [
        Source(
            name=settings.name or model.stem,
            model=model,
            guard=settings.guard,
            challenger=settings.challenger,
            public_key=settings.public_key,
            providers=settings.providers,
            threads=settings.threads,
        )
    ]


def _may_be_folder(place: Path) -> bool:
    return place.is_dir() or not place.exists()
