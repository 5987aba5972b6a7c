"""Where models and their guards lie on disk, as settings and folders name them; opened there."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from reluguard.detector.errors import DetectorError, ModelError
from reluguard.detector.looks.judging import Looks
from reluguard.detector.onnx_file.beside import beside, model_file
from reluguard.detector.runtime import Guard
from reluguard.detector.shelf.history import earlier, history
from reluguard.detector.shelf.versions import CHALLENGER, CURRENT, NAME, pointed
from reluguard.service.errors import StartError
from reluguard.service.models.version import Version
from reluguard.service.settings import Settings

__all__ = ["Source", "sources_in", "sources_of"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a model and its guard lie."""

    name: str
    model: Path
    guard: Path
    challenger: Path | None = None
    public_key: Path | None = None
    providers: tuple[str, ...] | None = None
    threads: int | None = None
    readings: bool = False  # let verdicts carry what the head read, for capture
    looks: Looks | None = None  # when a second look is taken; where the guard has one if None
    second_model: Path | None = None  # the network that looks again, of a guard fitted with one

    def guard_folder(self) -> Path:
        """Return the guard's folder, through a link or a `CURRENT` file that names it.

        Raises:
            ShelfError: `CURRENT` names something outside the folder it lies in.
        """
        folder = self.guard.resolve()
        return pointed(folder, CURRENT) or folder

    def challenger_folder(self) -> Path | None:
        """Return the challenger's folder: our own, or what the guard's `CHALLENGER` file names.

        Raises:
            ShelfError: `CHALLENGER` names something outside the folder it lies in.
        """
        if self.challenger is not None:
            return self.challenger.resolve()
        named = pointed(self.guard.resolve(), CHALLENGER)
        return None if named == self.guard_folder() else named

    def fingerprint(self) -> tuple[object, ...]:
        """Return a value that changes when any of the files does."""
        return (
            _stats(self.guard_folder),
            _stats(self.challenger_folder),
            _stats(lambda: self.model),
            _stats(lambda: self.public_key),
            _stats(lambda: self.second_model),
        )

    def open(self) -> "Version":
        """Return the verified version on disk.

        A challenger that is refused is left out; the version says why.

        Raises:
            DetectorError: the model or the guard is refused, or the pointer is broken.
        """
        folder = self.guard_folder()
        try:
            rival = self.challenger_folder()
            guard = self._open(folder, rival)
        except DetectorError as error:
            # of two that don't open together one alone tells whose fault it was
            return Version.of(self._open(folder, None), refused=str(error))
        return Version.of(guard)

    def open_earlier(self) -> "Version | None":
        """Return the newest version that served before the current one and opens, or None.

        Only a shelf knows: its history says what served.
        """
        shelf = self.guard.resolve()
        try:
            place = pointed(shelf, CURRENT)
            changes = history(shelf)
        except DetectorError:
            return None
        named = "" if place is None else place.name
        live = [change.guard for change in changes if named and change.guard.startswith(named)]
        for digest in reversed(earlier(changes, live[-1]) if live else []):
            try:
                return Version.of(self._open(shelf / digest[:NAME], None))
            except DetectorError as error:
                _log.error("model %s: refused too, %s: %s", self.name, digest[:NAME], error)
        return None

    def _open(self, folder: Path, rival: Path | None) -> Guard:
        return Guard.open(
            self.model,
            folder,
            providers=self.providers,
            threads=self.threads,
            readings=self.readings,
            challenger=rival,
            public_key=self.public_key,
            looks=self.looks,
            second_model=self.second_model,
        )


def _stats(place: Callable[[], Path | None]) -> tuple[object, ...]:
    """Return a value that changes when a file does, or any of a folder's."""
    try:
        path = place()
        if path is None:
            return ()
        files = sorted(f for f in path.iterdir() if f.is_file()) if path.is_dir() else [path]
        stats = [(file.name, file.stat()) for file in files]
    except (OSError, DetectorError) as error:
        return (str(error),)
    return (
        str(path),
        *((name, stat.st_mtime_ns, stat.st_size, stat.st_ino) for name, stat in stats),
    )


def sources_of(settings: Settings, threads: int | None = None) -> dict[str, Source]:
    """Return what settings name to be served, by name.

    Args:
        settings: of a server.
        threads: of one run of a model; those of the settings by default.

    Raises:
        StartError: the folder of models can't be read, or there is no model for the guard.
    """
    threads = settings.threads if threads is None else threads
    if settings.models is not None:
        return sources_in(
            settings.models,
            providers=settings.providers,
            threads=threads,
            readings=settings.has_readings,
            public_key=settings.public_key,
            looks=settings.looks,
        )
    if settings.guard is None:
        return {}
    try:
        model = model_file(settings.model, settings.guard)
    except ModelError as error:
        raise StartError(str(error)) from error
    if settings.model is None and model.is_file():
        _log.info("model %s, which lies beside the guard", model)
    name = settings.name or model.stem
    source = Source(
        name=name,
        model=model,
        guard=settings.guard,
        challenger=settings.challenger,
        public_key=settings.public_key,
        providers=settings.providers,
        threads=threads,
        readings=settings.has_readings,
        looks=settings.looks,
        second_model=settings.second_model,
    )
    return {name: source}


def sources_in(
    folder: Path,
    *,
    providers: tuple[str, ...] | None,
    threads: int | None,
    readings: bool = False,
    public_key: Path | None = None,
    looks: Looks | None = None,
) -> dict[str, Source]:
    """Return what a model folder holds: one `NAME/model.onnx` with `NAME/guard` per model.

    Where there is no such file, the export beside the guard is the model: `NAME/guard.onnx`. A
    folder `NAME/challenger` is that guard's challenger.

    Raises:
        StartError: the folder can't be read.
    """
    try:
        names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise StartError(f"the model folder {folder} can't be read: {error}") from error
    models = {name: _model_in(folder / name) for name in names}
    return {
        name: Source(
            name=name,
            model=model,
            guard=folder / name / "guard",
            challenger=_folder(folder / name / "challenger"),
            public_key=public_key,
            providers=providers,
            threads=threads,
            readings=readings,
            looks=looks,
        )
        for name, model in models.items()
        if model is not None
    }


def _model_in(folder: Path) -> Path | None:
    """Return the ONNX file in a folder of one model, None where there is none."""
    places = (folder / "model.onnx", beside(folder / "guard"))
    return next((place for place in places if place.is_file()), None)


def _folder(path: Path) -> Path | None:
    return path if path.is_dir() else None
