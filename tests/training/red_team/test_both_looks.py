"""The red team against a guard that looks twice: laws of the order first, then a small guard."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from onnx import helper, numpy_helper

from benchmarks.drawn import write_drawn_guard
from reluguard.detector.artifact import GuardArtifact, read_guard
from reluguard.detector.errors import SettingsError
from reluguard.detector.looks.again import find_network
from reluguard.detector.looks.judging import Looks, Order
from reluguard.detector.model import load_production
from reluguard.detector.runtime import Guard
from reluguard.detector.verdict import Verdicts
from reluguard.training.data.dataset import Dataset
from reluguard.training.progress import Progress
from reluguard.training.red_team.pairs import smallest
from reluguard.training.red_team.procedure import Procedure
from reluguard.training.red_team.relaxed import RelaxedGuard
from reluguard.training.red_team.smallest import NO_GUARD, Smallest
from reluguard.training.red_team.target import Target, open_target
from reluguard.training.red_team.tries import Tries
from reluguard.training.twin.twin import to_pixels
from tests.looking import looking_twice
from tests.training.conftest import save_network, trained
from tests.training.fitting import Order as Fit

RATES = ("0.01", "0.05", "0.3")


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.floats(-2, 3))
def test_an_image_is_flagged_where_it_stands_above_the_limit(seed: int, bound: float) -> None:
    """At every rate, whatever the bound: the order of heights is that of p-values."""
    one, two = np.random.default_rng(seed).normal(size=(2, 500)).astype(np.float32)
    bound = float(np.float32(bound))
    order = Order(one[:300], two[:300], bound)
    cuts = {rate: order.cut(float(rate)) for rate in RATES}
    procedure = Procedure(
        looks="suspicious",
        bound=bound,
        limits={
            rate: calm - bound if high == -np.inf else float(np.logaddexp(0, high))
            for rate, (calm, high) in cuts.items()
        },
        cuts=cuts,
    )
    one, two = one[300:], two[300:]
    looked = order.is_suspicious(one)
    p_values = order.p_values(one, two, looked)
    blank: Any = dict.fromkeys(("prediction", "likelihood", "evidence", "outputs"))
    verdicts = Verdicts(
        **blank,
        score=np.where(looked, two, one),
        p_value=p_values,
        is_adversarial=looked,
        look=np.where(looked, 2, 1).astype(np.uint8),
    )
    heights = procedure.heights(verdicts)
    for rate in RATES:
        flags = order.flags(p_values, float(rate))
        assert_array_equal(heights > np.float32(procedure.limits[rate]), flags)
    nothing = torch.zeros(len(one), 2)
    again = procedure.height(torch.from_numpy(one), torch.from_numpy(two), nothing).numpy()
    assert_allclose(again, heights, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def sibling(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another network that knows digits."""
    net = trained(digits.take(np.arange(300, 800)), units=4, seed=3)
    return save_network(net, tmp_path_factory.mktemp("sibling") / "sibling.onnx")


