import asyncio
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reluguard.detector.errors import GuardError, ModelError
from reluguard.detector.images import Images
from reluguard.detector.runtime import Guard
from reluguard.service.background import Running, on_loop, running
from reluguard.service.client.client import Client
from reluguard.service.client.probe import is_healthy
from reluguard.service.errors import CallError, ReloadError, StartError
from reluguard.service.settings import Settings
from tests.waiting import until

IMAGE = np.zeros((1, 12, 12, 3), np.uint8)


@pytest.fixture
def own(tmp_path: Path, pairs: Callable[..., Any]) -> Any:
    return pairs(tmp_path / "own")


def settings(model: Path, guard: Path, **changes: Any) -> Settings:
    fixed = {"port": 0, "metrics_port": None, "threads": 1, "reload_s": 0.0, "name": "m"}
    return Settings(model=model, guard=guard, **(fixed | changes))


@pytest.fixture
def versions(tmp_path: Path, own: Any, new_guard: Callable[..., Path]) -> Path:
    """A folder of guards with a CURRENT file that names one."""
    folder = tmp_path / "versions"
    for tag, shift in (("one", 0.0), ("two", 0.5)):
        new_guard(own, tag=tag, shift=shift, path=folder / tag)
    point(folder, "one")
    return folder


def point(folder: Path, name: str) -> None:
    aside = folder / "CURRENT.new"
    aside.write_text(name + "\n")
    aside.rename(folder / "CURRENT")


def reloads(server: Running, outcome: str) -> float:
    labels = {"model": "m", "outcome": outcome}
    return server.server.metrics.registry.get_sample_value("reluguard_reload_total", labels) or 0


@pytest.fixture
def server(own: Any, versions: Path) -> Iterator[Running]:
    with running(settings(own.model, versions)) as server:
        yield server


def digest(server: Running) -> str:
    with Client(server.address) as client:
        return client.describe().guard


def digest_of(path: Path, own: Any) -> str:
    return Guard.open(own.model, path, threads=1).artifact.digest


def test_a_new_guard_goes_live_by_its_pointer(
    server: Running, own: Any, versions: Path, clean: Images
) -> None:
    """The pointer moves, the answers follow; back again too."""
    one, two = (digest_of(versions / name, own) for name in ("one", "two"))
    assert one != two
    assert digest(server) == one
    point(versions, "two")
    on_loop(server.server.reload())
    assert digest(server) == two
    with Client(server.address) as client:
        served = client.inspect(clean[:4])
    expected = Guard.open(own.model, versions / "two", threads=1).inspect(clean[:4])
    assert (served.score == expected.score).all()
    point(versions, "one")
    on_loop(server.server.reload())
    assert digest(server) == one
    assert reloads(server, "swapped") == 3


def test_a_link_is_a_pointer_too(tmp_path: Path, own: Any, versions: Path) -> None:
    """What is followed is where the link leads now."""
    link = tmp_path / "live"
    link.symlink_to(versions / "one")
    with running(settings(own.model, link)) as server:
        (tmp_path / "next").symlink_to(versions / "two")
        (tmp_path / "next").rename(link)
        on_loop(server.server.reload())
        assert digest(server) == digest_of(versions / "two", own)


def test_the_pointer_is_watched(own: Any, versions: Path) -> None:
    """With a period, nobody has to ask."""
    with running(settings(own.model, versions, reload_s=0.01)) as server:
        point(versions, "two")
        wanted = digest_of(versions / "two", own)
        swapped = threading.Event()
        while digest(server) != wanted:
            assert not swapped.wait(0.005)


