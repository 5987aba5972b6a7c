"""A challenger in shadow: counted to the image, shown to no caller, swapped without a loss."""

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from reluguard.detector.artifact import read_guard
from reluguard.detector.errors import GuardError, SettingsError
from reluguard.detector.head import NO_SCORE
from reluguard.detector.images import Images
from reluguard.detector.runtime import Guard
from reluguard.detector.shelf.shelf import ShelfError, clear, promote, rollback, shadow
from reluguard.detector.verdict import Challenge, Verdicts
from reluguard.service.background import Running, on_loop, running
from reluguard.service.client.client import Client
from reluguard.service.errors import StartError
from reluguard.service.monitoring.shadow import Agreement, Shadow, compare
from reluguard.service.protocols.pb import open_inference as oip
from reluguard.service.settings import Settings

MODEL = {"model": "m"}


@pytest.fixture(scope="module")
def rival(pair: Any, make_guard: Callable[..., Path]) -> Path:
    """A guard with a random head: it often disagrees."""
    place = pair.model.with_name("rival")
    return make_guard(pair.model, place, image_shape=(12, 12, 3), fpr=0.2, seed=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sorted:
    """Images by who calls them adversarial, asked of each guard alone."""

    both: Images
    neither: Images
    champion_only: Images
    challenger_only: Images


@pytest.fixture(scope="module")
def by_verdict(pair: Any, rival: Path, mixed: Images) -> Sorted:
    ours = Guard.open(pair.model, pair.guard, threads=1).inspect(mixed).is_adversarial
    theirs = Guard.open(pair.model, rival, threads=1).inspect(mixed).is_adversarial
    return Sorted(
        both=mixed[ours & theirs],
        neither=mixed[~ours & ~theirs],
        champion_only=mixed[ours & ~theirs],
        challenger_only=mixed[~ours & theirs],
    )


def settings(model: Path, guard: Path, **changes: Any) -> Settings:
    fixed = {"port": 0, "metrics_port": None, "threads": 1, "reload_s": 0.0, "name": "m"}
    return Settings(model=model, guard=guard, **(fixed | changes))


def value(server: Running, name: str, **labels: str) -> float | None:
    return server.server.metrics.registry.get_sample_value(f"reluguard_{name}", MODEL | labels)


def counted(server: Running) -> tuple[float | None, ...]:
    """Disagreements by direction, then the challenger's verdicts."""
    return (
        value(server, "challenger_disagreements_total", direction="champion_only"),
        value(server, "challenger_disagreements_total", direction="challenger_only"),
        value(server, "challenger_verdicts_total", verdict="adversarial"),
        value(server, "challenger_verdicts_total", verdict="clean"),
    )


def test_disagreements_are_those_counted_by_hand(
    pair: Any, rival: Path, by_verdict: Sorted
) -> None:
    """Three that only the champion flags, two that only the challenger does, one both, four none.

    Sent as six requests at once, so that some go merged.
    """
    batches = [
        by_verdict.champion_only[:2], by_verdict.champion_only[2:3],
        by_verdict.challenger_only[:1], by_verdict.challenger_only[1:2],
        by_verdict.both[:1], by_verdict.neither[:4],
    ]  # fmt: skip
    assert [len(batch) for batch in batches] == [2, 1, 1, 1, 1, 4]
    with running(settings(pair.model, pair.guard, challenger=rival)) as server:
        assert counted(server) == (0, 0, 0, 0)
        with Client(server.address) as client, ThreadPoolExecutor(6) as pool:
            list(pool.map(client.inspect, batches))
        assert counted(server) == (3, 2, 3, 7)
        assert value(server, "challenger_score_count") == 10
        assert value(server, "challenger_info", challenger=read_guard(rival).digest) == 1
        assert value(server, "verdicts_total", verdict="adversarial", policy="annotate") == 4
        tally = server.server.catalogue.repository.get("m").version.shadow
        assert tally is not None
        assert tally.agreement == Agreement(both=1, neither=4, challenger_only=2, champion_only=3)
        assert sum(tally.buckets) == 10


def test_no_caller_sees_a_challenger(pair: Any, rival: Path, mixed: Images) -> None:
    """Not the privileged one, not in any output, metadata, name or error."""
    digest = read_guard(rival).digest
    images = mixed[:12]
    tensor = pair.open().spec.to_tensor(images)

    def everything(address: str) -> tuple[list[bytes], list[str]]:
        """Return every answer with its timing taken out, and every refusal."""
        answers, refusals = [], []
        with grpc.insecure_channel(address) as channel, Client(address) as client:
            verdicts = client.inspect(images, outputs=True)
            for array in (verdicts.score, verdicts.likelihood, verdicts.p_value, verdicts.evidence):
                answers.append(array.tobytes())  # noqa: PERF401 - it goes on below
            answers += [repr(client.describe()).encode(), *map(str.encode, verdicts.outputs)]

            def ask(method: str, request: Any) -> bytes:
                return bytes(
                    channel.unary_unary(f"/inference.GRPCInferenceService/{method}")(
                        request.SerializeToString(), timeout=10
                    )
                )

            answers.append(ask("ModelMetadata", oip.ModelMetadataRequest(name="m")))
            given = oip.ModelInferRequest.InferInputTensor(
                name="image", datatype="FP32", shape=list(tensor.shape)
            )
            fields: dict[str, Any] = {
                "model_name": "m", "inputs": [given], "raw_input_contents": [tensor.tobytes()]
            }  # fmt: skip
            answers.append(ask("ModelInfer", oip.ModelInferRequest(**fields)))
            for name in ("reluguard_challenger_score", "reluguard_challenger_is_adversarial"):
                wanted = oip.ModelInferRequest.InferRequestedOutputTensor(name=name)
                with pytest.raises(grpc.RpcError) as caught:
                    ask("ModelInfer", oip.ModelInferRequest(**fields, outputs=[wanted]))
                error: Any = caught.value
                refusals.append(f"{error.code().name} {error.details()}")
        return answers, refusals

    with running(settings(pair.model, pair.guard, challenger=rival)) as server:
        answers, refusals = everything(server.address)
    with running(settings(pair.model, pair.guard)) as server:
        assert everything(server.address) == (answers, refusals)
    assert all(refusal.startswith("INVALID_ARGUMENT") for refusal in refusals)
    for answer in answers:
        assert b"challenger" not in answer
        assert digest.encode() not in answer


@pytest.mark.parametrize("harm", ["damaged", "foreign", "missing", "pointer"])
def test_a_refused_challenger_leaves_the_champion_alone(
    pair: Any, rival: Path, tmp_path: Path, pairs: Callable[..., Any], mixed: Images, harm: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """It serves without one, at the start and after a reload, and says so."""
    shelf = tmp_path / "shelf"
    promote(shelf, pair.guard, who="ann", why="first")
    shadow(shelf, rival, who="ann", why="see")
    bad = shelf / read_guard(rival).digest[:16]
    with running(settings(pair.model, shelf)) as server:
        assert value(server, "challenger_refused") == 0
        before = Client(server.address).inspect(mixed[:4]).score
        assert value(server, "challenger_info", challenger=read_guard(rival).digest) == 1
        if harm == "damaged":
            (bad / "head.npz").write_bytes((bad / "head.npz").read_bytes()[:-1])
        elif harm == "foreign":
            shutil.rmtree(bad)
            shutil.copytree(pairs(tmp_path / "foreign", seed=9).guard, bad)
        elif harm == "missing":
            shutil.rmtree(bad)
        else:
            (shelf / "CHALLENGER").write_text("../rival\n")
        on_loop(server.server.reload())
        assert value(server, "reload_total", outcome="challenger_refused") == 1
        assert value(server, "reload_total", outcome="refused") == 0
        assert value(server, "challenger_info", challenger=read_guard(rival).digest) is None
        assert value(server, "challenger_refused") == 1
        np.testing.assert_array_equal(Client(server.address).inspect(mixed[:4]).score, before)
        assert "the challenger was refused, the guard serves without" in caplog.text
    with running(settings(pair.model, shelf)) as server:
        assert value(server, "reload_total", outcome="challenger_refused") == 1
        np.testing.assert_array_equal(Client(server.address).inspect(mixed[:4]).score, before)


def test_a_champion_that_is_refused_keeps_both_as_they_were(
    pair: Any, rival: Path, tmp_path: Path, mixed: Images
) -> None:
    """The last good version stays with the challenger it had."""
    guard = tmp_path / "guard"
    shutil.copytree(pair.guard, guard)
    with running(settings(pair.model, guard, challenger=rival)) as server:
        (guard / "manifest.json").write_text("{}")
        on_loop(server.server.reload())
        assert value(server, "reload_total", outcome="refused") == 1
        with Client(server.address) as client:
            assert len(client.inspect(mixed[:3])) == 3
        assert sum(filter(None, counted(server)[2:])) == 3


def test_shadow_promote_and_rollback_under_load_lose_nothing(
    pair: Any, rival: Path, tmp_path: Path, mixed: Images
) -> None:
    """The challenger comes, becomes champion, leaves and comes back; each answer is one guard's."""
    shelf = tmp_path / "shelf"
    first = promote(shelf, pair.guard, who="ann", why="first").guard
    expected = [
        Guard.open(pair.model, place, threads=1).inspect(mixed[:4]).score
        for place in (pair.guard, rival)
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

    with running(settings(pair.model, shelf)) as server, ThreadPoolExecutor(3) as pool:
        askers = [pool.submit(ask) for _ in range(3)]
        digest = read_guard(rival).digest
        for _ in range(2):
            shadow(shelf, rival, who="ann", why="see")
            on_loop(server.server.reload())
            assert value(server, "challenger_info", challenger=digest) == 1
            forced = promote(shelf, rival, who="ann", why="good", force=True).guard
            on_loop(server.server.reload())
            assert Client(server.address).describe().guard == forced
            assert value(server, "challenger_info", challenger=digest) is None
            rollback(shelf, who="ann", why="bad")
            on_loop(server.server.reload())
            assert Client(server.address).describe().guard == first
        shadow(shelf, rival, who="ann", why="see")
        clear(shelf, who="ann", why="seen")
        on_loop(server.server.reload())
        done.set()
        assert all(asker.result() > 0 for asker in askers)
    assert value(server, "reload_total", outcome="refused") == 0
    assert value(server, "reload_total", outcome="challenger_refused") == 0


def test_a_model_folder_may_hold_challengers(
    tmp_path: Path, pair: Any, rival: Path, pairs: Callable[..., Any], mixed: Images
) -> None:
    """NAME/challenger is NAME's; a model without one has none."""
    shutil.copytree(pair.guard, tmp_path / "cats" / "guard")
    shutil.copytree(rival, tmp_path / "cats" / "challenger")
    shutil.copy(pair.model, tmp_path / "cats" / "model.onnx")
    pairs(tmp_path / "dogs", seed=4)
    options: dict[str, Any] = {"models": tmp_path, "port": 0, "metrics_port": None, "threads": 1}
    with running(Settings(**options)) as server:
        for name in ("cats", "dogs"):
            with Client(server.address, model=name) as client:
                client.inspect(mixed[:5])
        registry = server.server.metrics.registry
        name = "reluguard_challenger_score_count"
        assert registry.get_sample_value(name, {"model": "cats"}) == 5
        assert registry.get_sample_value(name, {"model": "dogs"}) == 0


def test_compare_counts_unscored_rows_as_nothing_else() -> None:
    """A row that either guard could not score is no disagreement."""
    score = np.array([1, 1, -1, -1, NO_SCORE, 1], np.float32)
    other = np.array([1, -1, 1, -1, 1, NO_SCORE], np.float32)
    empty = np.zeros((6, 0), np.float32)
    verdicts = Verdicts(
        prediction=np.zeros(6, np.int64), score=score, likelihood=score,
        p_value=score.astype(np.float64), is_adversarial=score > 0, evidence=empty, outputs={},
        challenge=Challenge(score=other, is_adversarial=other > 0),
    )  # fmt: skip
    found = compare(verdicts)
    assert found == Agreement(both=1, neither=1, challenger_only=1, champion_only=1, unscored=2)
    assert (found.images, found.scored, found.disagreements) == (6, 4, 2)
    tally = Shadow(digest="d", bounds=(0.0,))
    tally.add(verdicts)
    tally.add(verdicts)
    assert tally.agreement == found + found
    assert tally.buckets == [4, 6]  # -1, -1 below; 1, 1, 1 above; the unscored one nowhere


def test_settings_with_a_challenger() -> None:
    """It needs a guard beside it, and no model folder."""
    with pytest.raises(SettingsError, match="expected challenger beside a guard"):
        Settings(challenger=Path("c"))
    with pytest.raises(SettingsError, match="either models, or model and guard"):
        Settings(models=Path("m"), challenger=Path("c"))


@pytest.fixture
def pem(tmp_path: Path) -> Callable[[str], tuple[Path, Path]]:
    """Makes a pair of key files: private, public."""

    def make(name: str) -> tuple[Path, Path]:
        key = Ed25519PrivateKey.generate()
        private, public = tmp_path / f"{name}.pem", tmp_path / f"{name}.pub"
        private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        public.write_bytes(
            key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        )
        return private, public

    return make


@pytest.fixture
def signed(
    tmp_path: Path, pair: Any, pem: Callable[[str], tuple[Path, Path]]
) -> Iterator[tuple[Running, Path, Path]]:
    """A server that takes signed guards only, its shelf and the private key."""
    private, public = pem("ours")
    shelf = tmp_path / "shelf"
    promote(shelf, pair.guard, who="ann", why="first", key=private)
    with running(settings(pair.model, shelf, public_key=public)) as server:
        yield server, shelf, private


def test_an_unsigned_guard_does_not_start(
    tmp_path: Path, pair: Any, pem: Callable[[str], tuple[Path, Path]]
) -> None:
    """Nor one that somebody else signed, nor with a key that is none."""
    _, public = pem("ours")
    shelf = tmp_path / "shelf"
    promote(shelf, pair.guard, who="eve", why="hello", key=pem("theirs")[0])
    nothing = tmp_path / "nothing"
    for guard, key, cause, message in (
        (pair.guard, public, GuardError, "expected a signed guard, .* has no manifest.sig"),
        (shelf, public, GuardError, "the signature of .* is not that of .*ours.pub"),
        (shelf, nothing, SettingsError, "expected an Ed25519 public key in .*nothing"),
    ):
        with (
            pytest.raises(StartError, match=message) as caught,
            running(settings(pair.model, guard, public_key=key)),
        ):
            pass
        assert isinstance(caught.value.__cause__, cause)


@pytest.mark.parametrize("signer", ["nobody", "somebody else"])
def test_a_guard_of_another_hand_is_refused_at_reload(
    signed: tuple[Running, Path, Path], rival: Path, pem: Callable[[str], tuple[Path, Path]],
    signer: str, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """The last good one answers on, until the owner signs."""
    server, shelf, private = signed
    before = Client(server.address).describe().guard
    key = None if signer == "nobody" else pem("theirs")[0]
    promote(shelf, rival, who="eve", why="hello", key=key, force=True)
    on_loop(server.server.reload())
    assert Client(server.address).describe().guard == before
    assert value(server, "reload_total", outcome="refused") == 1
    words = "expected a signed guard" if key is None else "is not that of"
    assert words in caplog.text
    assert "the last good version stays" in caplog.text
    shadow(shelf, rival, who="ann", why="signed now", key=private)
    rollback(shelf, who="ann", why="that was not ours")
    on_loop(server.server.reload())
    assert value(server, "challenger_info", challenger=read_guard(rival).digest) == 1


def test_an_unsigned_challenger_is_refused_alone(
    signed: tuple[Running, Path, Path], rival: Path
) -> None:
    """The champion serves on without it."""
    server, shelf, _ = signed
    shadow(shelf, rival, who="eve", why="hello")
    on_loop(server.server.reload())
    assert value(server, "reload_total", outcome="challenger_refused") == 1
    assert value(server, "challenger_score_count") == 0


def test_a_new_public_key_is_taken_up(
    signed: tuple[Running, Path, Path], pem: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    """Replacing the key file is a change: what it does not vouch for is refused."""
    server, shelf, _ = signed
    before = Client(server.address).describe().guard
    private, public = pem("next")
    public.replace(tmp_path / "ours.pub")
    on_loop(server.server.reload())
    assert value(server, "reload_total", outcome="refused") == 1
    assert Client(server.address).describe().guard == before
    again = shelf / (shelf / "CURRENT").read_text().strip()
    promote(shelf, again, who="ann", why="the new key", key=private)
    on_loop(server.server.reload())
    assert value(server, "reload_total", outcome="swapped") == 2


def test_two_promotions_at_once_reach_the_server_whole(
    pair: Any, rival: Path, tmp_path: Path, make_guard: Callable[..., Path]
) -> None:
    """One wins or both in turn; what is live is what CURRENT names, and history has each."""
    shelf = tmp_path / "shelf"
    promote(shelf, pair.guard, who="ann", why="first")
    third = make_guard(pair.model, tmp_path / "third", image_shape=(12, 12, 3), fpr=0.2, seed=6)
    with running(settings(pair.model, shelf)) as server, ThreadPoolExecutor(2) as pool:
        for _ in range(3):
            moves = [
                pool.submit(promote, shelf, guard, who="ann", why="race", force=True)
                for guard in (rival, third)
            ]
            on_loop(server.server.reload())
            changes = [move.result() for move in moves]
            assert abs(changes[0].number - changes[1].number) == 1
            on_loop(server.server.reload())
            live = Client(server.address).describe().guard
            assert live == max(changes, key=lambda change: change.number).guard
        lines = (shelf / "history.jsonl").read_text().splitlines()
        assert [json.loads(line)["number"] for line in lines] == list(range(1, 8))
        with pytest.raises(ShelfError, match="never judged"):
            promote(shelf, pair.guard, who="ann", why="back")
    assert value(server, "reload_total", outcome="refused") == 0
