"""Trying a guard by hand: a picture through attacks and changes, and the page for it."""

import http.client
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from reluguard.detector.artifact import GuardArtifact
from reluguard.detector.errors import ImageError, SettingsError
from reluguard.training.data.dataset import Dataset
from reluguard.training.errors import AttackError
from reluguard.training.trial.server import MOST_BYTES, TrialPage
from reluguard.training.trial.tools import ATTACK_TOOLS, CHANGE_TOOLS
from reluguard.training.trial.trial import Trial, open_trial
from tests.browser import browser_path, opened_browser


@pytest.fixture(scope="module")
def trial(fitted: GuardArtifact, digits_model: Path, digits: Dataset) -> Trial:
    """The fitted guard of the digits, with pictures that neither model nor guard saw."""
    few = digits.take(np.arange(40))
    names = [f"digit {i}" for i in range(10)]
    return open_trial(
        digits_model, fitted.path, data=(few.images, few.labels), classes=names, threads=1
    )


@pytest.fixture(scope="module")
def page(trial: Trial) -> Iterator[TrialPage]:
    """The page, on a free port."""
    with TrialPage(trial, title="digits <b>") as opened:
        yield opened


def png_of(image: np.ndarray[Any, Any]) -> bytes:
    """Return a grey picture as a file."""
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0]).save(buffer, "PNG")
    return buffer.getvalue()


def ask(
    page: TrialPage,
    method: str,
    path: str,
    body: bytes = b"",
    headers: dict[str, str] | None = None,
) -> tuple[int, dict[str, str], bytes]:
    """Return status, headers and body of an answer; `path` is below the secret."""
    secret = page.url.rstrip("/").rpartition("/")[2]
    connection = http.client.HTTPConnection("127.0.0.1", page.port, timeout=60)
    try:
        connection.request(
            method, f"/{secret}/{path}" if not path.startswith("/") else path, body, headers or {}
        )
        reply = connection.getresponse()
        return reply.status, dict(reply.getheaders()), reply.read()
    finally:
        connection.close()


def test_nothing_done_changes_nothing(trial: Trial) -> None:
    """Without an attack or a change both looks are one, and the guard's own verdict."""
    image = trial.samples[0].image
    found = trial.run(image)
    assert found.after is found.before
    assert (found.linf, found.fooled) == (0.0, False)
    assert found.before.verdict == trial.guard.inspect(image[None])[0]
    assert found.before.shares.sum() == pytest.approx(1)
    assert int(found.before.shares.argmax()) == found.before.verdict.prediction


@pytest.mark.parametrize("name", ATTACK_TOOLS)
def test_every_attack_runs_and_keeps_to_its_slider(trial: Trial, name: str) -> None:
    """At its start each gives a picture of the model's size; those in 8-bit steps stay within."""
    image = trial.samples[1].image
    found = trial.run(image, attack=name)
    assert found.after.image.shape == image.shape
    assert found.after.image.dtype == np.uint8
    slider = ATTACK_TOOLS[name].slider
    if slider is not None and slider.unit == "of 255 steps":
        assert 0 < found.linf <= slider.start
    assert found.fooled == (found.after.verdict.prediction != found.before.verdict.prediction)


@pytest.mark.parametrize("name", CHANGE_TOOLS)
def test_every_change_runs_at_both_ends_of_its_slider(trial: Trial, name: str) -> None:
    """Whatever the slider says is taken."""
    slider = CHANGE_TOOLS[name].slider
    for amount in (slider.low, slider.start, slider.high):
        found = trial.run(trial.samples[2].image, change=name, amount=amount)
        assert found.after.image.shape == trial.samples[2].image.shape
        assert not found.fooled


def test_a_stronger_attack_gets_further(trial: Trial) -> None:
    """More steps lower the share of the answer it leaves."""
    image = trial.samples[3].image
    label = trial.run(image).before.verdict.prediction
    shares = [trial.run(image, attack="pgd", strength=s).after.shares[label] for s in (1, 8, 32)]
    assert shares[0] > shares[1] > shares[2]


