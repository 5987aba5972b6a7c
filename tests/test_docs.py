"""Every code block of README and of the site: run in order as a reader would, or not and why.

The comment above a block says which:

    <!-- run -->              sh or python: runs in the page's folder and ends well
    <!-- prints -->           what the block above printed, line by line; `…` stands for anything
    <!-- file: NAME -->       goes into this file
    <!-- serve -->            sh: a server, which is there when the next block runs
    <!-- guide -->            sh: run by tests/service/test_guide.py
    <!-- not run: WHY -->     sh, python, ... that a test can't run; commands in it must still exist
"""

import dataclasses
import importlib.util
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree as ET

import pytest
import yaml

ROOT = Path(__file__).parent.parent
_FENCE = re.compile(
    r"(?:^<!-- (?P<mark>[^\n]*?) -->\n)?^(?P<ticks>`{3,})(?P<language>[\w{}-]*)[^\n]*\n"
    r"(?P<text>.*?)^(?P=ticks)$",
    re.DOTALL | re.MULTILINE,
)
_PAGES = [ROOT / "README.md", ROOT / "deploy" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
GENERATED = {"api.md", "commands.md", "settings.md", "metrics.md", "protocol.md"}
NOTEBOOKS = {"first-guard.md", "new-attack.md"}  # written from them; they have a test of their own
PAGES = [page for page in _PAGES if page.name not in GENERATED | NOTEBOOKS]
FREE = {"", "text", "{include}", "{toctree}"}  # no code
DIGITS = (  # pages for a reader who has model.onnx, images.npz and, from README, guards/mine
    "docs/howto/preprocessing.md",
    "docs/howto/threshold.md",
    "docs/howto/report-card.md",
    "docs/howto/own-attack.md",
    "docs/howto/retrain.md",
    "docs/howto/serve.md",
    "docs/howto/script.md",
)
EMPTY = ("docs/howto/export.md", "docs/explanation/p-value-and-likelihood.md")  # from nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A code block of a page, and the comment above it."""

    mark: str
    language: str
    text: str

    @property
    def kind(self) -> str:
        """What to do with it."""
        return self.mark.partition(":")[0]

    @property
    def detail(self) -> str:
        """What the comment says after the colon."""
        return self.mark.partition(":")[2].strip()


def blocks(page: Path) -> list[Block]:
    """Return the code blocks of a page in order."""
    return [
        Block(mark=found["mark"] or "", language=found["language"], text=found["text"])
        for found in _FENCE.finditer(page.read_text(encoding="utf-8"))
    ]


def name_of(page: Path) -> str:
    """Return how a page is called in messages."""
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_runs_or_says_why_not(page: Path) -> None:
    """No code on any page is left to chance."""
    allowed = {
        "run": {"sh", "python"},
        "serve": {"sh"},
        "guide": {"sh"},
        "prints": {"text"},
    }
    for block in blocks(page):
        if block.language in FREE and not block.mark:
            continue
        if block.kind in {"file", "not run"}:
            assert block.detail, f"{block.mark}\n{block.text}"
            continue
        assert block.kind in allowed, f"no mark above\n{block.text}"
        assert block.language in allowed[block.kind], f"{block.mark}\n{block.text}"


def test_files_are_named_where_a_reader_sees_it() -> None:
    """The comment above a file's block can't be seen: the line before says the name."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for found in re.finditer(r"([^\n]*)\n\n<!-- file: (\S+) -->", text):
            assert f"`{found[2]}`" in found[1], name_of(page)


def test_pages_that_run_are_run() -> None:
    """A page with a block to run is one that a test below runs."""
    tried = {"README.md", "docs/tutorial.md", *DIGITS, *EMPTY}
    for page in PAGES:
        if any(block.kind in {"run", "serve"} for block in blocks(page)):
            assert name_of(page) in tried


def commands_of(text: str) -> Iterator[list[str]]:
    """Yield the words of each `reluguard ...` line of a shell block, continued lines joined."""
    for line in text.replace("\\\n", " ").splitlines():
        found = re.match(r"\s*(?:until |[A-Z_]+=\S* )*reluguard (.*)", line)
        if found:
            command = re.split(r"\s(?:#|&&|[|&;]|2?>)(?:\s|$)|;", found[1])[0]
            yield shlex.split(command)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_and_options_on_pages_exist(page: Path) -> None:
    """What a page tells a reader to type is understood, whether a test runs it or not."""
    from typer.main import get_command

    from reluguard.commands.app import app

    group = get_command(app)
    for block in blocks(page):
        if block.language != "sh":
            continue
        for words in commands_of(block.text):
            assert understood(group, words), words


def understood(command: object, words: list[str]) -> bool:
    """Whether a command takes these words: each option is one of its own."""
    known = getattr(command, "commands", None)
    if known is not None:
        if words and words[0] in known:
            return understood(known[words[0]], words[1:])
        return words in (["--help"], ["--version"])
    options = {name for param in command.params for name in param.opts}  # type: ignore[attr-defined] # typer's own class
    asked = {word.partition("=")[0] for word in words if word.startswith("--")}
    return asked <= options | {"--help"}


def test_the_check_of_options_can_fail() -> None:
    """A misspelt option or command would be noticed."""
    from typer.main import get_command

    from reluguard.commands.app import app

    group = get_command(app)
    assert understood(group, ["fit", "--model", "m", "--data", "d", "--out", "g"])
    assert not understood(group, ["fit", "--modle", "m"])
    assert not understood(group, ["fitt", "--model", "m"])


def test_every_command_pages_name_exists() -> None:
    """A command that running text mentions is one that --help lists."""
    import typer.main

    from reluguard.commands.app import app

    known = set(typer.main.get_group(app).commands)
    for page in PAGES:
        named = set(re.findall(r"`reluguard ([a-z]+)\b", page.read_text(encoding="utf-8")))
        assert named <= known, name_of(page)


def module(file: Path) -> ModuleType:
    """Return a script of the documentation, loaded."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def test_drawings_are_current() -> None:
    """The committed pictures are what the script draws, and each is well-formed."""
    script = module(ROOT / "docs" / "drawings" / "draw.py")
    assert {file.name for file in script.HERE.glob("*.svg")} == set(script.PICTURES)
    for name, drawn in script.PICTURES.items():
        assert (script.HERE / name).read_text(encoding="utf-8") == drawn(), name
        ET.fromstring(drawn())


def test_forms_and_citation_can_be_read() -> None:
    """The citation is of this version, and every form for reports has a title and fields."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"]
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    forms = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    assert len(forms) >= 4
    for form in forms:
        read = yaml.safe_load(form.read_text(encoding="utf-8"))
        if form.stem != "config":
            assert read["name"]
            assert read["description"]
            assert all(field["type"] and field["attributes"] for field in read["body"])


def test_pages_from_the_code_tell_all_of_it() -> None:
    """Every command, setting and metric of the program has its place on a page."""
    import typer.main

    from reluguard.commands.app import app
    from reluguard.service.settings import Settings
    from reluguard.service.status import CODES

    script = module(ROOT / "docs" / "reference" / "write_pages.py")
    assert set(script.PAGES) | {"api.md"} == GENERATED
    commands, settings = script.commands(), script.settings()
    for name in typer.main.get_group(app).commands:
        assert f"\n### reluguard {name}\n" in commands
    for field in dataclasses.fields(Settings):
        assert f"\n| `{field.name}` | " in settings
    protocol = script.protocol()
    assert all(f"\n| {code.name} | " in protocol for code in CODES.values())
    metrics = script.metrics()
    alerts = re.findall(r"alert: (\w+)", (ROOT / "deploy/prometheus/alerts.yml").read_text())
    assert alerts
    assert all(f"\n| {alert} | " in metrics for alert in alerts)
    assert "\n| `reluguard_verdicts_total` | counter | `model`, `policy`, `verdict` | " in metrics


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """The variables of a shell that finds `reluguard` and this Python as `python`."""
    found = shutil.which("reluguard", path=str(Path(sys.executable).parent))
    assert found, "the command reluguard is not installed beside this Python"
    return {**os.environ, "PATH": f"{Path(found).parent}:{os.environ['PATH']}"}


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the reader's model.onnx and images.npz: the demo's digits."""
    from reluguard.training.demo import train_and_export
    from reluguard.training.progress import Progress

    made = tmp_path_factory.mktemp("digits")
    model, images = train_and_export(made, 0, Progress())
    model.rename(made / "model.onnx")
    images.rename(made / "images.npz")
    return made


@pytest.fixture(scope="session")
def mine(digits: Path, environment: dict[str, str]) -> Path:
    """The same folder after README: with guards/mine."""
    run_page(ROOT / "README.md", digits, environment)
    return digits


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_readme_runs(mine: Path) -> None:
    """From fitting to asking the server, each block does what README says, in order."""
    assert (mine / "guards" / "mine" / "manifest.json").is_file()


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("page", DIGITS)
def test_pages_after_readme_run(
    page: str, mine: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    """Each how-to page works for a reader who did what README says."""
    folder = tmp_path / "reader"
    shutil.copytree(mine, folder)
    run_page(ROOT / page, folder, environment)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("page", EMPTY)
def test_pages_for_an_empty_folder_run(
    page: str, environment: dict[str, str], tmp_path: Path
) -> None:
    """Each page that needs nothing beforehand works in an empty folder."""
    run_page(ROOT / page, tmp_path, environment)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_tutorial_ends_with_an_alarm(environment: dict[str, str], tmp_path: Path) -> None:
    """Followed word for word in an empty folder, it does all that it says."""
    pytest.importorskip("skimage", reason="the tutorial's photographs: pip install scikit-image")
    run_page(ROOT / "docs" / "tutorial.md", tmp_path, environment)


def run_page(page: Path, folder: Path, environment: dict[str, str]) -> None:
    """Do what a page says, block by block, in this folder."""
    said = ""
    with servers(folder, environment) as serve:
        for block in blocks(page):
            if block.kind == "serve":
                serve(block.text)
            elif block.kind == "file":
                (folder / block.detail).write_text(block.text, encoding="utf-8")
            elif block.kind == "prints":
                assert_printed(block.text, said)
            elif block.kind == "run":
                shell = block.language == "sh"
                command = ["bash", "-euo", "pipefail", "-c"] if shell else [sys.executable, "-c"]
                done = subprocess.run(
                    [*command, block.text], cwd=folder, env=environment, check=False,
                    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                )  # fmt: skip
                said = done.stdout
                assert done.returncode == 0, f"{block.text}\n{said}"


def assert_printed(expected: str, said: str) -> None:
    """Find each line in what was printed, in order; `…` stands for anything on its line."""
    rest = said
    for line in expected.splitlines():
        if line.strip() in {"", "…"}:
            continue
        parts = [re.escape(part) for part in " ".join(line.split()).split("…")]
        lines = [" ".join(one.split()) for one in rest.splitlines()]
        found = [at for at, one in enumerate(lines) if re.search(".*".join(parts), one)]
        assert found, f"expected a line\n{line}\nin\n{rest}"
        rest = "\n".join(rest.splitlines()[found[0] + 1 :])


def test_what_a_block_printed_is_compared() -> None:
    """Lines in another order, or not there, are noticed."""
    assert_printed("fooled: … of 192\n…\nend", "x\nfooled: 68 of 192\ny\nthe end\n")
    with pytest.raises(AssertionError, match="expected a line"):
        assert_printed("end\nfooled: … of 192", "fooled: 68 of 192\nend\n")


@contextmanager
def servers(folder: Path, environment: dict[str, str]) -> Iterator["Serve"]:
    """Give what starts servers, and end them in order at the end of the block."""
    serve = Serve(folder, environment)
    try:
        yield serve
    finally:
        serve.end()


class Serve:
    """Starts the servers of a page; a second one on the same port takes the first one's place."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._folder = folder
        self._environment = environment
        self._running: list[subprocess.Popen[bytes]] = []

    def __call__(self, text: str) -> None:
        """Start it and wait until it serves."""
        self.end()
        for port in re.findall(r"port (\d+)", text):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", int(port))) == 0:
                    pytest.skip(f"port {port}, which the page uses, is taken on this machine")
        log = self._folder / "serve.log"
        with log.open("w") as stream:
            server = subprocess.Popen(
                ["bash", "-euc", f"exec {text.strip().removesuffix('&')}"], cwd=self._folder,
                env=self._environment, stdout=stream, stderr=stream,
            )  # fmt: skip
        self._running.append(server)
        end = time.monotonic() + 60
        while time.monotonic() < end:
            asked = subprocess.run(
                ["reluguard", "health"], env=self._environment, capture_output=True, check=False
            )
            if asked.returncode == 0:
                return
            assert server.poll() is None, log.read_text()
        raise AssertionError(log.read_text())

    def end(self) -> None:
        """End what runs, and see that it ends well."""
        while self._running:
            server = self._running.pop()
            server.terminate()
            assert server.wait(60) == 0


def test_the_gallery_shows_every_picture_and_stays_small() -> None:
    """No picture lies about unseen, none is over 200 kB, all together are below 1.5 MB."""
    gallery = (ROOT / "docs/gallery.md").read_text()
    pictures = {path.name: path.stat().st_size for path in (ROOT / "docs/pictures").glob("*.png")}
    assert set(re.findall(r"\(pictures/(\S+)\)", gallery)) == set(pictures)
    assert max(pictures.values()) < 200_000
    assert sum(pictures.values()) < 1_500_000
