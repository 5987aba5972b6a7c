"""A guarded session in the place of ONNX Runtime's own: what callers knew stays as it was."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

import reluguard
from reluguard.detector.dropin import GuardedSession
from reluguard.detector.images import Images
from reluguard.detector.runtime import Guard
from reluguard.detector.verdict import Verdicts

Feed = dict[str, NDArray[Any]]


@pytest.fixture(scope="module")
def plain(tiny_model: Path) -> ort.InferenceSession:
    """The production model as its owner runs it."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(tiny_model, options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def session(tiny_model: Path, tiny_guard: Path) -> GuardedSession:
    return GuardedSession(tiny_model, tiny_guard, threads=1)


@pytest.fixture(scope="module")
def feed(session: GuardedSession, make_images: Callable[..., Images]) -> Feed:
    return {"image": session.guard.spec.to_tensor(make_images(17, seed=4))}


def edge(node: Any) -> tuple[str, str, list[Any]]:
    return node.name, node.type, node.shape


def test_the_edge_is_the_production_model_s(
    plain: ort.InferenceSession, session: GuardedSession
) -> None:
    """Inputs, outputs, providers and metadata: no sign of a guard."""
    for method in ("get_inputs", "get_outputs", "get_overridable_initializers"):
        ours, theirs = getattr(session, method)(), getattr(plain, method)()
        assert list(map(edge, ours)) == list(map(edge, theirs))
    assert session.get_providers() == plain.get_providers()
    assert session.get_provider_options() == plain.get_provider_options()
    assert session.get_modelmeta().graph_name == plain.get_modelmeta().graph_name
    assert session.get_session_options().intra_op_num_threads == 1
    assert reluguard.GuardedSession is GuardedSession


@pytest.mark.parametrize("names", [None, [], ["logits"]])
def test_outputs_are_the_production_model_s_bit_for_bit(
    plain: ort.InferenceSession, session: GuardedSession, feed: Feed, names: list[str] | None
) -> None:
    """All of them for None or nothing, and the named ones."""
    ours, theirs = session.run(names, feed), plain.run(names, feed)
    assert len(ours) == len(theirs) == 1
    np.testing.assert_array_equal(ours[0], theirs[0], strict=True)


def test_verdicts_beside_are_the_guard_s(
    session: GuardedSession, tiny_model: Path, tiny_guard: Path, feed: Feed
) -> None:
    """By return, by property, by function and as outputs: what the guard says in process."""
    expected = Guard.open(tiny_model, tiny_guard, threads=1).inspect_tensor(feed["image"])
    told: list[Verdicts] = []
    telling = GuardedSession(tiny_model, tiny_guard, threads=1, on_verdicts=told.append)
    before = telling.verdicts
    assert before is None
    outputs, verdicts = telling.run_with_verdicts(["logits"], feed)
    assert telling.verdicts is verdicts
    assert told == [verdicts]
    for name in ("prediction", "score", "likelihood", "p_value", "is_adversarial", "evidence"):
        np.testing.assert_array_equal(getattr(verdicts, name), getattr(expected, name))
    np.testing.assert_array_equal(outputs[0], expected.outputs["logits"])
    score, logits = session.run(["reluguard_score", "logits"], feed)
    np.testing.assert_array_equal(score, expected.score)
    np.testing.assert_array_equal(logits, expected.outputs["logits"])


def test_each_thread_sees_the_verdicts_of_its_own_run(session: GuardedSession, feed: Feed) -> None:
    """Though they run at the same time."""
    alone = session.run_with_verdicts(None, feed)[1].score

    def ask(row: int) -> bool:
        for _ in range(20):
            session.run(None, {"image": feed["image"][row : row + 1]})
            assert session.verdicts is not None
            if not np.allclose(session.verdicts.score, alone[row], atol=1e-4):
                return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(ask, range(8)))


@pytest.mark.parametrize(
    "wrong",
    ["unknown output", "missing input", "unknown input", "rank", "dtype"],
)
def test_errors_are_onnx_runtime_s_own(
    plain: ort.InferenceSession, session: GuardedSession, feed: Feed, wrong: str
) -> None:
    """The same class and, where it names no output, the same words."""
    x = feed["image"]
    names, bad = {
        "unknown output": (["nothing"], feed),
        "missing input": (None, {}),
        "unknown input": (None, {**feed, "more": x}),
        "rank": (None, {"image": x[0]}),
        "dtype": (None, {"image": x.astype(np.float64)}),
    }[wrong]
    caught = []
    for one in (plain, session):
        with pytest.raises(Exception) as info:  # noqa: PT011 - which class is what we compare
            one.run(names, bad)
        caught.append(info.value)
    assert type(caught[0]) is type(caught[1])
    assert str(caught[0]).splitlines()[0] == str(caught[1]).splitlines()[0]


def test_a_challenger_counts_here_too(
    tiny_model: Path, tiny_guard: Path, make_guard: Callable[..., Path], tmp_path: Path, feed: Feed
) -> None:
    """Its verdicts stand beside, its score is no output of ours."""
    rival = make_guard(tiny_model, tmp_path / "rival", seed=3)
    session = GuardedSession(tiny_model, tiny_guard, threads=1, challenger=rival)
    assert [node.name for node in session.get_outputs()] == ["logits"]
    challenge = session.run_with_verdicts(None, feed)[1].challenge
    assert challenge is not None
    alone = Guard.open(tiny_model, rival, threads=1).inspect_tensor(feed["image"])
    np.testing.assert_array_equal(challenge.score, alone.score)