def test_what_is_no_tool_is_refused(trial: Trial) -> None:
    """Each by its message."""
    image = trial.samples[0].image
    with pytest.raises(AttackError, match=r"expected an attack of fgsm, .*got 'nuke'"):
        trial.run(image, attack="nuke")
    with pytest.raises(AttackError, match=r"expected a change of jpeg, .*got 'crop'"):
        trial.run(image, change="crop")
    for strength in (33, float("nan")):
        with pytest.raises(AttackError, match="expected a strength of 1 to 32 of 255 steps"):
            trial.run(image, attack="fgsm", strength=strength)
    with pytest.raises(ImageError):
        trial.run(image[:4])


def test_without_a_twin_attacks_that_only_ask_are_left(
    fitted: GuardArtifact, digits_model: Path
) -> None:
    """The golden inputs are the pictures then, and the reason is told."""
    bare = open_trial(digits_model, fitted.path, twin="none", threads=1)
    assert bare.without_gradients == "the twin was set to none"
    assert_array_equal(bare.samples[0].image, fitted.golden.images[0])
    with pytest.raises(AttackError, match="pgd needs gradients: the twin was set to none"):
        bare.run(bare.samples[0].image, attack="pgd")
    assert bare.run(bare.samples[0].image, attack="spatial").after.image.shape == (8, 8, 1)


def test_the_page_fetches_nothing_from_elsewhere(page: TrialPage) -> None:
    """Its policy allows its own script and style by a nonce that changes, and nothing besides."""
    status, headers, body = ask(page, "GET", "")
    text = body.decode()
    assert status == 200
    policy = headers["Content-Security-Policy"]
    nonce = policy.partition("script-src 'nonce-")[2].partition("'")[0]
    assert policy.startswith("default-src 'none'; ")
    assert f'<script nonce="{nonce}">' in text
    assert "{{nonce}}" not in text
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in text
    assert nonce not in ask(page, "GET", "")[2].decode()


def test_an_uploaded_picture_is_judged_as_in_a_file(page: TrialPage, trial: Trial) -> None:
    """The reply is the guard's verdict on the same pixels, before and after."""
    image = trial.samples[4].image
    status, _, body = ask(page, "POST", "try?attack=fgsm&strength=16", png_of(image))
    told = json.loads(body)
    assert status == 200
    found = trial.run(image, attack="fgsm", strength=16)
    for key, look in (("before", found.before), ("after", found.after)):
        assert told[key]["score"] == look.verdict.score
        assert told[key]["is_adversarial"] == look.verdict.is_adversarial
        assert told[key]["answer"] == f"digit {look.verdict.prediction}"
    assert told["largest"] == 16
    by_sample = json.loads(ask(page, "POST", "try?sample=4&attack=fgsm&strength=16")[2])
    assert by_sample["after"] == told["after"]


@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "sentence"),
    [
        ("GET", "/", {}, 404, "open the address that was printed"),
        ("GET", "/wrong/about.json", {}, 404, "open the address that was printed"),
        ("POST", "/try", {}, 404, "open the address that was printed"),
        ("GET", "../about.json", {}, 404, "nothing here"),
        ("GET", "sample/99", {}, 404, "nothing here"),
        ("GET", "about.json", {"Host": "evil.example"}, 421, "not the name of this page"),
        ("POST", "try?sample=0", {"Origin": "http://evil.example"}, 403, "by another site"),
        ("POST", "try?sample=99", {}, 404, "no sample 99"),
        ("POST", "try?sample=x", {}, 400, "expected a number for sample"),
        ("POST", "try?shell=1", {}, 400, "got shell"),
        ("POST", "try?sample=0&attack=pgd&strength=nan", {}, 422, "expected a strength of 1 to 32"),
        ("POST", "try", {"Content-Length": str(MOST_BYTES + 1)}, 413, "at most 16 MiB"),
        ("POST", "try", {"Content-Length": "9" * 5000}, 413, "at most 16 MiB"),
        ("POST", "try", {"Content-Length": "-1"}, 411, "expected the length"),
    ],
)
def test_what_must_not_be_asked_is_refused(
    page: TrialPage, method: str, path: str, headers: dict[str, str], status: int, sentence: str
) -> None:
    """Strangers, other sites, rebound names, large and odd requests: each gets its own sentence."""
    got, _, body = ask(page, method, path, headers=headers)
    assert got == status
    assert sentence in json.loads(body)["error"]


