"""What people and machines see of a server: the status page, its JSON and the status command."""

import json
import math
import os
import shutil
import subprocess
import threading
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from reluguard.commands.app import app
from reluguard.detector.artifact import read_guard
from reluguard.detector.images import Images
from reluguard.detector.runtime import Guard
from reluguard.detector.shelf.shelf import promote, shadow
from reluguard.service.background import Running, on_loop, running
from reluguard.service.captures.counts import CaptureStatus
from reluguard.service.captures.drift import Drift
from reluguard.service.captures.label import list_captures, set_label
from reluguard.service.client.client import Client
from reluguard.service.monitoring.shadow import Agreement
from reluguard.service.settings import Settings
from reluguard.service.web.page import page, whats_wrong
from reluguard.service.web.snapshot import (
    ChallengerStatus,
    ChangeStatus,
    GuardStatus,
    HourStatus,
    ModelStatus,
    ServerStatus,
)

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-features=OptimizationHints,MediaRouter",
]  # fmt: skip


def fetch(server: Running, path: str) -> bytes:
    with urllib.request.urlopen(f"http://{server.metrics_address}{path}", timeout=5) as reply:
        assert reply.headers["Content-Security-Policy"].startswith("default-src 'none'")
        return bytes(reply.read())


def status_command(*arguments: object) -> str:
    done = CliRunner().invoke(app, ["status", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture
def busy(
    tmp_path: Path, pair: Any, make_guard: Callable[..., Path], mixed: Images
) -> Iterator[tuple[Running, Path, Path, int]]:
    """A server with everything: shelf, challenger, captures, labels. And what it flagged."""
    rival = make_guard(pair.model, tmp_path / "r", image_shape=(12, 12, 3), fpr=0.2, seed=2)
    shelf, captures = tmp_path / "shelf", tmp_path / "captures"
    promote(shelf, pair.guard, who="ann", why="the first <one>")
    shadow(shelf, rival, who="bob", why="a new attack")
    settings = Settings(
        model=pair.model, guard=shelf, name="tiny", port=0, metrics_port=0, threads=1,
        reload_s=0.0, capture=captures, capture_share=1.0, drift_s=3600.0,
    )  # fmt: skip
    flagged = int(Guard.open(pair.model, pair.guard, threads=1).inspect(mixed).is_adversarial.sum())
    with running(settings) as server:
        with Client(server.address) as client:
            for start in range(0, len(mixed), 20):
                client.inspect(mixed[start : start + 20])
        while len(found := list_captures(captures, limit=1000)) < len(mixed):
            threading.Event().wait(0.02)  # the writer's thread flushes once a second
        set_label(captures, [(found[0].id, "attack:rough"), (found[-1].id, "clean")], labeller="a")
        on_loop(server.server.read_captures())
        yield server, shelf, captures, flagged


def test_page_json_and_command_tell_the_same(
    busy: tuple[Running, Path, Path, int], pair: Any, mixed: Images
) -> None:
    """Champion, challenger, the last hour, captures, drift and history, by all three ways."""
    server, shelf, captures, flagged = busy
    text, document = fetch(server, "/").decode(), json.loads(fetch(server, "/status.json"))
    (model,) = document["models"]
    champion, rival = read_guard(pair.guard), model["challenger"]
    assert document["state"] == "serving"
    assert model["guard"]["digest"] == champion.digest
    assert (model["hour"]["images"], model["hour"]["adversarial"]) == (len(mixed), flagged)
    assert sum(images for images, _ in model["hour"]["minutes"]) == len(mixed)
    assert sum(count for _, count in model["hour"]["histogram"]) == len(mixed)
    assert sum(rival["agreement"].values()) == len(mixed)
    assert rival["agreement"]["both"] + rival["agreement"]["champion_only"] == flagged
    assert model["captured"]["images"] == len(mixed)
    assert model["captured"]["labels"] == {"attack:rough": 1, "clean": 1}
    assert sum(model["captured"]["waiting"].values()) == len(mixed) - 2
    assert [change["action"] for change in model["changes"]] == ["shadow", "promote"]
    disagreements = rival["agreement"]["challenger_only"] + rival["agreement"]["champion_only"]
    for words in (
        ">serving</span>", "<h2>tiny ", champion.digest[:16], rival["guard"]["digest"][:16],
        f"adversarial ({flagged})", f"disagreements ({disagreements})", "wait for labels",
        "Labelled attack:rough", "put in shadow", "the first &lt;one&gt;", "Drift",
    ):  # fmt: skip
        assert words in text
    told = json.loads(
        status_command(
            "--shelf", shelf, "--captures", captures, "--server", server.metrics_address, "--json"
        )
    )
    assert (told["current"], told["challenger"]) == (champion.digest, rival["guard"]["digest"])
    assert told["captured"] == model["captured"]
    assert told["server"]["models"] == document["models"]
    said = status_command("--shelf", shelf, "--captures", captures, "--server",
                          server.metrics_address)  # fmt: skip
    for words in ("  current", "  challenger", f"{flagged} adversarial", "wait for labels",
                  f"only it {rival['agreement']['challenger_only']}"):  # fmt: skip
        assert words in said


def guard_status(*, threshold: float, **changes: Any) -> GuardStatus:
    fields: dict[str, Any] = {
        "target_fpr": 0.05, "lowest": threshold, "highest": threshold, "by_class": False,
        "flags": f"score above {threshold:.3f}",
    }  # fmt: skip
    return GuardStatus(threshold=threshold, **fields | changes)


def full_status(**changes: Any) -> ServerStatus:
    guard = guard_status(digest="d" * 64, created_at="2026-11-01T00:00:00+00:00", threshold=1.25)
    bounds = (-4.0, -1.0, 1.0, 3.0, math.inf)
    fields: dict[str, Any] = {
        "name": "m", "state": "ready", "is_ready": True, "policy": "annotate",
        "hour": HourStatus(
            images=60, adversarial=20, unscored=1, minutes=[(1, 0)] * 59 + [(1, 20)],
            histogram=list(zip(bounds, (5, 20, 10, 5, 20), strict=True)),
        ),
        "guard": guard,
    }  # fmt: skip
    model = ModelStatus(**(fields | changes))
    return ServerStatus(
        state="serving", version="1", when="2026-11-21T00:00:00+00:00", models=[model]
    )


def test_the_page_escapes_what_it_shows() -> None:
    """No name, reason, label or layer becomes markup."""
    odd = "<script>x</script>"
    guard = guard_status(digest=odd, created_at=odd, threshold=math.nan, flags=odd)
    text = page(
        full_status(
            name=odd, state=odd, policy=odd, guard=guard,
            challenger=ChallengerStatus(
                guard=guard, since=odd, agreement=Agreement(), histogram=[(math.inf, 1)]
            ),
            captured=CaptureStatus(images=1, waiting={odd: 1}, labels={odd: 1}),
            drift=Drift(samples=1, statistics={odd: 1}, advice="retrain", layers={odd: 1}),
            changes=[
                ChangeStatus(
                    number=1, action=odd, guard=odd, who=odd, why=odd, when=odd, forced=True,
                    passed=False, reasons=[odd],
                )
            ],
        )
    )  # fmt: skip
    assert "<script" not in text
    assert text.count("&lt;script&gt;") > 10


def test_columns_are_coloured_by_the_threshold() -> None:
    """Below it, around it and above it; with the threshold inside the bucket up to 3."""
    text = page(full_status())
    chart = text[text.index("Scores of the last hour") :]
    assert [chart.count(f"rect class={kind} ") for kind in ("clean", "mixed", "flagged")] == [
        3, 1, 1
    ]  # fmt: skip


def test_json_has_only_finite_numbers() -> None:
    """What is infinite or not a number is null, so every reader parses it."""
    document = full_status(guard=None).to_json()
    text = json.dumps(document, allow_nan=False)
    assert json.loads(text)["models"][0]["hour"]["histogram"][-1] == [None, 20]
    assert document["models"][0]["guard"] is None


def test_the_status_command_asks_for_something(tmp_path: Path) -> None:
    """Wrong usage, no captures there, nobody there, somebody else there: one clear line each."""
    run = CliRunner()
    done = run.invoke(app, ["status"])
    assert done.exit_code == 2
    assert "expected --shelf, --captures or --server" in done.output
    done = run.invoke(app, ["status", "--captures", str(tmp_path)])
    assert done.exit_code == 1
    assert "expected captures in" in done.output

    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"[1]")

        def log_message(self, *_: object) -> None:
            """Stay quiet."""

    with HTTPServer(("127.0.0.1", 0), Other) as other:
        address = f"127.0.0.1:{other.server_address[1]}"
        threading.Thread(target=other.handle_request, daemon=True).start()
        with pytest.raises(OSError, match=r"a reluguard server's status .* other JSON"):
            status_command("--server", address)
    with pytest.raises(OSError, match="refused"):
        status_command("--server", address)


def browser() -> str:
    names = ("chromium", "chromium-browser", "google-chrome")
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if not found:
        pytest.skip("no browser: Debian has one in the package chromium, or set CHROMIUM")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_in_a_real_browser(
    busy: tuple[Running, Path, Path, int], tmp_path: Path, scheme: str
) -> None:
    """It renders whole, in both colour schemes, without a complaint on the console."""
    server, _, _, flagged = busy
    picture = tmp_path / f"{scheme}.png"
    dark = ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []

    def render(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                browser(), *FLAGS, *dark, f"--user-data-dir={tmp_path / 'profile'}",
                "--enable-logging=stderr", "--window-size=1280,1500", *more,
                f"http://{server.metrics_address}/",
            ],
            capture_output=True, text=True, check=False, timeout=90,
        )  # fmt: skip

    done = render("--dump-dom")
    assert done.returncode == 0, done.stderr
    assert "CONSOLE" not in done.stderr, done.stderr
    assert 'id="state">serving</span>' in done.stdout
    assert f"adversarial ({flagged})" in done.stdout
    assert done.stdout.count("<svg") == 3
    assert "Challenger in shadow" in done.stdout
    done = render(f"--screenshot={picture}")
    assert done.returncode == 0, done.stderr
    from PIL import Image

    with Image.open(picture) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert (pixels[2, 2].mean() < 60) == (scheme == "dark")
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50  # not an empty page
    if keep := os.environ.get("RELUGUARD_SCREENSHOTS"):
        shutil.copy(picture, Path(keep) / picture.name)


def test_what_is_wrong_stands_on_top() -> None:
    """A third flagged where one in twenty is calibrated is said in words, a calm hour is not."""
    text = page(full_status())
    assert "m flags 33.90% of the last hour&#x27;s images, of clean ones it would flag" in text
    assert "m could not score 1 images." in text
    calm = HourStatus(
        images=60, adversarial=3, unscored=0, minutes=[(1, 0)] * 60, histogram=[(math.inf, 60)]
    )
    assert whats_wrong(full_status(hour=calm)) == []
    assert "class=wrong" not in page(full_status(hour=calm))
    worse = full_status(hour=calm, is_ready=False, state="refused", challenger_refused=True)
    assert whats_wrong(worse) == [
        "m is not served: refused.",
        "m serves without its challenger, which was refused.",
    ]


def test_the_limits_are_shown(server: Running) -> None:
    """What callers can make the server hold stands on the page and in the JSON."""
    room = server.server.room
    text = page(server.server.status())
    assert "What callers may use" in text
    assert f"{room.memory_bytes / 2**20:,.0f} MiB at most" in text
    assert server.server.status().to_json()["room"]["memory_bytes"] == room.memory_bytes
