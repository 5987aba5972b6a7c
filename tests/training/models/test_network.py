"""How pixels become a model's input is told once: to the fit; a guard tells it to the rest."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from typer.testing import CliRunner

from reluguard.commands.app import app
from reluguard.detector.errors import SettingsError
from reluguard.detector.runtime import Guard
from reluguard.training.data.preprocessing import Preprocessing, told_by
from reluguard.training.models.given import Given
from reluguard.training.models.network import Network, open_network
from tests.training.fitting import Order

SCALE = 1 / 51  # the model's own range is 0 to 5


@pytest.fixture(scope="module")
def order(fit_settings: Order, tmp_path_factory: pytest.TempPathFactory) -> Order:
    """A fit of the digits model with another range in front of it."""
    folder = tmp_path_factory.mktemp("scaled")
    model = onnx.load(fit_settings.model)
    factor = numpy_helper.from_array(np.array(0.2, np.float32), "factor")
    model.graph.initializer.append(factor)
    model.graph.node[0].input[0] = "scaled"
    model.graph.node.insert(0, helper.make_node("Mul", ["image", "factor"], ["scaled"]))
    onnx.save(model, folder / "scaled.onnx")
    return replace(
        fit_settings,
        model=folder / "scaled.onnx",
        out=folder / "guard",
        preprocessing=Preprocessing(scale=SCALE),
    )


@pytest.fixture(scope="module")
def guard(order: Order) -> Path:
    return order.run().path


@pytest.fixture
def network(order: Order, guard: Path, tmp_path: Path) -> Network:
    """The network as its guard tells of it."""
    return open_network(Given(model=order.model, data=order.data, guard=guard), folder=tmp_path)


def run(*words: object) -> dict[str, object]:
    done = CliRunner().invoke(app, [*map(str, words), "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_the_guard_tells_it(network: Network, order: Order, guard: Path) -> None:
    """What the fit was told is what everything reads afterwards."""
    assert network.spec == Guard.open(order.model, guard).spec
    assert network.spec.scale == SCALE
    assert told_by(network.spec) == Preprocessing(scale=SCALE)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"preprocessing": Preprocessing()}, "no preprocessing beside the guard"),
        ({"output": "logits"}, "no output beside the guard .*, which tells it, got logits"),
        ({"input_shape": (1, 8, 8)}, r"no input shape beside the guard .*, got \(1, 8, 8\)"),
    ],
)
def test_what_the_guard_tells_is_not_said_twice(
    said: dict[str, object], message: str, order: Order, guard: Path, tmp_path: Path
) -> None:
    """It is refused before anything is read, whatever it says."""
    given = Given(model=order.model, data=order.data, guard=guard)
    with pytest.raises(SettingsError, match=message):
        open_network(replace(given, **said), folder=tmp_path)  # type: ignore[arg-type] # as users


def told(order: Order, guard: Path, how: str) -> list[object]:
    """Return what a command is given to find out how pixels go in."""
    words: dict[str, list[object]] = {
        "by the guard": ["--guard", guard],
        "by the option": ["--scale", SCALE],
        "by nobody": [],
    }
    return ["--model", order.model, "--data", order.data, *words[how]]


def accuracy(network: Network) -> float:
    """Return how often the guarded model is right."""
    assert network.guard is not None
    verdicts = network.guard.inspect(network.dataset.images)
    return float((verdicts.prediction == network.dataset.labels).mean())


WAYS = ["by the guard", "by the option", "by nobody"]


@pytest.mark.parametrize("how", WAYS)
def test_hardening_sees_the_networks_own_pixels(
    order: Order, guard: Path, network: Network, how: str, tmp_path: Path
) -> None:
    """`harden` starts from the accuracy that the fit found, or from another if nobody says."""
    words = ["--out", tmp_path, "--limit", 30, "--held-out", order.data]
    found = run("harden", *told(order, guard, how), *words)["clean_before"]
    assert isinstance(found, dict)
    assert (found["value"] == pytest.approx(accuracy(network))) == (how != "by nobody")


@pytest.mark.slow
@pytest.mark.parametrize("how", WAYS)
def test_analysis_sees_the_networks_own_pixels(
    order: Order, guard: Path, network: Network, how: str, tmp_path: Path
) -> None:
    """So does `analyze`."""
    words = ["--out", tmp_path, "--limit", 400, "--pairwise", 60, "--attack", "pgd-l1-12"]
    found = run("analyze", *told(order, guard, how), *words)["accuracy"]
    assert isinstance(found, dict)
    assert (found["value"] == pytest.approx(accuracy(network))) == (how != "by nobody")