@pytest.mark.parametrize(
    "data", [b"", b"\x89PNG\r\n\x1a\n damaged", b"<svg/>"], ids=["empty", "damaged", "svg"]
)
def test_what_is_no_picture_is_refused_in_words(page: TrialPage, data: bytes) -> None:
    """The project's own decoding says what is the matter."""
    status, _, body = ask(page, "POST", "try", data)
    assert status == 422
    assert json.loads(body)["error"]


def test_a_port_in_use_is_told(page: TrialPage, trial: Trial) -> None:
    """With what was asked for."""
    with pytest.raises(SettingsError, match=f"can't listen on 127.0.0.1:{page.port}: "):
        TrialPage(trial, title="", port=page.port)


def test_a_pass_that_overflowed_is_shown_without_numbers(trial: Trial) -> None:
    """JSON has no infinity."""
    from reluguard.training.trial.replies import told

    found = trial.run(trial.samples[0].image)
    verdict = replace(found.before.verdict, is_unscored=True, score=float("nan"))
    look = replace(found.before, verdict=verdict)
    said = told(trial, replace(found, before=look, after=look))
    assert said["after"]["score"] is None
    assert said["after"]["p_value"] is None
    json.dumps(said, allow_nan=False)


@pytest.mark.slow
@pytest.mark.skipif(browser_path() is None, reason="no Chromium on this machine")
def test_a_person_drops_a_picture_attacks_it_and_reads_the_verdict(
    page: TrialPage, trial: Trial, tmp_path: Path
) -> None:
    """In a real browser, on a phone's width too, and the page raises no error doing so."""
    path = browser_path()
    assert path is not None
    file = tmp_path / "five.png"
    image = trial.samples[5].image
    file.write_bytes(png_of(image))
    done = "document.body.dataset.state === 'done'"
    with opened_browser(path, tmp_path / "profile") as browser:
        browser.resize(800, 900)
        browser.open(page.url)
        browser.until(done)
        browser.evaluate("document.body.dataset.state = ''")
        browser.upload("#file", file)
        browser.until(done)
        plain = trial.run(image)
        said = browser.evaluate("document.getElementById('before-is').textContent")
        assert f"digit {plain.before.verdict.prediction}" in said
        assert browser.evaluate("document.getElementById('pill').textContent") == "not flagged"
        browser.evaluate(
            "(() => { const s = document.getElementById('attack'); s.value = 'pgd';"
            "s.dispatchEvent(new Event('change')); const r = document.getElementById('strength');"
            "r.value = 32; r.dispatchEvent(new Event('input'));"
            "document.body.dataset.state = ''; })()"
        )
        browser.until(done)
        attacked = trial.run(image, attack="pgd", strength=32).after.verdict
        word = "ADVERSARIAL" if attacked.is_adversarial else "not flagged"
        assert browser.evaluate("document.getElementById('pill').textContent") == word
        assert f"{attacked.p_value:.4f}" in browser.evaluate(
            "document.getElementById('figures').textContent"
        )
        assert browser.evaluate("document.querySelectorAll('#evidence rect').length") > 0
        assert browser.evaluate("document.querySelector('b b')") is None
        for width in (800, 390):
            browser.resize(width, 844)
            wide = browser.evaluate("document.documentElement.scrollWidth")
            assert wide <= width
        assert browser.complaints() == []
