"""The numerical tests under several kernels of BLAS, and without NumPy's and torch's vector code.

What a solver or a sort is free to choose differs between processors. One machine can play several:
OPENBLAS_CORETYPE chooses the kernels, and each run asks the libraries which ones they took, so that
a name nobody knows is no green run. Prints a line per run; a run that failed is printed in full.

    python tests/kernels.py
"""

import importlib
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = (
    *(f"tests/training/{name}" for name in ("analysis", "head", "evaluation", "statistics")),
    *(f"tests/training/{name}" for name in ("changes", "attacks", "retraining", "twin")),
    *(f"tests/detector/test_{name}.py" for name in ("features", "head", "reference", "verdict")),
)
PLAIN = "none"  # no vector code but what every processor has


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """A name OpenBLAS knows.

    Attributes:
        needs: the processor's feature, by NumPy's name for it.
        known_as: what the libraries may say they took. Those of NumPy's and SciPy's wheels are
            built without kernels of Zen's own and give it Haswell's.
    """

    name: str
    needs: str
    known_as: frozenset[str] = field(default=frozenset())


KERNELS = (
    Kernel(name="Haswell", needs="AVX2", known_as=frozenset({"Haswell"})),
    Kernel(name="SkylakeX", needs="AVX512_SKX", known_as=frozenset({"SkylakeX"})),
    Kernel(name="Zen", needs="AVX2", known_as=frozenset({"Zen", "Haswell"})),
    Kernel(name="Nehalem", needs="SSE42", known_as=frozenset({"Nehalem"})),
)


def main(arguments: Sequence[str]) -> int:
    """Run all, two at a time; or with arguments, as a run: print what is there, then the tests."""
    if arguments:
        print(took := _took(), flush=True)
        return 0 if arguments[0] == "ask" else _tests(took, arguments[1:])
    features, dispatched = _processor()
    runs: dict[str, tuple[dict[str, str], list[str]]] = {}
    for kernel in KERNELS:
        chosen = {"OPENBLAS_CORETYPE": kernel.name}
        if not features.get(kernel.needs):
            print(f"{kernel.name}: left out, this processor has no {kernel.needs}")
            continue
        took = _child(chosen, "ask").stdout.strip()
        if not set(_kernels(took)) <= kernel.known_as:
            print(f"{kernel.name}: expected {' or '.join(sorted(kernel.known_as))}, got {took!r}")
            return 1
        if took in runs:
            print(f"{kernel.name}: the same kernels as {runs[took][0]['OPENBLAS_CORETYPE']}")
        else:
            runs[took] = (chosen, ["run", took, *FOLDERS])
    if len(runs) < 2:
        print(f"expected two or more kernels that this machine can run, got {list(runs)}")
        return 1
    plain = {"NPY_DISABLE_CPU_FEATURES": " ".join(dispatched), "ATEN_CPU_CAPABILITY": "default"}
    runs[PLAIN] = (plain, ["run", PLAIN, *FOLDERS])
    with ThreadPoolExecutor(2) as threads:
        done = list(threads.map(lambda run: _child(run[0], *run[1]), runs.values()))
    for (chosen, _), child in zip(runs.values(), done, strict=True):
        lines = child.stdout.splitlines()
        named = " ".join(f"{name}={value!r}" for name, value in chosen.items())
        print(f"{named}: {lines[0] if lines else ''}: {lines[-1] if lines else ''}")
        if child.returncode:
            print(child.stdout, child.stderr)
    return int(any(child.returncode for child in done))


def _processor() -> tuple[dict[str, bool], list[str]]:
    """Return the processor's features, and those that NumPy has code of its own for."""
    known = importlib.import_module("numpy._core._multiarray_umath")  # no public place has them
    features: dict[str, bool] = known.__cpu_features__
    return features, [name for name in known.__cpu_dispatch__ if features[name]]


def _took() -> str:
    """Return which kernels the libraries took: of BLAS, NumPy and torch."""
    import scipy.linalg  # noqa: F401  # brings its BLAS
    import torch
    from threadpoolctl import threadpool_info

    blas = sorted(
        f"{info['filepath'].rpartition('site-packages')[2].split('/')[1]} {info['architecture']}"
        for info in threadpool_info()
        if info["internal_api"] == "openblas"
    )
    left = _processor()[1]
    return (
        f"{', '.join(blas)}; NumPy {' '.join(left) or PLAIN}; "
        f"torch {torch.backends.cpu.get_cpu_capability()}"
    )


def _kernels(took: str) -> list[str]:
    return [entry.split()[-1] for entry in took.partition(";")[0].split(",") if entry]


def _tests(took: str, arguments: Sequence[str]) -> int:
    """Run tests if the kernels are those that were expected."""
    import pytest

    expected, *tests = arguments
    there = f"NumPy {PLAIN}; torch DEFAULT" in took if expected == PLAIN else took == expected
    if not there:
        print(f"expected {expected!r}, got {took!r}")
        return 1
    return pytest.main(["-q", "-m", "not slow", "-p", "no:cacheprovider", *tests])


def _child(chosen: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    names = ("OPENBLAS_CORETYPE", "NPY_DISABLE_CPU_FEATURES", "ATEN_CPU_CAPABILITY")
    kept = {name: value for name, value in os.environ.items() if name not in names}
    return subprocess.run(
        [sys.executable, __file__, *arguments],
        cwd=ROOT,
        env=kept | {"OMP_NUM_THREADS": "1"} | chosen,
        capture_output=True,
        text=True,
        check=False,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
