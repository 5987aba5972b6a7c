import asyncio
import io
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, cast

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from prometheus_client import CollectorRegistry

from reluguard.detector.errors import SettingsError
from reluguard.detector.images import Images
from reluguard.detector.runtime import Guard
from reluguard.service.background import Running, on_loop, running
from reluguard.service.client.client import Client
from reluguard.service.client.probe import is_healthy
from reluguard.service.edge import Edge
from reluguard.service.errors import CallError, ExpiredError, StartError
from reluguard.service.monitoring.metrics import Metrics
from reluguard.service.protocols.pb import reluguard_v1 as pb
from reluguard.service.quotas import Quota, Quotas
from reluguard.service.room import room_of
from reluguard.service.settings import Settings
from tests.waiting import until

COLUMNS = ("prediction", "score", "likelihood", "p_value", "is_adversarial", "evidence")


def png(image: Images, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind)
    return file.getvalue()


def ask(address: str, request: bytes | pb.InspectRequest, **options: Any) -> pb.InspectResponse:
    """Send what no client of ours would."""
    with grpc.insecure_channel(address, [("grpc.max_send_message_length", -1)]) as channel:
        method = channel.unary_unary("/reluguard.v1.Guard/Inspect", None, None)
        data = request if isinstance(request, bytes) else request.SerializeToString()
        return pb.InspectResponse.FromString(method(data, timeout=10, **options))


def pixels(images: Images, **changes: Any) -> pb.InspectRequest:
    n, h, w, c = images.shape
    fields = {"count": n, "height": h, "width": w, "channels": c, "data": images.tobytes()}
    return pb.InspectRequest(pixels=pb.Pixels(**(fields | changes)))


def tensors(array: np.ndarray[Any, Any], **changes: Any) -> pb.InspectRequest:
    fields = {"datatype": "FP32", "shape": array.shape, "data": array.tobytes()}
    return pb.InspectRequest(tensor=pb.Tensor(**(fields | changes)))


def refusal(address: str, request: bytes | pb.InspectRequest) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        ask(address, request)
    error: Any = caught.value
    return error.code(), error.details()


@pytest.mark.parametrize("kind", ["inspect", "inspect_tensor", "inspect_encoded"])
def test_served_equals_in_process(server: Running, guard: Guard, mixed: Images, kind: str) -> None:
    """A batch that fits one run gets the verdicts that it gets in process, bit for bit."""
    given: Any = {
        "inspect": mixed[:16],
        "inspect_tensor": guard.spec.to_tensor(mixed[:16]),
        "inspect_encoded": [png(image) for image in mixed[:16]],
    }[kind]
    with Client(server.address) as client:
        served = getattr(client, kind)(given, outputs=True)
    own = guard.inspect(mixed[:16])
    for name in COLUMNS:
        assert_array_equal(getattr(served, name), getattr(own, name))
    for name, output in own.outputs.items():
        assert_array_equal(served.outputs[name], output)
        assert served.outputs[name].dtype == output.dtype
    assert 0 < np.count_nonzero(own.is_adversarial) < 16


def test_a_larger_batch_agrees_within_tolerance(
    server: Running, guard: Guard, mixed: Images
) -> None:
    """Split into runs of 16, scores differ from one run of 80 by rounding only."""
    with Client(server.address) as client:
        served = client.inspect(mixed)
    own = guard.inspect(mixed)
    assert len(served) == len(mixed) == 80
    assert_allclose(served.score, own.score, atol=1e-3)
    assert_array_equal(served.prediction, own.prediction)


def test_callers_at_the_same_time_get_their_own_rows(
    server: Running, guard: Guard, mixed: Images
) -> None:
    """Merged into shared runs, every answer still belongs to its question."""
    own = guard.inspect(mixed)
    with Client(server.address) as client, ThreadPoolExecutor(16) as threads:
        served = list(threads.map(lambda i: client.inspect(mixed[i : i + 1]), range(80)))
    assert_allclose([one.score[0] for one in served], own.score, atol=1e-3)


def test_a_jpeg_of_another_size_is_resized(server: Running, clean: Images) -> None:
    """Photographs come as they are."""
    large = np.kron(clean[0], np.ones((4, 4, 1), np.uint8))
    with Client(server.address) as client:
        assert len(client.inspect_encoded([png(large, "JPEG"), png(large)])) == 2