@pytest.fixture(scope="module")
def folders(
    digits_model: Path,
    fitted: GuardArtifact,
    sibling: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """The fitted guard with second looks of drawn heads: at a view, and by another network."""
    place = tmp_path_factory.mktemp("looks")
    return {
        "smaller": looking_twice(digits_model, fitted.path, place / "view", view="smaller"),
        "other": looking_twice(digits_model, fitted.path, place / "other", other=sibling),
    }


@pytest.mark.parametrize("looks", ["suspicious", "always"])
@pytest.mark.parametrize("who", ["smaller", "other"])
def test_with_hard_bits_it_is_the_guard_of_both_looks(
    who: str, looks: Looks, folders: dict[str, Path], digits: Dataset, digits_model: Path,
    sibling: Path,
) -> None:  # fmt: skip
    """The relaxed heights are those of the real verdicts; steps down their gradient lower them."""
    other = sibling if who == "other" else None
    guard = Guard.open(digits_model, folders[who], threads=1, looks=looks, second_model=other)
    assert guard.artifact.second is not None
    network = find_network(guard.artifact.second.look, folders[who], digits_model, other)
    production = load_production(digits_model)
    relaxed = RelaxedGuard(
        production, guard.artifact, digits.images[:64], looks=looks, other=network, device="cpu"
    )
    images = digits.images[:40]
    verdicts = guard.inspect(images)
    pixels = to_pixels(images)
    reading = relaxed.read(pixels.requires_grad_())
    assert_allclose(
        reading.score.detach(), relaxed.procedure.heights(verdicts), rtol=1e-3, atol=1e-3
    )
    assert_allclose(reading.logits.detach(), verdicts.outputs["logits"], atol=1e-4)
    width = guard.artifact.head.features.width + guard.artifact.second.head.features.width
    assert reading.features.shape == (40, width)
    (gradient,) = torch.autograd.grad(reading.score.sum(), pixels)
    assert (gradient.abs().flatten(1).sum(1) > 0).all()
    moved = (pixels.detach() - 0.02 * gradient.sign()).clamp(0, 1)
    with torch.no_grad():
        assert (relaxed.read(moved).score - reading.score).mean() < 0


def test_gradients_go_through_both_networks(
    folders: dict[str, Path], digits: Dataset, digits_model: Path, sibling: Path
) -> None:
    """With the first look's share taken out there is a gradient left, and the other way round."""
    artifact = read_guard(folders["other"])
    assert artifact.second is not None
    head = artifact.second.head
    columns = artifact.second.joint(artifact.manifest.taps).runs
    before = sum(run.rates for run in columns[: len(artifact.manifest.taps)])
    found = []
    for own in (True, False):
        kept = (head.features.columns < before) == own
        weights = head.features.probe_weights * kept[:, None]
        features = replace(head.features, probe_weights=weights.astype(np.float32))
        blind = replace(artifact.second, head=replace(head, features=features))
        relaxed = RelaxedGuard(
            load_production(digits_model),
            replace(artifact, second=blind),
            digits.images[:16],
            looks="always",
            other=load_production(sibling),
            device="cpu",
        )
        pixels = to_pixels(digits.images[:8]).requires_grad_()
        (gradient,) = torch.autograd.grad(relaxed.read(pixels).score.sum(), pixels)
        found.append(gradient)
    assert all((one.abs().flatten(1).sum(1) > 0).all() for one in found)
    assert not torch.allclose(found[0], found[1])


@pytest.fixture(scope="module")
def target(folders: dict[str, Path], fit_settings: Fit) -> Target:
    """What is attacked: both looks at every image."""
    return open_target(
        fit_settings.model,
        folders["smaller"],
        fit_settings.data,
        seed=0,
        limit=8,
        threads=1,
        looks="always",
    )


def test_two_looks_that_flag_nothing_cost_nothing(target: Target, tmp_path: Path) -> None:
    """Beside a limit above any height the two walks are one: the ratio is exactly 1."""
    none = dict.fromkeys(target.thresholds, NO_GUARD)
    blind = replace(target, thresholds=none, believed=NO_GUARD)
    tries = Tries(blind, tmp_path, "the guard in process", Progress())
    pair = smallest(blind, tries, "l2", steps=12, restarts=1, progress=Progress())
    assert pair.ratio is not None
    assert (pair.ratio.value, pair.ratio.low, pair.ratio.high) == (1, 1, 1)
    assert pair.bare_change == pair.guarded_change


def test_what_counts_evades_both_looks(target: Target) -> None:
    """The real guard, looking twice at whole pixels, answers wrong and flags nothing."""
    attack = Smallest(guard=target.relaxed, threshold=target.believed, steps=30, restarts=1)
    scores, images, _ = target.fool(attack, np.arange(len(target)))
    evades = scores <= np.float32(target.strictest)
    assert evades.any()
    verdicts = target.guard.inspect(images[evades])
    assert (verdicts.look == 2).all()
    assert (verdicts.prediction != target.labels[evades]).all()
    assert not verdicts.is_adversarial.any()


def test_tries_at_one_look_are_not_taken_for_tries_at_two(
    target: Target, fit_settings: Fit, tmp_path: Path
) -> None:
    """Another procedure is another target; one that a guard lacks is refused."""
    from reluguard.training.errors import DataError

    Tries(target, tmp_path, "the guard in process", Progress()).fool(
        Smallest(guard=target.relaxed, threshold=NO_GUARD, steps=2, restarts=1), np.arange(1)
    )
    once = replace(target, procedure=Procedure.of(target.guard.artifact, "first"))
    with pytest.raises(DataError, match="holds work of another"):
        Tries(once, tmp_path, "the guard in process", Progress())
    with pytest.raises(SettingsError, match="expected a guard with a second look"):
        open_target(
            fit_settings.model,
            fit_settings.out,
            fit_settings.data,
            seed=0,
            limit=4,
            threads=1,
            looks="always",
        )


@pytest.mark.parametrize("top", [0.4, 3.0])
def test_a_clip_lends_a_gradient_where_it_is_closed(
    top: float, digits: Dataset, digits_model: Path, tmp_path: Path
) -> None:
    """Below 0 and above its top alike; hard bits are the guard's, at levels above its top too."""
    model = onnx.load(digits_model)
    bounds = {"low": np.float32(0), "high": np.float32(top)}
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value), name) for name, value in bounds.items()
    )
    for node in model.graph.node:
        if node.op_type == "Relu":
            cut = helper.make_node("Clip", [node.input[0], "low", "high"], [node.output[0]])
            node.CopyFrom(cut)
    path = tmp_path / "clipped.onnx"
    onnx.save(model, path)
    folder = write_drawn_guard(
        path,
        tmp_path / "guard",
        clean=digits.images[:199],
        golden=digits.images[:2],
        rates=(0.05,),
        provenance={},
    )
    guard = Guard.open(path, folder, threads=1)
    relaxed = RelaxedGuard(load_production(path), guard.artifact, digits.images[:64], device="cpu")
    with torch.no_grad():
        reading = relaxed.read(to_pixels(digits.images[:30]))
    raw = guard.run(guard.spec.to_tensor(digits.images[:30]))
    assert_allclose(reading.score, raw.score, atol=1e-3)
    for bias in (-3.0, top + 3) if top > 1 else ():  # every gate of the first layer closed
        item = next(one for one in model.graph.initializer if one.name == "t1")
        value = np.full_like(numpy_helper.to_array(item), bias)
        item.CopyFrom(numpy_helper.from_array(value, "t1"))
        onnx.save(model, tmp_path / "closed.onnx")
        production = load_production(tmp_path / "closed.onnx")
        manifest = replace(guard.artifact.manifest, model_sha256=production.sha256)
        closed = RelaxedGuard(
            production, replace(guard.artifact, manifest=manifest), digits.images[:16], device="cpu"
        )
        pixels = to_pixels(digits.images[:8]).requires_grad_()
        read = closed.read(pixels, temperature=100.0)
        (dead,) = torch.autograd.grad(read.logits.sum(), pixels, retain_graph=True)
        (gradient,) = torch.autograd.grad(read.score.sum(), pixels)
        assert (gradient.abs().flatten(1).sum(1) > 0).all()
        assert (dead == 0).float().mean() > 0.5  # the model itself lends none there
