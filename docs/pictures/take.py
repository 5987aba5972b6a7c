"""Takes every picture of the gallery anew: `python docs/pictures/take.py [FOLDER]`.

The commands are those that gallery.md shows, typed in the demo's folder (by default
out/gallery/demo). What is there already is not made again. It needs Chromium. What the pictures
show is the same each time, but for times and digests. Look at each of them before you commit it.
"""

import contextlib
import io
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

from reluguard import Client  # noqa: E402 - found in the folder above
from reluguard.service.background import running  # noqa: E402
from reluguard.service.settings import Settings  # noqa: E402
from tests.browser import Browser, browser_path, opened_browser  # noqa: E402

FOUR = 31  # of `attacked` in the demo's unseen.npz, as gallery.md says
STRENGTH = 4  # of 255 steps: what the page for trying attacks by
PAGES = {  # name: (page in the demo's folder, the most pixels from its top)
    "report-card": ("guard/report.html", 1560),
    "evaluation": ("evaluation/evaluation.html", 1440),
    "redteam": ("redteam/red_team.html", 1300),
    "analysis": ("analysis/report.html", 1300),
}
CHAPTER = 1500
_COMMAND = re.compile(r"`(reluguard (?:evaluate|redteam|explain|analyze) [^`]+)`")


def main() -> None:
    """Make what is shown, where it isn't there, and take the pictures."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "out/gallery").resolve()
    demo = folder / "demo"
    path = browser_path()
    if path is None:
        sys.exit("expected Chromium: Debian has it in the package chromium")
    make(demo)
    keep(demo / "verdicts.png", "demo", width=900)
    keep(demo / "explanation.png", "explain", width=1000)
    with opened_browser(path, folder / "profile") as browser:
        pages(browser, demo)
        status_page(browser, demo)
        trying(browser, demo)


def make(demo: Path) -> None:
    """Run the demo and the gallery's commands; what is there already is left as it is."""
    if not (demo / "unseen.npz").is_file():
        command("demo", "--out", str(demo), folder=ROOT)
    with np.load(demo / "unseen.npz") as unseen:
        Image.fromarray(unseen["attacked"][FOUR]).save(demo / "four.png")
    for line in _COMMAND.findall((HERE.parent / "gallery.md").read_text(encoding="utf-8")):
        words = shlex.split(line)[1:]
        if not (demo / words[words.index("--out") + 1]).exists():
            command(*words, folder=demo)


def command(*words: str, folder: Path) -> None:
    """Run `reluguard`."""
    subprocess.run(  # noqa: S603 - the gallery's own commands
        [sys.executable, "-m", "reluguard", *words], cwd=folder, check=True
    )


def pages(browser: Browser, demo: Path) -> None:
    """Take the pages that commands wrote."""
    shown = dict(PAGES)
    for chapter in sorted((demo / "analysis" / "report").glob("*.html")):
        shown[chapter.stem] = (f"analysis/report/{chapter.name}", CHAPTER)
    browser.resize(800, 1000)
    for name, (page, most) in shown.items():
        browser.open((demo / page).as_uri())
        shoot(browser, name, most)


def status_page(browser: Browser, demo: Path) -> None:
    """Serve the demo's guard, attack it, and take the page of its metrics port."""
    settings = Settings(
        model=demo / "digits.onnx", guard=demo / "guard", name="digits", port=0, metrics_port=0
    )
    with np.load(demo / "unseen.npz") as unseen:
        images = [unseen["clean"], unseen["attacked"]]
    with running(settings) as server:
        with Client(server.address) as client:
            for some in images:
                client.inspect(some)
        address = f"http://{server.metrics_address}/"
        for name, width, scheme in (
            ("status", 800, "light"),
            ("status-dark", 800, "dark"),
            ("status-phone", 390, "light"),
        ):
            browser.resize(width, 800)
            browser.emulate(scheme=scheme)
            browser.open(address)
            shoot(browser, name, 1700)
    browser.emulate()


@contextlib.contextmanager
def try_page(demo: Path) -> Iterator[str]:
    """Give the address of the page for trying the demo's guard."""
    words = [sys.executable, "-m", "reluguard", "try", "--out", str(demo), "--port", "0"]
    with subprocess.Popen(  # noqa: S603 - as above
        words, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as page:
        assert page.stdout is not None
        yield page.stdout.readline().removeprefix("open ").strip()
        page.terminate()


def trying(browser: Browser, demo: Path) -> None:
    """Attack the samples in turn; taken is the first that fools the model and is flagged."""
    done = "document.body.dataset.state === 'done'"
    with try_page(demo) as address:
        browser.resize(800, 900)
        browser.open(address)
        browser.until(done)
        browser.evaluate(
            "(() => { const s = document.getElementById('attack'); s.value = 'pgd';"
            "s.dispatchEvent(new Event('change')); const r = document.getElementById('strength');"
            f"r.value = {STRENGTH}; r.dispatchEvent(new Event('input')); }})()"
        )
        browser.until(done)
        count = browser.evaluate("document.querySelectorAll('#samples button').length")
        for place in range(count):
            browser.evaluate(f"document.querySelectorAll('#samples button')[{place}].click()")
            browser.until(done)
            verdicts = "[...document.querySelectorAll('#figures tr:first-child td')]"
            told = browser.evaluate(f"{verdicts}.map(cell => cell.textContent)")
            said = browser.evaluate("document.getElementById('sentence').textContent")
            if told == ["not flagged", "adversarial"] and "instead of" in said:
                return shoot(browser, "try", 1300)
    sys.exit("expected a sample that fools the model and is flagged: none was")


def shoot(browser: Browser, name: str, most: int) -> None:
    """Take a page from its top to the end of a paragraph, figure or row within so many pixels."""
    end = browser.evaluate(
        "(() => { const ends = [...document.querySelectorAll('p,li,figure,tr,ul,section,main')]"
        ".map(one => one.getBoundingClientRect().bottom + scrollY + 16);"
        f"return Math.ceil(Math.max(...ends.filter(end => end <= {most}))); }})()"
    )
    file = HERE / f"{name}.png"
    browser.picture(file, height=end)
    keep(file, name)


def keep(file: Path, name: str, *, width: int | None = None) -> None:
    """Write a picture in few bytes: with a palette, and no wider than it is shown."""
    with Image.open(file) as opened:
        picture = opened.convert("RGB")
    if width is not None and width < picture.width:
        size = (width, round(picture.height * width / picture.width))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.quantize(256, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    (HERE / f"{name}.png").write_bytes(buffer.getvalue())
    print(  # noqa: T201 - a script
        f"{name}.png: {picture.width} x {picture.height}, {len(buffer.getvalue()):,} bytes"
    )


if __name__ == "__main__":
    main()