IMAGE = np.zeros((1, 12, 12, 3), np.uint8)
TENSOR = np.zeros((2, 3, 12, 12), np.float32)
BOMB = png(np.zeros((5000, 5000), np.uint8))
HALF_BOMB = png(np.zeros((700, 700), np.uint8))
NOISE = png(np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8))
BAD: dict[str, tuple[bytes | pb.InspectRequest, str]] = {
    "garbage": (b"\xff\xff\xff", "expected a reluguard.v1.InspectRequest message"),
    "nothing": (pb.InspectRequest(), "expected one of tensor, pixels or encoded images, got none"),
    "empty pixels": (pixels(IMAGE[:0]), "expected at least one image, got an empty batch"),
    "empty tensor": (tensors(TENSOR[:0]), "expected at least one image, got an empty batch"),
    "no files": (
        pb.InspectRequest(encoded=pb.EncodedImages()),
        "expected at least one image, got an empty batch",
    ),
    "size": (
        pixels(np.zeros((1, 13, 12, 3), np.uint8)),
        "expected uint8 images of shape (N, 12, 12, 3), got (1, 13, 12, 3)",
    ),
    "channels": (
        pixels(np.zeros((1, 12, 12, 1), np.uint8)),
        "expected uint8 images of shape (N, 12, 12, 3), got (1, 12, 12, 1)",
    ),
    "short": (pixels(IMAGE, data=bytes(431)), "'pixels': expected 432, got 431"),
    "negative": (pixels(IMAGE, count=-1), "expected sizes of 0 or more for 'pixels'"),
    "enormous": (pixels(IMAGE, count=2**62), f"expected {2**62 * 432}, got 432"),
    "dtype": (
        tensors(TENSOR.astype(np.float64), datatype="FP64"),
        "expected a float32 tensor of shape (N, 3, 12, 12), got float64",
    ),
    "unknown datatype": (tensors(TENSOR, datatype="FP8"), "expected a datatype of"),
    "rank": (
        tensors(TENSOR, shape=(2, 432)),
        "expected a float32 tensor of shape (N, 3, 12, 12), got (2, 432)",
    ),
    "scalar": (tensors(TENSOR[0, 0, 0, 0], shape=()), "expected at least one image"),
    "NaN": (tensors(np.full_like(TENSOR, np.nan)), "got NaN or infinity in the tensor"),
    "infinity": (tensors(np.full_like(TENSOR, np.inf)), "got NaN or infinity in the tensor"),
    "too many": (
        pixels(np.zeros((65, 12, 12, 3), np.uint8)),
        "expected at most 64 images in one request, got 65",
    ),
    "undecodable": (
        pb.InspectRequest(encoded=pb.EncodedImages(images=[b"no image"])),
        "expected a whole JPEG, PNG or WebP image",
    ),
    "truncated": (
        pb.InspectRequest(encoded=pb.EncodedImages(images=[NOISE, NOISE[: len(NOISE) // 2]])),
        "expected a whole JPEG, PNG or WebP image",
    ),
    "gif": (
        pb.InspectRequest(encoded=pb.EncodedImages(images=[png(IMAGE[0], "GIF")])),
        "expected a whole JPEG, PNG or WebP image",
    ),
    "bomb": (
        pb.InspectRequest(encoded=pb.EncodedImages(images=[BOMB])),
        "expected at most 1000000 pixels in one request's images, got more",
    ),
    "small bombs": (
        pb.InspectRequest(encoded=pb.EncodedImages(images=[HALF_BOMB] * 3)),
        "expected at most 1000000 pixels in one request's images, got more",
    ),
    "output": (
        pb.InspectRequest(pixels=pixels(IMAGE).pixels, outputs=["logit"]),
        "expected outputs of logits, label, got 'logit'",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_with_what_came(server: Running, name: str) -> None:
    """INVALID_ARGUMENT, what was expected and what came."""
    request, message = BAD[name]
    code, details = refusal(server.address, request)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert message in details


def test_unknown_model(server: Running) -> None:
    """NOT_FOUND, not INTERNAL."""
    request = pb.InspectRequest(model="other", pixels=pixels(IMAGE).pixels)
    assert refusal(server.address, request) == (
        grpc.StatusCode.NOT_FOUND,
        "unknown model 'other'",
    )


def test_a_message_over_the_limit_is_refused_by_the_transport(guard: Guard) -> None:
    """The limit is ours, not gRPC's four megabytes: known from Describe and kept."""
    with running(guard, max_message_bytes=100_000) as small, Client(small.address) as client:
        assert client.describe().limits.max_message_bytes == 100_000
        code, details = refusal(small.address, bytes(100_001))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "larger than max" in details


def test_the_default_limit_admits_the_largest_batch(server: Running, guard: Guard) -> None:
    """As many tensors as one request may hold pass."""
    with Client(server.address) as client:
        limits = client.describe().limits
        largest = np.zeros((limits.max_rows, *guard.spec.tensor_shape), np.float32)
        assert len(client.inspect_tensor(largest)) == limits.max_rows


def test_a_second_server_on_the_port_is_an_error(server: Running, guard: Guard) -> None:
    """It must not share the port in silence."""
    port = int(server.address.rpartition(":")[2])
    with (
        pytest.raises(StartError, match=rf"can't listen on 127.0.0.1:{port}: the port is in use"),
        running(guard, port=port),
    ):
        pass


def test_a_metrics_port_in_use_is_an_error(server: Running, guard: Guard) -> None:
    """So is the other port, and nothing of the server stays behind."""
    assert server.metrics_address is not None
    port = int(server.metrics_address.rpartition(":")[2])
    before = threading.active_count()
    with (
        pytest.raises(StartError, match=r"the metrics port .* can't be used"),
        running(guard, metrics_port=port),
    ):
        pass
    assert threading.active_count() <= before


def test_no_model_is_an_error() -> None:
    """Settings without a model can't be served."""
    with (
        pytest.raises(StartError, match="expected at least one model to serve, got none"),
        running(Settings(port=0, metrics_port=None)),
    ):
        pass
    with pytest.raises(SettingsError):
        Settings(port=-1)


def test_describe_says_what_is_served(server: Running, guard: Guard) -> None:
    """Model, guard, input, thresholds, taps and limits are the real ones."""
    with Client(server.address) as client:
        described = client.describe()
    manifest = guard.artifact.manifest
    assert described.model == "tiny"
    assert described.models == ("tiny",)
    assert described.model_sha256 == manifest.model_sha256
    assert described.guard == guard.artifact.digest
    assert described.input == guard.spec
    assert described.outputs == ("logits", "label")
    assert described.thresholds == {
        float(fpr): pytest.approx(score) for fpr, score in manifest.thresholds.items()
    }
    assert described.taps == tuple(tap.name for tap in manifest.taps)
    assert described.limits.max_rows == 64
    assert described.policy == "annotate"


def test_a_stream_answers_in_order_and_survives_a_bad_batch(
    server: Running, guard: Guard, mixed: Images
) -> None:
    """The bad batch gets its error in its place."""
    wrong = np.zeros((1, 5, 5, 3), np.uint8)
    batches = [mixed[:3], wrong, mixed[3:4], mixed[4:9]]
    with Client(server.address) as client:
        first, error, third, fourth = client.stream(iter(batches))
    assert isinstance(error, CallError)
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    for answer, rows in ((first, mixed[:3]), (third, mixed[3:4]), (fourth, mixed[4:9])):
        assert not isinstance(answer, CallError)
        assert_allclose(answer.score, guard.inspect(rows).score, atol=1e-3)


def test_health_speaks_for_server_services_and_models(server: Running) -> None:
    """SERVING for each name we have, NOT_FOUND for others."""
    for name in ("", "reluguard.v1.Guard", "inference.GRPCInferenceService", "tiny"):
        assert is_healthy(server.address, service=name)
    assert not is_healthy(server.address, service="other")
    with grpc.insecure_channel(server.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Check(health_pb2.HealthCheckRequest(service="other"))
        error: Any = caught.value
        assert error.code() is grpc.StatusCode.NOT_FOUND
        unknown = stub.Watch(health_pb2.HealthCheckRequest(service="other"))
        assert next(unknown).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        unknown.cancel()
    assert not is_healthy("127.0.0.1:1", deadline_s=0.5)


def test_watches_of_a_connection_are_few(server: Running) -> None:
    """They need no token and last as long as the caller likes; another connection has its own."""

    def watching(channel: grpc.Channel) -> Any:
        return health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())

    def is_answered(watch: Any) -> bool:
        try:
            return bool(next(watch).status == health_pb2.HealthCheckResponse.SERVING)
        except grpc.RpcError:
            assert watch.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            return False

    own = [("grpc.use_local_subchannel_pool", 1)]
    with (
        grpc.insecure_channel(server.address, own) as crowded,
        grpc.insecure_channel(server.address, own) as other,
    ):
        watches = [watching(crowded) for _ in range(4)]
        assert all(map(is_answered, watches))
        assert not is_answered(watching(crowded))
        watches.append(watching(other))
        assert is_answered(watches[-1])
        watches[0].cancel()
        until(lambda: is_answered(watching(crowded)))
        for watch in watches:
            watch.cancel()


def test_reflection_only_when_asked_for(guard: Guard, server: Running) -> None:
    """The surface is shown behind the flag only, and then in full."""
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
        ProtoReflectionDescriptorDatabase,
    )

    with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError) as caught:
        ProtoReflectionDescriptorDatabase(channel).get_services()
    error: Any = caught.value
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    for _ in range(2):  # a second server in the process adds nothing twice
        with (
            running(guard, reflection=True) as open_server,
            grpc.insecure_channel(open_server.address) as channel,
        ):
            database = ProtoReflectionDescriptorDatabase(channel)
            assert {"reluguard.v1.Guard", "grpc.health.v1.Health"} <= set(database.get_services())
            file = database.FindFileContainingSymbol("inference.GRPCInferenceService")
            assert file.package == "inference"
            assert database.FindFileContainingSymbol("grpc.health.v1.Health")


def test_an_unforeseen_failure_tells_nothing(gate: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The caller gets 'internal error' and an id; the trace with that id is in the log."""

    def broken(_: object) -> None:
        raise RuntimeError("/secret/path")

    gate.run_checked = broken
    with (
        running(cast("Guard", gate)) as server,
        Client(server.address) as client,
        pytest.raises(CallError, match=r"^INTERNAL: internal error$") as caught,
    ):
        client.inspect(IMAGE)
    assert len(caught.value.request_id) == 32
    logged = [record for record in caplog.records if caught.value.request_id in record.message]
    assert logged
    assert "/secret/path" in caplog.text


def test_a_request_id_is_kept_if_it_is_fit_for_a_log(server: Running) -> None:
    """Ours is made up when theirs could forge a log line."""
    for sent, kept in (("abc-1.2", True), ("a b", False), ("x" * 65, False)):
        with grpc.insecure_channel(server.address) as channel:
            method = channel.unary_unary("/reluguard.v1.Guard/Inspect", None, None)
            _, call = method.with_call(
                pixels(IMAGE).SerializeToString(), metadata=(("x-request-id", sent),)
            )
        named = dict(call.trailing_metadata())["x-request-id"]
        assert (named == sent) is kept


def test_too_many_calls_are_refused_with_a_pushback(gate: Any) -> None:
    """Beyond the limit a call is refused at once, and told when to come back."""
    with running(cast("Guard", gate), max_in_flight=2) as server, ThreadPoolExecutor(2) as threads:
        held = [threads.submit(ask, server.address, pixels(IMAGE)) for _ in range(2)]
        assert gate.entered.acquire(timeout=10)
        while server.server.in_flight < 2:
            time.sleep(0.001)
        with pytest.raises(grpc.RpcError) as caught:
            ask(server.address, pixels(IMAGE))
        assert not any(call.done() for call in held)  # the refusal waited for nobody
        error: Any = caught.value
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert error.details() == "expected at most 2 calls at once"
        assert int(dict(error.trailing_metadata())["grpc-retry-pushback-ms"]) > 0
        gate.opened.set()
        assert all(len(call.result().prediction) == 1 for call in held)


def test_the_client_comes_back_after_a_refusal(gate: Any) -> None:
    """RESOURCE_EXHAUSTED is retried with backoff, and the caller notices nothing."""
    with (
        running(cast("Guard", gate), max_in_flight=1) as server,
        ThreadPoolExecutor(2) as threads,
        Client(server.address) as client,
    ):
        held = threads.submit(ask, server.address, pixels(IMAGE))
        assert gate.entered.acquire(timeout=10)
        second = threads.submit(client.inspect, IMAGE)
        metric = "reluguard_refused_calls_total"
        registry = server.server.metrics.registry
        while not registry.get_sample_value(metric, {"reason": "too_many_calls"}):
            time.sleep(0.001)
        gate.opened.set()
        assert len(second.result()) == len(held.result().prediction) == 1


def test_a_deadline_that_passes_in_the_queue_never_reaches_the_model(gate: Any) -> None:
    """The caller gets DEADLINE_EXCEEDED and the model runs once, for the other one."""
    with running(cast("Guard", gate)) as server, ThreadPoolExecutor(1) as threads:
        held = threads.submit(ask, server.address, pixels(IMAGE))
        assert gate.entered.acquire(timeout=10)
        with (
            Client(server.address, deadline_s=0.2) as client,
            pytest.raises(CallError) as caught,
        ):
            client.inspect(IMAGE)
        assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
        gate.opened.set()
        held.result()
        with Client(server.address) as client:
            client.inspect(IMAGE)
        assert gate.rows == [1, 1]


def test_stopping_finishes_what_is_in_flight(gate: Any) -> None:
    """NOT_SERVING at once, the running call is answered, later ones find nobody."""
    with running(cast("Guard", gate), drain_s=20) as server, ThreadPoolExecutor(2) as threads:
        channel = grpc.insecure_channel(server.address)
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        held = threads.submit(ask, server.address, pixels(IMAGE))
        assert gate.entered.acquire(timeout=10)
        stopping = threads.submit(on_loop, server.server.stop())
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        gate.opened.set()
        assert len(held.result().prediction) == 1
        assert list(watch) == []  # an open watch does not hold the server up
        stopping.result(5)
        with pytest.raises(grpc.RpcError) as caught:
            ask(server.address, pixels(IMAGE))
        error: Any = caught.value
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        channel.close()


def test_an_open_stream_ends_when_the_server_stops(guard: Guard, mixed: Images) -> None:
    """What was asked is answered, then the stream ends with UNAVAILABLE."""
    more = threading.Event()

    def batches() -> Any:
        yield mixed[:2]
        more.wait(30)

    with running(guard) as server, Client(server.address) as client:
        stream = client.stream(batches())
        first = next(stream)
        assert not isinstance(first, CallError)
        assert len(first) == 2
        with ThreadPoolExecutor(1) as threads:
            stopping = threads.submit(on_loop, server.server.stop())
            with pytest.raises(CallError, match="UNAVAILABLE: the server is shutting down"):
                next(stream)
            more.set()
            stopping.result()


@pytest.mark.parametrize("fail", ["open", "closed"])
def test_a_score_that_is_no_number_opens_or_closes(guard: Guard, gate: Any, fail: str) -> None:
    """The answer comes without a verdict, or as adversarial; it is counted as neither."""
    gate.run_checked = lambda tensor: replace(
        guard.run(tensor), score=np.full(len(tensor), np.nan, np.float32)
    )
    with running(cast("Guard", gate), fail=fail) as server:
        reply = ask(server.address, pixels(IMAGE))
        assert list(reply.unscored) == [True]
        assert list(reply.is_adversarial) == [fail == "closed"]
        assert len(reply.prediction) == 1
        labels = {"model": "model", "verdict": "unscored", "policy": "annotate"}
        registry = server.server.metrics.registry
        assert registry.get_sample_value("reluguard_verdicts_total", labels) == 1
        assert registry.get_sample_value("reluguard_score_count", {"model": "model"}) == 0


def test_reject_withholds_rows_and_keeps_the_others(guard: Guard, mixed: Images) -> None:
    """Within one batch, clean rows are answered in full."""
    own = guard.inspect(mixed[:16])
    with running(guard, policy="reject") as server, Client(server.address) as client:
        served = client.inspect(mixed[:16], outputs=True)
    kept = ~own.is_adversarial
    assert (served.prediction[own.is_adversarial] == -1).all()
    assert np.isnan(served.outputs["logits"][own.is_adversarial]).all()
    assert_array_equal(served.prediction[kept], own.prediction[kept])
    assert_array_equal(served.outputs["logits"][kept], own.outputs["logits"][kept])


def test_shadow_shows_no_verdict(guard: Guard, mixed: Images) -> None:
    """The model's answer comes as ever."""
    with running(guard, policy="shadow") as server, Client(server.address) as client:
        served = client.inspect(mixed[:16], outputs=True)
    own = guard.inspect(mixed[:16])
    assert not served.is_adversarial.any()
    assert np.isnan(served.score).all()
    assert np.isnan(served.likelihood).all()
    assert_array_equal(served.outputs["logits"], own.outputs["logits"])


class Gone:
    """A call whose caller hung up while it was answered: gRPC can't send it anything."""

    def invocation_metadata(self) -> tuple[()]:
        """Return none."""
        return ()

    def set_trailing_metadata(self, _: object) -> None:
        """Take them."""

    def peer(self) -> str:
        """Return where it came from."""
        return "ipv4:127.0.0.1:1"

    async def read(self) -> bytes:
        """Return its one message."""
        return b""

    def time_remaining(self) -> None:
        """Return that there is no deadline."""
        return

    async def abort(self, *_: object) -> None:
        """Fail as gRPC does."""
        raise cast("Any", grpc.aio.InternalError)("execute_batch failed")


def test_a_caller_who_left_is_no_error() -> None:
    """A stack trace for each would let callers fill the log."""

    async def answer() -> Any:
        metrics = Metrics(CollectorRegistry())
        quotas = Quotas(Quota(), metrics.call_refused)
        room = room_of(Settings(), 432)
        edge = Edge(metrics=metrics, tokens=None, quotas=quotas, room=room, receive_s=1.0)
        method = edge.unary(("s", "m"), pb.InspectRequest, no_answer)
        return await cast("Any", method).stream_unary(None, Gone())

    async def no_answer(*_: object) -> bytes:
        raise ExpiredError("too late")

    assert asyncio.run(answer()) == b""
