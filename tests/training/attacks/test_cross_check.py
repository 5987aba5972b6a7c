"""Our attacks against a second library's, on a real network: the same success and size."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from reluguard.detector.images import InputSpec
from reluguard.training.attacks import CWL2, FGSM, PGD, Attack, DeepFool, Victim, open_victim
from reluguard.training.attacks.library import TwinModule
from reluguard.training.data.dataset import Dataset, load_data
from reluguard.training.twin.twin import load_twin, to_pixels

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

COUNT = 200


@pytest.fixture(scope="module")
def data(shared: Path) -> Dataset:
    """CIFAR-10 images the network has not seen."""
    return load_data(str(shared / "data" / "cifar10" / "heldout.npz")).take(np.arange(COUNT))


@pytest.fixture(scope="module")
def victim(shared: Path, data: Dataset) -> Victim:
    """The pretrained ResNet-20 with its twin."""
    model = shared / "models" / "resnet20-cifar10.onnx"
    spec = InputSpec(name="image", height=32, width=32, channels=3)
    twin = load_twin(model, spec, images=data.images, device="cpu")
    return open_victim(model, spec, twin=twin, threads=1)


def theirs(
    attack: Any, size: float | None, data: Dataset, victim: Victim
) -> tuple[float, np.ndarray]:
    """Return foolbox's share of success after rounding, and its L2 norms before."""
    import foolbox

    model = foolbox.PyTorchModel(
        TwinModule(victim.differentiable).eval(), bounds=(0, 1), device="cpu"
    )
    before = victim.predict(data.images).argmax(axis=1)
    clean = to_pixels(data.images)
    torch.manual_seed(0)
    _, moved, _ = attack(model, clean, torch.from_numpy(before), epsilons=size)
    whole = (moved * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy()
    success = victim.predict(whole).argmax(axis=1) != before
    return success.mean(), (moved - clean).flatten(1).norm(dim=1).numpy()


def foolbox_attacks() -> Any:
    return pytest.importorskip("foolbox").attacks


CASES = [
    ("LinfFastGradientAttack", {}, FGSM(size=2.0), 2 / 255),
    ("LinfFastGradientAttack", {}, FGSM(size=8.0), 8 / 255),
    (
        "LinfProjectedGradientDescentAttack",
        {"rel_stepsize": 0.25, "steps": 10},
        PGD(size=2.0),
        2 / 255,
    ),
    (
        "LinfProjectedGradientDescentAttack",
        {"rel_stepsize": 0.25, "steps": 10},
        PGD(size=4.0),
        4 / 255,
    ),
    (
        "L2ProjectedGradientDescentAttack",
        {"rel_stepsize": 0.25, "steps": 10},
        PGD(norm="l2", size=0.5),
        0.5,
    ),
]


@pytest.mark.parametrize(("name", "settings", "ours", "size"), CASES, ids=lambda v: repr(v)[:60])
def test_budgeted_attacks_agree_with_foolbox(
    name: str, settings: dict[str, Any], ours: Attack, size: float, data: Dataset, victim: Victim
) -> None:
    """Success within 2 points, mean norms within 5 %."""
    share, lengths = theirs(getattr(foolbox_attacks(), name)(**settings), size, data, victim)
    result = ours(data.images, data.labels, victim, seed=0)
    assert result.success.mean() == pytest.approx(share, abs=0.02)
    assert result.l2.mean() == pytest.approx(lengths.mean(), rel=0.05)


def test_minimal_attacks_agree_with_foolbox(data: Dataset, victim: Victim) -> None:
    """CW is as short as foolbox's in floats, and what survives rounding costs DeepFool little."""
    few = data.take(np.arange(48))
    kinds = foolbox_attacks()
    carlini = kinds.L2CarliniWagnerAttack(
        binary_search_steps=4, steps=30, stepsize=0.01, initial_const=0.03
    )
    _, lengths = theirs(carlini, None, few, victim)
    result = CWL2()(few.images, few.labels, victim, seed=0)
    assert result.success.all()
    assert result.l2.mean() == pytest.approx(lengths.mean(), rel=0.05)
    share, lengths = theirs(kinds.L2DeepFoolAttack(steps=30, candidates=5), None, few, victim)
    result = DeepFool()(few.images, few.labels, victim, seed=0)
    assert share < 0.2
    assert result.success.mean() > 0.95
    assert lengths.mean() < result.l2.mean() < 1.35 * lengths.mean()
