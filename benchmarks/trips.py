"""Four trips through the house: which files a job enters, and which calls climb to a floor above.

    python -m benchmarks.trips

A file's floor is one above the highest file it imports. A call that climbs is one from a file on a
lower floor into one above: a base class that calls its subclass, or a callback. Each trip is the
real job on the small guard of `tests/golden`, followed by the interpreter's own profile hook.
"""

import ast
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("detector", "training", "service", "commands")
GOLDEN = ROOT / "tests" / "golden" / "v0.1"


def modules() -> dict[str, Path]:
    """Return the files of the product by module."""
    found = {}
    for file in (file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        found[".".join(("reluguard", *parts)).removesuffix(".__init__")] = file
    return found


FILES = modules()


@cache
def imports(module: str) -> frozenset[str]:
    """Return the modules of ours that one imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names} & set(FILES)
            names |= inner or {node.module}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return frozenset(names & set(FILES) - {module})


@cache
def floor(module: str) -> int:
    """Return the floor of a module, the ground floor is 1."""
    return 1 + max(map(floor, imports(module)), default=0)


class Route:
    """Follows the calls of all threads while it is open."""

    def __init__(self) -> None:
        self.entered: set[str] = set()
        self.ways: Counter[tuple[str, str]] = Counter()
        self.open = False
        self._of_file = {str(file): module for module, file in FILES.items()}
        self._known: dict[str, str | None] = {}

    def follow(self, job: Callable[[], Any]) -> None:
        """Run a job and note its route."""
        self.open = True
        sys.setprofile(self)
        threading.setprofile(self)
        try:
            job()
        finally:
            sys.setprofile(None)
            threading.setprofile(None)
            self.open = False

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        """Note a call from one file of ours into another."""
        if not self.open or event != "call" or frame.f_code.co_name in {"<module>", "<lambda>"}:
            return
        callee = self._module(frame)
        if callee is None:
            return
        self.entered.add(callee)
        back = frame.f_back
        while back is not None and self._module(back) is None:
            back = back.f_back
        caller = self._module(back) if back is not None else None
        if caller is not None and caller != callee:
            self.ways[caller, callee] += 1

    def _module(self, frame: FrameType) -> str | None:
        name = frame.f_code.co_filename
        if name not in self._known:
            self._known[name] = self._of_file.get(str(Path(name).resolve()))
        return self._known[name]

    def report(self, title: str) -> None:
        """Print what was found."""
        folders = {FILES[module].parent for module in self.entered}
        climbs = {way: n for way, n in self.ways.items() if floor(way[0]) < floor(way[1])}
        print(
            f"{title}: {len(self.entered)} files in {len(folders)} folders, {len(self.ways)} ways "
            f"between files, {len(climbs)} of them climb; {sum(climbs.values())} of "
            f"{sum(self.ways.values())} calls"
        )
        for (caller, callee), n in sorted(climbs.items(), key=lambda item: -item[1]):
            print(f"    {caller} ({floor(caller)}) -> {callee} ({floor(callee)}): {n}")


def main() -> None:
    """Make the four trips and print each."""
    from sklearn.datasets import load_digits

    from reluguard.detector.runtime import Guard
    from reluguard.service.background import running
    from reluguard.service.client.client import Client
    from reluguard.training.fit import fit
    from reluguard.training.retrain import retrain

    found = load_digits()
    images = np.minimum(found.images * 16, 255).astype(np.uint8)[..., None][-400:]
    labels = found.target.astype(np.int64)[-400:]
    model = GOLDEN / "model.onnx"
    guard = Guard.open(model, GOLDEN / "guard", threads=1)
    with tempfile.TemporaryDirectory() as scratch:
        data, first, second = (Path(scratch) / name for name in ("data.npz", "first", "second"))
        np.savez(data, images=images, labels=labels)
        route = Route()
        route.follow(lambda: guard.inspect(images[:1]))
        route.report("an image")
        route = Route()
        route.follow(
            lambda: fit(model, str(data), out=first, recipe="digits", threads=1, workers=1)
        )
        route.report("a fit")
        route = Route()
        threading.setprofile(route)
        with running(guard, name="digits") as server, Client(server.address) as client:
            client.inspect(images[:1])
            route.follow(lambda: client.inspect(images[:1]))
        route.report("a request")
        route = Route()
        route.follow(
            lambda: retrain(
                first, model, [], second, attacks=["square-linf-8"], data=str(data), sources=60,
                threads=1,
            )
        )  # fmt: skip
        route.report("a retraining")


if __name__ == "__main__":
    main()
