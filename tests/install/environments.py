"""Builds wheel and sdist and tries them in clean environments: `make smoke`, not pytest.

1. The sdist holds all that a packager wants and builds the wheel that the checkout builds.
2. The wheel alone, base extra, on the Python that runs this.
3. The same on the newest Python of this machine, with tritonclient beside it.
4. The lowest versions that all extras but `docs` and `test` allow, those of torch included: the
   demo, a fit, an evaluation; then `mypy --strict` on a user's program against the installed wheel.

uv makes the environments; whatever it needs comes from where the machine takes its packages.
"""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
GOLDEN = ROOT / "tests" / "golden" / "v0.1"
NOT_OURS = (
    ".git",
    ".venv",
    "build",
    "dist",
    "out",
    "guards",
    "_build",
    "*.egg-info",
    "__pycache__",
    ".*_cache",
)
IN_SDIST = ("docs/", "examples/", "deploy/", "tests/", "proto/", "benchmarks/", "reluguard/")
TRITON = "tritonclient[grpc,http]>=2.73"
EXTRAS = ("training", "otel", "ray")


def main() -> None:
    """Do all of it; the first thing that is wrong ends it."""
    with tempfile.TemporaryDirectory(prefix="reluguard-install-") as folder:
        work = Path(folder)
        with step("build"):
            wheel = built(work)
        with step(f"base, Python {sys.version.split()[0]}"):
            smoke(environment(work / "base", sys.executable, [str(wheel)]))
        newest = newest_python()
        if newest is None:
            print("newest Python: there is none here newer than the one that runs this")
        else:
            with step(f"base and tritonclient, {newest}"):
                wanted = [str(wheel), TRITON]
                smoke(environment(work / "newest", str(newest), wanted))
        with step("lowest versions of all extras"):
            # named one by one: what a wheel asks for is not direct, and comes in its newest version
            lowest = ["--resolution", "lowest-direct", "-r", str(ROOT / "pyproject.toml"), TRITON]
            lowest += [word for extra in EXTRAS for word in ("--extra", extra)]
            python = environment(work / "lowest", sys.executable, lowest)
            uv("pip", "install", "--python", python, "--no-deps", wheel)
            check_lowest(python)
        with step("lowest versions, tried"):
            smoke(python, "--training")
        with step("a user's program, mypy --strict"):
            check_types(python, work)


@contextmanager
def step(name: str) -> Iterator[None]:
    """Say how long a step took."""
    print(f"{name}", flush=True)
    start = time.monotonic()
    yield
    print(f"{name}: right, {time.monotonic() - start:.0f} s", flush=True)


def uv(*arguments: object, **variables: str) -> None:
    """Run uv, which sits beside the Python that runs this."""
    program = shutil.which("uv", path=str(Path(sys.executable).parent)) or "uv"
    settings = {"UV_PYTHON_DOWNLOADS": "never", "UV_LINK_MODE": "hardlink"}
    subprocess.run(
        [program, "--quiet", *map(str, arguments)],
        check=True, env={**os.environ, **settings, **variables}, cwd=tempfile.gettempdir(),
    )  # fmt: skip


def built(work: Path) -> Path:
    """Return the wheel that the sdist builds, which is the one the checkout builds."""
    source, dist, direct = work / "source", work / "dist", work / "direct"
    shutil.copytree(ROOT, source, symlinks=True, ignore=shutil.ignore_patterns(*NOT_OURS))
    uv("build", "--python", sys.executable, "--out-dir", dist, source)
    uv("build", "--python", sys.executable, "--wheel", "--out-dir", direct, source)
    (wheel,), (same,), (sdist,) = dist.glob("*.whl"), direct.glob("*.whl"), dist.glob("*.tar.gz")
    assert contents(wheel) == contents(same), "the sdist builds another wheel than the checkout"
    with tarfile.open(sdist) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    for place in IN_SDIST:
        tree = {str(f.relative_to(source)) for f in (source / place).rglob("*") if f.is_file()}
        missing = tree - set(names)
        assert not missing, f"the sdist lacks {sorted(missing)[:5]}"
    unwanted = [name for name in names if "__pycache__" in name or name.endswith(".pyc")]
    assert not unwanted, unwanted
    shutil.rmtree(source)
    return wheel


def contents(wheel: Path) -> dict[str, int]:
    """Return the checksum of every file in a wheel, by name."""
    with zipfile.ZipFile(wheel) as archive:
        return {info.filename: info.CRC for info in archive.infolist()}


def environment(folder: Path, python: str, wanted: list[str]) -> Path:
    """Return the Python of a new environment with these packages."""
    uv("venv", "--python", python, folder)
    inside = folder / "bin" / "python"
    uv("pip", "install", "--python", inside, *wanted)
    return inside


def smoke(python: Path, *options: str) -> None:
    """Run smoke.py in an environment, far from the checkout and with nothing of it on a path."""
    environ = {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    environ |= {"PATH": f"{python.parent}:{environ['PATH']}", "COLUMNS": "100", "NO_COLOR": "1"}
    subprocess.run(
        [python, HERE / "smoke.py", GOLDEN, *options], check=True, env=environ,
        cwd=tempfile.gettempdir(),
    )  # fmt: skip


def check_lowest(python: Path) -> None:
    """Hold what was installed to the floors: a floor below what can be had is not true."""
    code = "import importlib.metadata as m, sys; print(*map(m.version, sys.argv[1:]), sep='\\n')"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [project["optional-dependencies"][extra] for extra in EXTRAS]
    found = (re.match(r"([\w-]+)(?:\[\w+\])?[>=]=([\d.]+)", text)
             for text in chain(project["dependencies"], *extras))  # fmt: skip
    floors = {match[1]: match[2] for match in found if match}
    done = subprocess.run([python, "-c", code, *floors], capture_output=True, text=True, check=True)
    for (name, floor), version in zip(floors.items(), done.stdout.split(), strict=True):
        same = f"{version}.".startswith(f"{floor}.")
        assert same, f"the floor of {name} is {floor}, and the lowest to be had is {version}"


def newest_python() -> Path | None:
    """Return the newest Python on the path, or of pyenv, if it is newer than this one."""
    folders = [Path(place) for place in os.environ["PATH"].split(os.pathsep)]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found: dict[int, Path] = {}
    for folder in [*folders, *pyenv.glob("versions/*/bin")]:
        for program in folder.glob("python3.*"):
            minor = re.fullmatch(r"python3\.(\d+)", program.name)
            if minor and subprocess.run([program, "-c", ""], capture_output=True).returncode == 0:  # noqa: PLW1510 - a shim may point nowhere
                found.setdefault(int(minor[1]), program)
    newest = max(found, default=0)
    return found[newest] if newest > sys.version_info.minor else None


def check_types(python: Path, work: Path) -> None:
    """Hold a user's program, which uses every public name, to mypy --strict."""
    program = work / "user_program.py"
    shutil.copy(HERE / "user_program.py", program)
    subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--python-executable", python,
         "--cache-dir", work / "mypy", program],
        check=True, cwd=work, env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    )  # fmt: skip


if __name__ == "__main__":
    main()
