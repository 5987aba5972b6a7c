"""No page cuts off or lets out what it shows, in a real browser: screens, phones and paper."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from reluguard.detector.artifact import GuardArtifact
from reluguard.service.background import running
from reluguard.service.settings import Settings
from reluguard.training.analyze import analyze
from reluguard.training.data.dataset import Dataset
from reluguard.training.evaluate import evaluate
from reluguard.training.redteam import redteam
from reluguard.training.trial.server import TrialPage
from reluguard.training.trial.trial import open_trial
from tests.browser import Browser, browser_path, opened_browser
from tests.training.fitting import Order
from tests.training.pages.edges import beyond_the_edge

# a wide screen is no trouble; paper is A4 less its margins
SIZES = {"screen": (800, ""), "phone": (390, ""), "paper": (680, "print")}
PATH = browser_path()

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PATH is None, reason="no Chromium on this machine"),
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A browser, started once."""
    assert PATH is not None
    with opened_browser(PATH, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def addresses(
    fitted: GuardArtifact,
    fit_settings: Order,
    digits: Dataset,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[list[str]]:
    """Where the browser finds each page that the tool makes: files, then two that are served."""
    out = tmp_path_factory.mktemp("pages")
    model, data = fit_settings.model, fit_settings.data
    evaluate(
        model, fitted.path, data, out=out / "judged", attacks=("fgsm-linf-8", "pgd-linf-8"),
        benign=("gaussian-8",), baseline_rows=60, matrix_rows=60, threads=1, workers=1,
    )  # fmt: skip
    redteam(
        model, fitted.path, data, out=out / "attacked", budgets=(64.0,), limit=6, steps=4,
        restarts=1, queries=10, ladders={"linf": (16.0, 255.0)}, ladder_steps=4, asking=0,
        threads=1,
    )  # fmt: skip
    analyze(
        model, data, out=out / "inside", limit=120, pairwise=60, attacks=("deepfool-l2",), threads=1
    )
    few = digits.take(np.arange(10))
    trial = open_trial(model, fitted.path, data=(few.images, few.labels), twin="none", threads=1)
    settings = Settings(model=model, guard=fitted.path, name="d", port=0, metrics_port=0, threads=1)
    with ExitStack() as opened:
        page = opened.enter_context(TrialPage(trial, title="the digits"))
        server = opened.enter_context(running(settings))
        files = [fitted.path / "report.html", *sorted(out.rglob("*.html"))]
        assert len(files) == 1 + 1 + 1 + 7  # report card, evaluation, red team, analysis
        yield [*map(Path.as_uri, files), page.url, f"http://{server.metrics_address}/"]


def test_nothing_passes_the_edge(browser: Browser, addresses: list[str]) -> None:
    """No cell, picture or word of any page, whatever it is shown on."""
    found = []
    trying = addresses[-2]  # fills itself with what it asks for
    for size, (width, media) in SIZES.items():
        browser.resize(width, 900)
        browser.emulate(media=media)
        for address in addresses:
            browser.open(address)
            if address == trying:
                browser.until("document.body.dataset.state === 'done'")
            found += [f"{size}, {address}: {line}" for line in beyond_the_edge(browser)]
    assert found == []


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("<p style='width:900px'>wide</p>", "ends at"),
        ("<div style='width:50px;overflow:hidden;white-space:nowrap'>rather long</div>", "is cut"),
        ("<svg width=90 height=20><text x=70 y=9>title</text></svg>", "leaves its drawing"),
        ("<div style='overflow-x:auto'><p style='width:900px'>wide</p></div>", ""),
        ("<details><summary>more</summary><p style='width:900px'>wide</p></details>", "ends at"),
    ],
    ids=["wide", "cut", "drawing", "scrolls", "folded"],
)
def test_what_passes_it_is_told(browser: Browser, body: str, told: str, tmp_path: Path) -> None:
    """Each way of passing the edge is found; what scrolls by itself may hold more."""
    file = tmp_path / "page.html"
    file.write_text(f"<!doctype html><meta name=viewport content='width=device-width'>{body}")
    browser.resize(800, 900)
    browser.emulate()
    browser.open(file.as_uri())
    found = " ".join(beyond_the_edge(browser))
    assert (told in found) if told else not found
