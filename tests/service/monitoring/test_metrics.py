import socket
import threading
import urllib.error
import urllib.request
from contextlib import ExitStack, suppress
from typing import Any

import grpc
import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from reluguard.detector.images import Images
from reluguard.detector.looks.thresholds import Thresholds
from reluguard.detector.runtime import Guard
from reluguard.service.background import Running, running
from reluguard.service.client.client import Client
from reluguard.service.errors import CallError
from reluguard.service.monitoring.hour import Hour
from reluguard.service.monitoring.live_guards import LiveGuard
from reluguard.service.monitoring.metrics import Metrics
from tests.waiting import until


def scrape(server: Running) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    with urllib.request.urlopen(f"http://{server.metrics_address}/metrics", timeout=5) as reply:
        assert reply.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        text = reply.read().decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples: dict[Any, float], name: str, **labels: str) -> float:
    return sum(
        number
        for (key, have), number in samples.items()
        if key == name and set(labels.items()) <= have
    )


@pytest.fixture
def fresh(guard: Guard) -> Any:
    with running(guard, name="tiny") as server:
        yield server


def test_what_was_asked_is_what_is_counted(fresh: Running, guard: Guard, mixed: Images) -> None:
    """Verdicts, scores, batches, stages and calls add up to the requests sent."""
    with Client(fresh.address) as client:
        client.inspect(mixed[:10])
        client.inspect(mixed[10:11])
        with pytest.raises(CallError):
            client.inspect(np.zeros((1, 5, 5, 3), np.uint8))
    samples = scrape(fresh)
    flagged = guard.inspect(mixed[:11]).is_adversarial.sum()
    verdict = "reluguard_verdicts_total"
    assert value(samples, verdict, model="tiny", verdict="adversarial") == flagged
    assert value(samples, verdict, verdict="clean", policy="annotate") == 11 - flagged
    assert value(samples, verdict, verdict="unscored") == 0
    assert value(samples, "reluguard_score_count", model="tiny") == 11
    assert value(samples, "reluguard_batch_size_sum", model="tiny") == 11
    for stage in ("decode", "queue", "model", "encode"):
        assert value(samples, "reluguard_stage_duration_seconds_count", stage=stage) == 2
    rpc = {"grpc_service": "reluguard.v1.Guard", "grpc_method": "Inspect", "grpc_type": "unary"}
    assert value(samples, "grpc_server_started_total", **rpc) == 3
    assert value(samples, "grpc_server_handled_total", **rpc, grpc_code="OK") == 2
    assert value(samples, "grpc_server_handled_total", **rpc, grpc_code="InvalidArgument") == 1
    assert value(samples, "grpc_server_msg_received_total", **rpc) == 3
    assert value(samples, "grpc_server_msg_sent_total", **rpc) == 2
    assert value(samples, "grpc_server_handling_seconds_count", **rpc) == 3
    assert value(samples, "reluguard_in_flight") == 0
    assert value(samples, "reluguard_queue_depth", model="tiny") == 0


def test_the_live_guard_is_shown(fresh: Running, guard: Guard) -> None:
    """Digest, age and threshold of the guard that answers."""
    samples = scrape(fresh)
    digest = guard.artifact.digest
    assert value(samples, "reluguard_guard_info", model="tiny", guard=digest) == 1
    assert value(samples, "reluguard_guard_age_seconds", model="tiny") > 0
    assert value(samples, "reluguard_threshold") == pytest.approx(guard.threshold)


def test_no_label_comes_from_a_caller(fresh: Running) -> None:
    """Unknown models, methods and outputs leave no series behind."""
    before = set(scrape(fresh))
    with grpc.insecure_channel(fresh.address) as channel:
        for method in ("/reluguard.v1.Guard/Evil", "/evil.Service/Inspect"):
            with pytest.raises(grpc.RpcError):
                channel.unary_unary(method, None, None)(b"", timeout=5)
    for i in range(5):
        with Client(fresh.address, model=f"evil{i}") as client, pytest.raises(CallError):
            client.describe()
    new = set(scrape(fresh)) - before
    assert {name for name, _ in new} <= {"grpc_server_handled_total"}
    assert not any("evil" in str(labels) for _, labels in new)


def test_each_server_has_its_own_registry(guard: Guard) -> None:
    """Two servers in a process count apart, and nothing lands in the global registry."""
    with running(guard) as one, running(guard) as two:
        with Client(one.address) as client:
            client.inspect(np.zeros((1, 12, 12, 3), np.uint8))
        assert value(scrape(one), "reluguard_score_count") == 1
        assert value(scrape(two), "reluguard_score_count") == 0
        assert not any(name.endswith("_created") for name, _ in scrape(one))


def test_other_paths_and_methods_are_refused(fresh: Running) -> None:
    """404 and 501, no trace of the file system."""
    for path, method, code in (("/../etc/passwd", "GET", 404), ("/", "POST", 501)):
        request = urllib.request.Request(
            f"http://{fresh.metrics_address}{path}", method=method, data=None
        )
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request, timeout=5)
        assert caught.value.code == code
        caught.value.close()


def test_a_slow_scraper_does_not_block_others(fresh: Running) -> None:
    """Each connection has its own thread."""
    assert fresh.metrics_address is not None
    host, _, port = fresh.metrics_address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=5) as slow:
        slow.sendall(b"GET /metrics HT")
        assert scrape(fresh)


def test_many_slow_scrapers_take_neither_threads_nor_the_port(fresh: Running) -> None:
    """Of those that only wait the oldest makes way: threads are bounded, others are served."""
    assert fresh.metrics_address is not None
    host, _, port = fresh.metrics_address.rpartition(":")
    before = threading.active_count()
    with ExitStack() as held:
        slow = [
            held.enter_context(socket.create_connection((host, int(port)), timeout=30))
            for _ in range(120)
        ]
        for one in slow:
            with suppress(OSError):  # made way already
                one.sendall(b"GET /metrics HTTP/1.1\r\nX: ")
        assert scrape(fresh)
        until(lambda: threading.active_count() <= before + 80)
        for one in slow[:50]:
            with suppress(ConnectionResetError):
                assert one.recv(1) == b""  # the first made way


def test_the_hour_forgets() -> None:
    """Only the last sixty minutes count."""
    clock = [0.0]
    hour = Hour(clock=lambda: clock[0])
    hour.add([1.5, -30.0, 100.0], adversarial=1, unscored=2)
    assert hour.counts() == (5, 1, 2)
    assert dict(hour.histogram())[2.0] == 1
    assert dict(hour.histogram())[float("inf")] == 1
    clock[0] = 59 * 60
    hour.add([0.0], adversarial=0, unscored=0)
    assert hour.counts() == (6, 1, 2)
    clock[0] = 61 * 60
    assert hour.counts() == (1, 0, 0)


def test_a_swapped_guard_leaves_no_series_behind() -> None:
    """One live guard, one series."""
    registry = CollectorRegistry()
    model = Metrics(registry).model("m", "annotate")
    for digest in ("a", "b"):
        thresholds = Thresholds(fpr=0.05, first=np.ones(1, np.float32))
        model.guard(LiveGuard(digest=digest, model_sha256="s", created=0.0, thresholds=thresholds))

    def live() -> list[str]:
        return [
            sample.labels["guard"]
            for family in registry.collect()
            for sample in family.samples
            if sample.name == "reluguard_guard_info"
        ]

    assert live() == ["b"]
    model.unloaded()
    assert live() == []
