"""The watch inside a real server: by gRPC and HTTP, with tokens and without, counted, refused."""

import hashlib
import json
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from reluguard.detector.errors import SettingsError
from reluguard.detector.images import Images
from reluguard.detector.runtime import Guard
from reluguard.service.background import Running, on_loop, running
from reluguard.service.client.client import Client
from reluguard.service.errors import CallError, StartError
from reluguard.service.protocols.pb import reluguard_v1 as pb
from reluguard.service.security import Tokens
from reluguard.service.settings import Settings
from reluguard.service.watching.table import LEAST_BYTES
from tests.service.rest.test_http import JSON, ask, document
from tests.waiting import until

NEAR = 8
INSPECT = "/reluguard.v1.Guard/Inspect"


@pytest.fixture(scope="session")
def reading_guard(pair: Any) -> Guard:
    """The pair's guard with what it reads."""
    return Guard.open(pair.model, pair.guard, threads=1, readings=True)


@pytest.fixture
def near(smooth: Callable[[int, int], Images]) -> Callable[[int], Images]:
    """So many images that differ in one pixel's value."""

    def drawn(count: int) -> Images:
        images = np.repeat(smooth(1, 50), count, axis=0)
        images[np.arange(count), 3 + np.arange(count) // 8, np.arange(count) % 8] ^= 8
        return images

    return drawn


def counted(server: Running, name: str, **labels: str) -> float:
    labels = {} if name.endswith("suspects") else {"model": "tiny", **labels}
    return server.server.metrics.registry.get_sample_value(name, labels) or 0.0


def questions(server: Running) -> tuple[float, ...]:
    return tuple(
        counted(server, "reluguard_watch_questions_total", question=kind)
        for kind in ("new", "near", "equal")
    )


@pytest.fixture(scope="module")
def counting(reading_guard: Guard, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server that counts near-equal questions, of callers with tokens."""
    folder = tmp_path_factory.mktemp("tokens")
    tokens = folder / "tokens.toml"
    lines = []
    for name in ("attacker", "camera", "retrying", "batch", "by http"):
        digest = hashlib.sha256(name.encode()).hexdigest()
        lines += [
            "[[token]]",
            f'name = "{name}"',
            "scopes = ['privileged']",
            f'sha256 = "{digest}"',
        ]
        lines += ["watched = false"] if name == "camera" else []
    tokens.write_text("\n".join(lines))
    with running(
        reading_guard, name="tiny", max_rows=64, watch="count", watch_near=NEAR, tokens=tokens,
        http_port=0, decision_log=folder / "decisions.jsonl", decision_share=0.0,
    ) as server:  # fmt: skip
        yield server


def test_an_attack_is_counted_and_shown(counting: Running, near: Callable[[int], Images]) -> None:
    """Near-equal questions one by one: answers as before, in metrics, status and decision log."""
    before = questions(counting)
    with Client(counting.address, token="attacker") as client:
        for image in near(NEAR + 2):
            assert len(client.inspect(image[None])) == 1
    assert np.subtract(questions(counting), before).tolist() == [1, NEAR + 1, 0]
    assert counted(counting, "reluguard_watch_suspects") == 1
    assert counted(counting, "reluguard_watch_raised_total") == 1
    status = counting.server.status()
    assert status.watch is not None
    (suspect,) = status.watch.suspects
    assert (suspect.caller, suspect.asked) == ("attacker", NEAR + 2)
    with urllib.request.urlopen(
        urllib.request.Request(
            f"http://{counting.metrics_address}/status.json",
            headers={"Authorization": "Bearer attacker"},
        ),
        timeout=10,
    ) as reply:
        assert json.load(reply)["watch"]["suspects"][0]["caller"] == "attacker"
    log = counting.server.settings.decision_log
    assert log is not None
    until(lambda: log.is_file() and len(log.read_text().splitlines()) >= 3)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    told = [line for line in lines if line.get("suspected")]
    assert [line["question"] for line in told] == ["near"] * 3
    assert [round(line["near"]) for line in told] == [NEAR, NEAR + 1, NEAR + 2]
    assert {line["caller"] for line in told} == {"attacker"}


def test_who_is_exempt_is_not_watched(counting: Running, near: Callable[[int], Images]) -> None:
    """A camera's token says that near-equal images are what it sends."""
    before = questions(counting)
    with Client(counting.address, token="camera") as client:
        client.inspect(near(3 * NEAR))
    assert questions(counting) == before


def test_retries_are_told_apart(counting: Running, near: Callable[[int], Images]) -> None:
    """The same bytes again are no near-equal question, in whatever batch they come."""
    before, raised = questions(counting), counted(counting, "reluguard_watch_raised_total")
    with Client(counting.address, token="retrying") as client:
        for size in (1, 5):
            for _ in range(NEAR):
                client.inspect(np.repeat(near(1), size, axis=0))
    assert np.subtract(questions(counting), before).tolist() == [1, 0, 6 * NEAR - 1]
    assert counted(counting, "reluguard_watch_raised_total") == raised


def test_a_batch_counts_row_by_row(counting: Running, near: Callable[[int], Images]) -> None:
    """Near-equal images in one request are as many questions; large batches too."""
    before, raised = questions(counting), counted(counting, "reluguard_watch_raised_total")
    with Client(counting.address, token="batch") as client:
        client.inspect(near(40))
    assert np.subtract(questions(counting), before).tolist() == [1, 39, 0]
    assert counted(counting, "reluguard_watch_raised_total") == raised + 1


def test_http_callers_are_watched_too(
    counting: Running, near: Callable[[int], Images], reading_guard: Guard
) -> None:
    """The HTTP twin's callers have the same account."""
    before = questions(counting)
    assert counting.http_address is not None
    headers = {**JSON, "Authorization": "Bearer by http"}
    for row in reading_guard.spec.to_tensor(near(3)):
        status, *_ = ask(
            counting.http_address, "/v2/models/tiny/infer", document(row[None]), headers=headers
        )
        assert status == 200
    with Client(counting.address, token="by http") as client:
        client.inspect(near(4)[3:])
    assert np.subtract(questions(counting), before).tolist() == [1, 3, 0]


def test_a_reload_forgets_nothing(pair: Any, near: Callable[[int], Images]) -> None:
    """Half of the questions before a reload and half after it are all of them."""
    settings = Settings(
        model=pair.model, guard=pair.guard, name="tiny", port=0, metrics_port=None, threads=1,
        watch="count", watch_near=NEAR, reload_s=0,
    )  # fmt: skip
    with running(settings) as server, Client(server.address) as client:
        images = near(NEAR)
        client.inspect(images[: NEAR // 2])
        on_loop(server.server.change("load", "tiny"))  # what RepositoryModelLoad does
        client.inspect(images[NEAR // 2 :])
        assert counted(server, "reluguard_watch_raised_total") == 1


def test_near_equal_questions_are_refused(
    reading_guard: Guard, near: Callable[[int], Images], smooth: Callable[[int, int], Images]
) -> None:
    """RESOURCE_EXHAUSTED with a pushback, in a stream and by HTTP as well; other images pass."""
    with (
        running(
            reading_guard,
            name="tiny",
            watch="refuse",
            watch_near=NEAR,
            http_port=0,
            metrics_port=None,
        ) as server,
        Client(server.address, deadline_s=60) as client,
    ):
        images = near(NEAR + 4)
        client.inspect(images[:NEAR])
        with pytest.raises(CallError, match="expected fewer near-equal images of one caller") as no:
            client.inspect(images[NEAR : NEAR + 1])
        assert no.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert len(client.inspect(smooth(4, 90))) == 4
        (streamed,) = client.stream(iter([images[NEAR + 3 : NEAR + 4]]))
        assert isinstance(streamed, CallError)
        assert "near-equal" in str(streamed)
        assert len(client.inspect(images[:1])) == 1  # a retry of what was answered
        pixels = pb.Pixels(
            data=images[NEAR + 1].tobytes(), count=1, height=12, width=12, channels=3
        )
        request = pb.InspectRequest(pixels=pixels).SerializeToString()
        with grpc.insecure_channel(server.address) as channel:
            with pytest.raises(grpc.RpcError) as plain:
                channel.unary_unary(INSPECT)(request, timeout=30)
            trailing: Any = plain.value
            told = dict(trailing.trailing_metadata())
            assert told["grpc-retry-pushback-ms"] == "-1"  # not by itself
            assert 3500 < int(told["retry-after"]) <= 3700
        tensor: NDArray[np.float32] = reading_guard.spec.to_tensor(images[NEAR + 2 : NEAR + 3])
        assert server.http_address is not None
        status, reply, headers = ask(
            server.http_address, "/v2/models/tiny/infer", document(tensor), headers=JSON
        )
        assert status == 429
        assert 3500 < int(headers["Retry-After"]) <= 3700
        assert "near-equal" in reply["error"]
        assert counted(server, "reluguard_watch_refused_total") == 4


def test_describe_says_what_is_remembered_at_most(reading_guard: Guard) -> None:
    """The bytes of the watch are among those that callers can make the server hold."""
    found = []
    for watch in ("off", "count"):
        with (
            running(reading_guard, watch=watch, watch_max_bytes=2**20, metrics_port=None) as server,
            grpc.insecure_channel(server.address) as channel,
        ):
            reply = channel.unary_unary("/reluguard.v1.Guard/Describe")(b"", timeout=30)
            limits = pb.DescribeResponse.FromString(reply).limits
            found.append((limits.watch_bytes, limits.memory_bytes))
    assert found[0][0] == 0
    assert found[1][0] == found[1][1] - found[0][1] == 2**20


# ---- errors


def test_a_guard_without_readings_is_refused(guard: Guard) -> None:
    """A guard handed over as an object must have been opened with what the watch reads."""
    with pytest.raises(StartError, match="opened with readings=True, which watch needs"):
        running(guard, watch="count").__enter__()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"watch": "on"}, "expected watch one of off, count, refuse, got 'on'"),
        ({"watch_near": 0}, "expected watch_near of 1 or more, got 0"),
        ({"watch_distance": 0.5}, r"expected watch_distance in \(0, 0.5\)"),
        ({"watch_s": 0.0}, "expected watch_s of more than 0, got 0.0"),
        ({"watch_max_bytes": 9}, f"expected watch_max_bytes of {LEAST_BYTES} or more, got 9"),
        ({"watch": "refuse", "policy": "shadow"}, "expected watch of off or count with policy"),
    ],
)
def test_wrong_settings_are_refused(given: dict[str, Any], message: str) -> None:
    """Each wrong setting has its message."""
    with pytest.raises(SettingsError, match=message):
        Settings(**given)


def test_a_token_file_says_true_or_false(tmp_path: Path) -> None:
    """A word in place of true or false is refused when the server starts."""
    file = tmp_path / "tokens.toml"
    file.write_text(f"[[token]]\nscopes = ['infer']\nsha256 = '{'ab' * 32}'\nwatched = 'no'\n")
    with pytest.raises(StartError, match="expected watched of true or false in token 1, got 'no'"):
        Tokens(file)
