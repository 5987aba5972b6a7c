"""A guard that looks twice: its first look is untouched, the second decides where it is taken."""

import hashlib
import io
import json
import re
import shutil
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from reluguard.detector.artifact import read_guard, write_guard
from reluguard.detector.bench import bench_guard
from reluguard.detector.dropin import GuardedSession
from reluguard.detector.errors import GuardError, ModelMismatchError, SettingsError
from reluguard.detector.head import conformal_p_values
from reluguard.detector.looks.joint import CHANGES, Joint
from reluguard.detector.looks.views import VIEWS
from reluguard.detector.model import load_production
from reluguard.detector.runtime import Guard, Reader
from reluguard.detector.verdict import Readings
from tests.conftest import images, network
from tests.looking import looking_twice


@pytest.fixture(scope="module")
def folder(tiny_model: Path, tiny_guard: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A guard of the tiny network that looks again at the mirror image."""
    return looking_twice(tiny_model, tiny_guard, tmp_path_factory.mktemp("looks") / "guard")


@pytest.fixture(scope="module")
def sibling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another network of the same classes."""
    place = tmp_path_factory.mktemp("sibling") / "sibling.onnx"
    onnx.save(network(seed=5), place)
    return place


@pytest.fixture(scope="module")
def shared_folder(
    tiny_model: Path, tiny_guard: Path, sibling: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A guard whose second look is the other network's."""
    place = tmp_path_factory.mktemp("shared") / "guard"
    return looking_twice(tiny_model, tiny_guard, place, other=sibling)


PICTURES = images(60, seed=77)


def test_the_first_look_is_what_it_was(tiny_model: Path, tiny_guard: Path, folder: Path) -> None:
    """Bit for bit, of a guard that looks twice: its answers, scores and p-values."""
    plain = Guard.open(tiny_model, tiny_guard).inspect(PICTURES)
    both = Guard.open(tiny_model, folder).inspect(PICTURES)
    assert both.first is not None
    for name in ("score", "likelihood", "p_value", "is_adversarial"):
        np.testing.assert_array_equal(getattr(both.first, name), getattr(plain, name))
    for name in ("prediction", "evidence"):
        np.testing.assert_array_equal(getattr(both, name), getattr(plain, name))
    np.testing.assert_array_equal(both.outputs["logits"], plain.outputs["logits"])
    once = Guard.open(tiny_model, folder, looks="first").inspect(PICTURES)
    np.testing.assert_array_equal(once.score, plain.score)
    assert (once.look == 1).all()
    assert once.first is None


def test_only_suspicious_rows_are_looked_at_again(tiny_model: Path, folder: Path) -> None:
    """The others keep score and likelihood of the first look; all are judged in one order."""
    guard = Guard.open(tiny_model, folder)
    assert guard.looks == "suspicious"
    found = guard.inspect(PICTURES)
    again, second = guard.again, guard.artifact.second
    assert again is not None
    assert second is not None
    assert found.first is not None
    looked = found.look == 2
    np.testing.assert_array_equal(looked, found.first.score > np.float32(second.bound))
    assert 0 < looked.sum() < len(looked)
    np.testing.assert_array_equal(found.score[~looked], found.first.score[~looked])
    assert not np.isclose(found.score[looked], found.first.score[looked]).any()
    wanted = again.order.p_values(found.first.score, found.score, looked)
    np.testing.assert_array_equal(found.p_value, wanted)
    np.testing.assert_array_equal(found.is_adversarial, found.p_value <= guard.fpr + 1e-12)
    likely = 1 / (1 + np.exp(-(0.7 * found.score[looked] + 0.1)))
    np.testing.assert_allclose(found.likelihood[looked], likely, rtol=1e-5)
    assert found[int(np.flatnonzero(looked)[0])].look == 2
    assert found.readings is None  # nobody asked for them


def test_always_looks_at_every_row(tiny_model: Path, folder: Path) -> None:
    """With a calibration of its own: the second scores of all calibration images."""
    guard = Guard.open(tiny_model, folder, looks="always")
    found = guard.inspect(PICTURES)
    second = guard.artifact.second
    assert second is not None
    assert (found.look == 2).all()
    np.testing.assert_allclose(
        found.p_value, conformal_p_values(found.score, second.head.clean_scores)
    )
    some = Guard.open(tiny_model, folder).inspect(PICTURES)
    looked = some.look == 2
    np.testing.assert_allclose(some.score[looked], found.score[looked], atol=1e-5)


@pytest.mark.parametrize("view", VIEWS)
def test_the_graph_scores_as_the_reference(
    view: str, tiny_model: Path, tiny_guard: Path, tmp_path: Path
) -> None:
    """The second session gives what the head makes of the joint reading."""
    place = looking_twice(tiny_model, tiny_guard, tmp_path / "guard", view=view)
    check_scores(Guard.open(tiny_model, place), tiny_model)


def test_another_network_looks(
    tiny_model: Path, shared_folder: Path, sibling: Path, tmp_path: Path
) -> None:
    """Its taps are its own; its file is given, or lies beside the model or the guard."""
    guard = Guard.open(tiny_model, shared_folder, second_model=sibling)
    check_scores(guard, tiny_model)
    shutil.copy(sibling, shared_folder.with_name(sibling.name))
    beside = Guard.open(tiny_model, shared_folder)
    np.testing.assert_array_equal(beside.inspect(PICTURES).score, guard.inspect(PICTURES).score)
    shared_folder.with_name(sibling.name).unlink()
    assert Guard.open(tiny_model, shared_folder, looks="first").again is None
    with pytest.raises(SettingsError, match=r"expected the second network sibling\.onnx"):
        Guard.open(tiny_model, shared_folder)
    onnx.save(network(seed=6), tmp_path / "third.onnx")
    with pytest.raises(ModelMismatchError, match="the second look was fitted with a network of"):
        Guard.open(tiny_model, shared_folder, second_model=tmp_path / "third.onnx")


def check_scores(guard: Guard, model: Path) -> None:
    """Hold the second session to Joint.read and Head.score."""
    again, second, taps = guard.again, guard.artifact.second, guard.artifact.manifest.taps
    assert again is not None
    assert second is not None
    rates, logits = Reader(load_production(model), guard.spec, taps).read(PICTURES)
    spec = replace(guard.spec, name=again.network.input.name)
    theirs = Reader(again.network, spec, second.taps).read(PICTURES)
    wanted = second.head.score(second.joint(taps).read(rates, logits, *theirs), logits).score
    tensor = guard.spec.to_tensor(PICTURES)
    found = again.scores(tensor, Readings(rates=rates, logits=logits))
    np.testing.assert_allclose(found, wanted, atol=2e-4)
    assert wanted.std() > 0.1


def test_a_joint_reading_says_what_changed() -> None:
    """Of two equal looks nothing did; the numbers of CHANGES are what their names say."""
    rng = np.random.default_rng(0)
    logits, others = rng.normal(0, 3, (2, 20, 5)).astype(np.float32)
    empty = np.zeros((20, 0), np.float32)
    joint = Joint((), ())
    still = dict(zip(CHANGES, joint.read(empty, logits, empty, logits).T, strict=True))
    for name in ("fall", "climb", "distance", "forward", "backward", "differs"):
        np.testing.assert_allclose(still[name], 0, atol=1e-5)
    moved = dict(zip(CHANGES, joint.read(empty, logits, empty, others).T, strict=True))
    p, q = (x - np.log(np.exp(x).sum(axis=1, keepdims=True)) for x in (logits, others))
    np.testing.assert_allclose(moved["distance"], np.abs(np.exp(p) - np.exp(q)).sum(1), rtol=1e-4)
    np.testing.assert_allclose(moved["forward"], (np.exp(p) * (p - q)).sum(1), rtol=1e-3)
    np.testing.assert_allclose(moved["given"], q[np.arange(20), p.argmax(1)], rtol=1e-4)
    np.testing.assert_array_equal(moved["differs"], p.argmax(1) != q.argmax(1))
    assert (moved["forward"] >= 0).all()


def test_a_session_in_place_of_another_looks_twice_too(tiny_model: Path, folder: Path) -> None:
    """GuardedSession gives the verdicts that the guard gives."""
    session = GuardedSession(tiny_model, folder, looks="always")
    tensor = session.guard.spec.to_tensor(PICTURES)
    _, verdicts = session.run_with_verdicts(None, {session.get_inputs()[0].name: tensor})
    wanted = session.guard.inspect(PICTURES)
    np.testing.assert_array_equal(verdicts.score, wanted.score)
    np.testing.assert_array_equal(verdicts.p_value, wanted.p_value)


def test_it_is_read_as_it_was_written(folder: Path, tmp_path: Path) -> None:
    """All of the second look comes back bit for bit."""
    read = read_guard(folder)
    copy = write_guard(
        tmp_path / "copy",
        manifest=read.manifest,
        head=read.head,
        golden=read.golden,
        second=read.second,
    )
    assert copy.digest == read.digest
    assert read.second is not None
    assert copy.second is not None
    assert copy.second.look == read.second.look
    for name, value in read.second.to_arrays().items():
        np.testing.assert_array_equal(copy.second.to_arrays()[name], value)


def vouched(folder: Path, changes: dict[str, Any], manifest: dict[str, Any] | None = None) -> None:
    """Forge second.npz and let the manifest vouch for it; None takes an array out."""
    file = folder / "second.npz"
    with np.load(file) as archive:
        arrays = {name: archive[name] for name in archive.files} | changes
    arrays = {name: value for name, value in arrays.items() if value is not None}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    file.write_bytes(buffer.getvalue())
    document = json.loads((folder / "manifest.json").read_text())
    document["files"]["second.npz"] = {
        "bytes": len(buffer.getvalue()),
        "sha256": hashlib.sha256(buffer.getvalue()).hexdigest(),
        "arrays": {
            name: {"dtype": value.dtype.name, "shape": list(value.shape)}
            for name, value in arrays.items()
        },
    }
    document["second"] |= manifest or {}
    (folder / "manifest.json").write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("changes", "manifest", "message"),
    [
        ({"bound": np.array(np.nan)}, {}, "expected a finite bound"),
        ({"bound": None}, {}, "the arrays of the second look are incomplete"),
        ({"first_scores": np.zeros(3, np.float32)}, {}, "expected first_scores of the second"),
        ({"golden_score": np.zeros(5)}, {}, "expected golden_score of the second look as 5"),
        ({"extra": np.zeros(5)}, {}, "arrays nobody asked for: extra"),
        ({"columns": np.arange(9) * 0}, {}, "."),
        ({}, {"view": "upside-down"}, "expected a second look at mirror, shift"),
        ({}, {"view": "same"}, "expected a second look at mirror, shift"),
        ({}, {"taps": [{"name": "r1"}]}, "."),
        ({}, {"view": 3}, "expected another kind of value in Look.view"),
    ],
)
def test_a_forged_second_look_is_refused(
    folder: Path, tmp_path: Path, changes: dict[str, Any], manifest: dict[str, Any], message: str
) -> None:
    """Whatever is forged, even vouched for by the manifest, is a clear refusal."""
    mine = Path(shutil.copytree(folder, tmp_path / "guard"))
    vouched(mine, changes, manifest)
    with pytest.raises(GuardError, match=message):
        read_guard(mine)


def test_every_flipped_byte_of_it_is_noticed(folder: Path, tmp_path: Path) -> None:
    """One bit anywhere makes the guard unreadable; so does its file or its word gone."""
    mine = Path(shutil.copytree(folder, tmp_path / "guard"))
    file = mine / "second.npz"
    good = file.read_bytes()
    for position in range(0, len(good), len(good) // 20):
        bad = bytearray(good)
        bad[position] ^= 1
        file.write_bytes(bad)
        with pytest.raises(GuardError):
            read_guard(mine)
    file.unlink()
    with pytest.raises(GuardError, match=r"it has no file second\.npz"):
        read_guard(mine)
    file.write_bytes(good)
    document = json.loads((mine / "manifest.json").read_text())
    (mine / "manifest.json").write_text(json.dumps(document | {"second": None}))
    with pytest.raises(GuardError, match=re.escape("expected second.npz and `second` in")):
        read_guard(mine)


def test_the_golden_replay_covers_the_second_look(
    folder: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """A second head that says something else than at fitting does not go live."""
    mine = Path(shutil.copytree(folder, tmp_path / "guard"))
    second = read_guard(mine).second
    assert second is not None
    vouched(mine, {"golden_score": second.golden_score + np.float32(0.3)})
    with pytest.raises(GuardError, match="golden replay of the second look failed"):
        Guard.open(tiny_model, mine)
    Guard.open(tiny_model, mine, looks="first")


def test_a_guard_of_one_look_is_not_asked_for_two(tiny_model: Path, tiny_guard: Path) -> None:
    """The message says what to do."""
    with pytest.raises(SettingsError, match="expected a guard with a second look for looks always"):
        Guard.open(tiny_model, tiny_guard, looks="always")
    assert Guard.open(tiny_model, tiny_guard).looks == "first"


def test_what_overflows_in_the_second_look_counts_as_attacked(
    tiny_model: Path, tiny_guard: Path, sibling: Path, tmp_path: Path
) -> None:
    """A row without a second score stands above everything, and says that it has none."""
    guard = looking_twice(tiny_model, tiny_guard, tmp_path / "guard", other=sibling)
    opened = Guard.open(tiny_model, guard, second_model=sibling, looks="always")
    first = opened.verdicts(opened.run(opened.spec.to_tensor(PICTURES)))
    scores = np.zeros(len(first), np.float32)
    scores[3] = 1e4  # what the graph gives in place of what is no number
    found = opened.judged(first, np.arange(len(first)), scores)
    assert found.unscored.tolist() == [i == 3 for i in range(len(first))]
    assert found.is_adversarial[3]
    assert found.p_value[3] == found.p_value.min()
    assert {item.name for item in fields(found.first or first)} >= {"score", "p_value"}


def test_the_cost_of_both_looks_is_measured(tiny_model: Path, folder: Path) -> None:
    """Over clean traffic: never less than the first look, and twice where it always looks."""
    some = bench_guard(tiny_model, folder, batches=[4], rounds=60)
    assert some["looks"]["when"] == "suspicious"
    assert 0.1 < some["looks"]["clean_looked_again"] < 0.3
    cost = some["batches"][0]["looks"]
    assert cost["both_overhead_mean"] > cost["first_overhead_mean"] > 0
    assert 0.2 < cost["batches_looked_again"] < 1
    always = bench_guard(tiny_model, folder, batches=[4], rounds=20, looks="always")
    assert always["batches"][0]["looks"]["batches_looked_again"] == 1
    once = bench_guard(tiny_model, folder, batches=[4], rounds=2, looks="first")
    assert "looks" not in once["batches"][0]