@pytest.mark.parametrize("harm", ["flipped", "truncated", "missing", "foreign", "outside"])
def test_a_refused_guard_leaves_the_last_good_one(
    server: Running,
    versions: Path,
    tmp_path: Path,
    pairs: Callable[..., Any],
    harm: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Damaged, absent, of another model, or a pointer that leads away: the old one answers on."""
    before = digest(server)
    bad = versions / "bad"
    if harm == "foreign":
        pairs(tmp_path / "foreign", seed=9)
        shutil.copytree(tmp_path / "foreign" / "guard", bad)
    elif harm != "missing":
        shutil.copytree(versions / "two", bad)
    if harm == "flipped":
        data = bytearray((bad / "head.npz").read_bytes())
        data[len(data) // 2] ^= 1
        (bad / "head.npz").write_bytes(data)
    if harm == "truncated":
        (bad / "manifest.json").write_bytes((bad / "manifest.json").read_bytes()[:100])
    point(versions, "../versions/two" if harm == "outside" else "bad")
    on_loop(server.server.reload())
    assert digest(server) == before
    with Client(server.address) as client:
        assert len(client.inspect(IMAGE)) == 1
    assert reloads(server, "refused") == 1
    assert "the last good version stays" in caplog.text
    on_loop(server.server.reload())  # nothing changed, so nothing is tried
    assert reloads(server, "refused") == 1
    point(versions, "two")
    on_loop(server.server.reload())
    assert digest(server) != before


def test_reloading_under_load_loses_nothing(
    server: Running, versions: Path, own: Any, mixed: Images
) -> None:
    """Every answer is that of one guard or the other, whole, and none is an error."""
    expected = [
        Guard.open(own.model, versions / name, threads=1).inspect(mixed[:4]).score
        for name in ("one", "two")
    ]
    done = threading.Event()

    def ask() -> int:
        count = 0
        with Client(server.address) as client:
            while not done.is_set():
                score = client.inspect(mixed[:4]).score
                assert any(np.allclose(score, one, atol=1e-3) for one in expected)
                count += 1
        return count

    with ThreadPoolExecutor(4) as threads:
        askers = [threads.submit(ask) for _ in range(4)]
        for turn in range(6):
            point(versions, ("two", "one")[turn % 2])
            on_loop(server.server.reload())
        done.set()
        assert all(asker.result() > 0 for asker in askers)
    assert reloads(server, "swapped") == 7


def test_a_bad_guard_stops_the_start(own: Any, versions: Path, tmp_path: Path) -> None:
    """With the detector's own words, and the server never says SERVING."""
    point(versions, "nowhere")
    with pytest.raises(StartError) as caught, running(settings(own.model, versions)):
        pass
    assert isinstance(caught.value.__cause__, GuardError)
    with (
        pytest.raises(StartError) as caught,
        running(settings(tmp_path / "none.onnx", versions / "one")),
    ):
        pass
    assert isinstance(caught.value.__cause__, ModelError)


def test_several_models_from_a_folder(
    tmp_path: Path, pairs: Callable[..., Any], clean: Images
) -> None:
    """Each by its name; one that is damaged is not ready, and the others are served."""
    for seed, name in enumerate(("cats", "dogs", "fish")):
        pairs(tmp_path / name, seed=seed)
    (tmp_path / "fish" / "guard" / "manifest.json").write_text("{}")
    options: dict[str, Any] = {"models": tmp_path, "port": 0, "metrics_port": None, "threads": 1}
    with running(Settings(**options)) as server:
        for name in ("cats", "dogs"):
            own = Guard.open(tmp_path / name / "model.onnx", tmp_path / name / "guard", threads=1)
            with Client(server.address, model=name) as client:
                assert (client.inspect(clean[:4]).score == own.inspect(clean[:4]).score).all()
                assert client.describe().models == ("cats", "dogs", "fish")
            assert is_healthy(server.address, service=name)
        assert is_healthy(server.address)
        assert not is_healthy(server.address, service="fish")
        with (
            Client(server.address, model="fish", deadline_s=0.5) as client,
            pytest.raises(CallError, match=r"UNAVAILABLE: the model 'fish' is not ready|DEADL"),
        ):
            client.inspect(IMAGE)
        with (
            Client(server.address) as client,
            pytest.raises(CallError, match="the name of one of 3 models, got none"),
        ):
            client.inspect(IMAGE)


def test_a_model_that_comes_later_disturbs_no_other(
    tmp_path: Path, pairs: Callable[..., Any]
) -> None:
    """It may come while the others are gone through; one that is refused leaves nothing running."""
    for seed, name in enumerate(("cats", "dogs")):
        pairs(tmp_path / name, seed=seed)
    options: dict[str, Any] = {"models": tmp_path, "port": 0, "metrics_port": None, "threads": 1}

    async def tasks() -> int:
        return len(asyncio.all_tasks())

    with running(Settings(**options)) as server:
        pairs(tmp_path / "fish", seed=2)
        pairs(tmp_path / "bad", seed=3)
        (tmp_path / "bad" / "guard" / "manifest.json").write_text("{}")
        before = on_loop(tasks())
        for _ in range(3):
            with pytest.raises(ReloadError, match="the files of 'bad' were refused"):
                on_loop(server.server.change("load", "bad"))
        until(lambda: on_loop(tasks()) <= before)
        seen: list[str] = []
        for model in server.server.catalogue:
            if not seen:
                on_loop(server.server.change("load", "fish"))
            seen.append(model.name)
        assert seen == ["cats", "dogs"]
        assert [model.name for model in server.server.catalogue] == ["cats", "dogs", "fish"]


def test_an_empty_or_absent_model_folder_is_an_error(tmp_path: Path) -> None:
    """Nothing to serve is no server."""
    for folder, message in ((tmp_path, "at least one model"), (tmp_path / "x", "can't be read")):
        with (
            pytest.raises(StartError, match=message),
            running(Settings(models=folder, port=0, metrics_port=None)),
        ):
            pass


def test_a_fixed_batch_model(tmp_path: Path, pairs: Callable[..., Any], clean: Images) -> None:
    """Any number of rows, though the model takes four."""
    pair = pairs(tmp_path / "fixed", batch=4)
    own = pair.open()
    with running(settings(pair.model, pair.guard)) as server, Client(server.address) as client:
        for rows in (1, 4, 7):
            served = client.inspect(clean[:rows])
            assert (served.score == own.inspect(clean[:rows]).score).all()


def test_a_model_refused_at_start_is_tried_again(pairs: Callable[..., Any], tmp_path: Path) -> None:
    """When its files change, or on SIGHUP; the others are served meanwhile."""
    for name in ("good", "bad"):
        pairs(tmp_path / name)
    manifest = tmp_path / "bad" / "guard" / "manifest.json"
    whole = manifest.read_bytes()
    manifest.write_bytes(whole[:100])
    settings = Settings(models=tmp_path, port=0, metrics_port=None, reload_s=0.02)
    with running(settings) as server:
        assert is_healthy(server.address, service="good")
        assert not is_healthy(server.address, service="bad")
        manifest.write_bytes(whole)
        patience = time.monotonic() + 30
        while not is_healthy(server.address, service="bad"):
            assert time.monotonic() < patience
    settings = Settings(models=tmp_path, port=0, metrics_port=None, reload_s=0.0)
    manifest.write_bytes(whole[:100])
    with running(settings) as server:
        manifest.write_bytes(whole)
        on_loop(server.server.reload())
        assert is_healthy(server.address, service="bad")
