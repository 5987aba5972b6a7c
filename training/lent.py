"""What a user lends by name, `package.module:name` or `file.py:name`; its errors are theirs.

Modules are looked for in the working folder first, as `python script.py` would in that folder: also
when a console script started us, and before a library that is installed under the same name.
"""

import importlib
import sys
import sysconfig
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from reluguard.detector.errors import DetectorError, near_path

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Lent", "lent_module"]

_LIBRARIES = tuple(
    sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib")
)
_IMPORTS = {importlib.__file__, metadata.__file__}
_OURS = str(Path(__file__).parents[1])


@dataclass(frozen=True, slots=True)
class Lent:
    """Something of the user's, by name.

    Attributes:
        text: `package.module:name`, or `folder/file.py:name`.
        what: what it is lent as, like `twin`.
        refusal: raised when it is not there, or fails.
    """

    text: str
    what: str
    refusal: type[DetectorError]

    def find(self) -> object:
        """Return what the name names.

        Raises:
            DetectorError: of class `refusal`. There is no such module, or it has no such name, or
                it failed while it was imported: then with its own error, file and line.
        """
        place, _, name = self.text.rpartition(":")
        if place.endswith(".py"):
            return self._name_of(self._module_in(Path(place), name), name)
        if not all(part.isidentifier() for part in (*place.split("."), name)):
            raise self.refusal(f"expected a {self.what} of package.module:name, got {self.text!r}")
        if not {"", str(Path.cwd())} & set(sys.path):
            sys.path.insert(0, str(Path.cwd()))
        try:
            module = importlib.import_module(place)
        except (Exception, SystemExit) as error:
            if isinstance(error, ModuleNotFoundError) and f"{place}.".startswith(f"{error.name}."):
                raise self.refusal(self._not_found(_missing(str(error.name)))) from error
            raise self.refused(error) from error
        return self._name_of(module, name)

    def _module_in(self, file: Path, name: str) -> ModuleType:
        """Return the module that a file is, found again under its name by other processes."""
        if not (file.stem.isidentifier() and name.isidentifier()):
            raise self.refusal(
                f"expected a {self.what} of file.py:name, both of letters, digits and _, got "
                f"{self.text!r}"
            )
        if not file.is_file():
            raise self.refusal(self._not_found(f"there is no file {file}{near_path(file)}"))
        folder = str(file.parent.resolve())
        if folder not in sys.path:
            sys.path.insert(0, folder)
        try:
            module = importlib.import_module(file.stem)
        except (Exception, SystemExit) as error:
            raise self.refused(error) from error
        if Path(_file(module)).resolve() != file.resolve():
            raise self.refusal(
                f"expected {file} to be the module {file.stem}, {_file(module)} is called so too: "
                "give yours another name"
            )
        return module

    def _name_of(self, module: ModuleType, name: str) -> object:
        """Return what a module has by this name."""
        try:
            found: object = getattr(module, name)
        except AttributeError as error:
            raise self.refusal(self._not_found(_without(module, name))) from error
        except Exception as error:  # a module may make its names when they are asked for
            raise self.refused(error) from error
        return found

    def make(self, maker: Callable[[], object]) -> object:
        """Return what a lent function or class makes, called without arguments.

        Raises:
            DetectorError: of class `refusal`. It wants arguments, or it failed: then with its own
                error, file and line.
        """
        try:
            return maker()
        except (Exception, SystemExit) as error:
            if isinstance(error, TypeError) and self._line(error) is None:
                raise self.refusal(f"expected {self.text} to need no arguments: {error}") from error
            raise self.refused(error) from error

    def refused(self, error: BaseException, more: str = "") -> DetectorError:
        """Return the refusal, with the way through the user's own code as a note.

        Args:
            error: what their code raised.
            more: to be said of it.
        """
        refusal = self.refusal(self.failed(error) + more)
        refusal.add_note(self.trace(error))
        return refusal

    def trace(self, error: BaseException) -> str:
        """Return the error's own traceback, from the first line of the user's on."""
        trace = error.__traceback__
        while trace is not None and _is_ours(trace.tb_frame.f_code.co_filename):
            trace = trace.tb_next
        return "".join(traceback.format_exception(type(error), error, trace)).rstrip()

    def failed(self, error: BaseException) -> str:
        """Return in whose file and line what was lent failed, and with what error."""
        said, line = str(error), self._line(error)
        where = "" if line is None else f" in {line.filename}, line {line.lineno}"
        if isinstance(error, SyntaxError) and Path(error.filename or "").is_file():
            said, where = error.msg, f" in {error.filename}, line {error.lineno}"
        told = f"{type(error).__name__}: {said}".removesuffix(": ")
        return f"the {self.what} {self.text} failed{where}: {told}"

    def _not_found(self, why: str) -> str:
        return f"can't find the {self.what} {self.text}: {why}"

    def _line(self, error: BaseException) -> traceback.FrameSummary | None:
        """Return the last line of the user's that the error passed, or else of a library's."""
        package = self.text.partition(":")[0].partition(".")[0]
        last = own = None
        for frame, number in traceback.walk_tb(error.__traceback__):
            file = frame.f_code.co_filename
            if _is_ours(file):
                continue
            last = traceback.FrameSummary(file, number, frame.f_code.co_name)
            module = str(frame.f_globals.get("__name__")).partition(".")[0]
            if module == package or not file.startswith((*_LIBRARIES, "<")):
                own = last
        return own or last


def lent_module(lent: Lent) -> "nn.Module":
    """Return the torch module that is lent: itself, or what a function of no arguments makes.

    Raises:
        DetectorError: of the lent thing's class. It can't be found, fails, or is something else.
    """
    from torch import nn

    found = lent.find()
    module = lent.make(found) if callable(found) and not isinstance(found, nn.Module) else found
    if not isinstance(module, nn.Module):
        raise lent.refusal(
            f"expected {lent.text} to return a torch module, got {type(module).__name__}"
        )
    return module


def _is_ours(file: str) -> bool:
    """Return whether a file is reluguard's, or that by which Python imports."""
    return file.startswith((_OURS, "<frozen importlib")) or file in _IMPORTS


def _missing(name: str) -> str:
    package = sys.modules.get(name.rpartition(".")[0])
    if package is None:
        return f"no module {name} in {Path.cwd()}, on PYTHONPATH or among what is installed"
    return f"no module {name}: {package.__name__} is {_file(package)}"


def _without(module: ModuleType, name: str) -> str:
    own = [
        other
        for other, value in vars(module).items()
        if not other.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]
    return f"{_file(module)} has no {name}, only {', '.join(sorted(own)) or 'names of others'}"


def _file(module: ModuleType) -> str:
    folders = list(getattr(module, "__path__", ()))
    return str(getattr(module, "__file__", None) or (folders or [module.__name__])[0])
