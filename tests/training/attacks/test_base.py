"""The base class keeps every promise, whatever the attack returns."""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from torch import Tensor

from reluguard.detector.errors import ImageError
from reluguard.training.attacks import Attack, Budget, Goal, Victim, attack_named
from reluguard.training.data.dataset import Dataset
from reluguard.training.errors import AttackError


@dataclass(frozen=True, kw_only=True)
class Rogue(Attack):
    """An attack that ignores its budget, its range and its pixel grid."""

    needs_gradients: ClassVar[bool] = False
    limit: Budget = Budget("linf", 2)
    kind: str = "noise"

    @property
    def name(self) -> str:
        """After its kind."""
        return f"rogue-{self.kind}-{self.limit}"

    @property
    def budget(self) -> Budget:
        """The limit."""
        return self.limit

    def run(
        self, clean: Tensor, goal: Goal, victim: Victim, generator: torch.Generator
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return what no attack should."""
        del goal, victim
        noise = torch.randn(clean.shape, generator=generator)
        match self.kind:
            case "noise":
                return clean + 10 * noise
            case "nan":
                return torch.full_like(clean, torch.nan)
            case "shape":
                return clean[:, :, 1:]
            case "double":
                return clean.double() + noise.double(), torch.arange(len(clean))
            case _:
                return clean


@dataclass(frozen=True, kw_only=True)
class Aimed(Rogue):
    """A rogue with a target."""

    targeted: ClassVar[bool] = True


LIMITS = [
    Budget("linf", 1),
    Budget("l2", 0.05),
    Budget("l1", 0.4),
    Budget("l0", 3),
    Budget("none"),
]


@pytest.mark.parametrize("limit", LIMITS, ids=str)
@pytest.mark.parametrize("kind", ["noise", "nan", "double"])
def test_any_attack_keeps_its_budget(
    digits: Dataset, digits_victim: Victim, limit: Budget, kind: str
) -> None:
    """No value moves further than the budget, whatever `run` returns."""
    images, labels = digits.images[:20], digits.labels[:20]
    result = Rogue(limit=limit, kind=kind)(images, labels, digits_victim, seed=0)
    assert result.images.dtype == np.uint8
    assert result.images.shape == images.shape
    change = result.images.astype(int) - images
    measured = {
        "linf": np.abs(change).max(axis=(1, 2, 3)),
        "l2": np.sqrt((change**2).sum(axis=(1, 2, 3))) / 255,
        "l1": np.abs(change).sum(axis=(1, 2, 3)) / 255,
        "l0": (change != 0).any(axis=3).sum(axis=(1, 2)),
    }
    for name, values in measured.items():
        np.testing.assert_allclose(getattr(result, name), values, err_msg=name)
    if limit.norm != "none":
        assert (measured[limit.norm] <= limit.size + 1e-9).all()


def test_success_is_measured_on_the_onnx_model(digits: Dataset, digits_victim: Victim) -> None:
    """A twin that is fooled, or swears it is, counts for nothing."""
    images, labels = digits.images[:20], digits.labels[:20]
    result = Rogue(limit=Budget("none"))(images, labels, digits_victim, seed=0)
    before = digits_victim.predict(images).argmax(axis=1)
    after = digits_victim.predict(result.images).argmax(axis=1)
    assert_array_equal(result.clean_prediction, before)
    assert_array_equal(result.prediction, after)
    assert_array_equal(result.success, before != after)
    assert result.success.any()
    stubborn = replace(
        digits_victim, predict=lambda batch: np.eye(10, dtype="f4")[[3] * len(batch)]
    )
    assert not Rogue(limit=Budget("none"))(images, labels, stubborn, seed=0).success.any()


def test_an_image_that_was_wrong_before_is_no_success(
    digits: Dataset, digits_victim: Victim
) -> None:
    """Success is a changed answer: doing nothing to a misclassified image reaches nothing."""
    wrong = (digits.labels[:50] + 1) % 10
    assert not Rogue(kind="nothing")(digits.images[:50], wrong, digits_victim, seed=0).success.any()


def test_the_seed_decides_everything(digits: Dataset, digits_victim: Victim) -> None:
    """The same seed gives the same images, another seed others, whatever was drawn before."""
    images, labels = digits.images[:20], digits.labels[:20]
    first = Rogue()(images, labels, digits_victim, seed=7)
    torch.rand(3)
    assert_array_equal(Rogue()(images, labels, digits_victim, seed=7).images, first.images)
    assert (Rogue()(images, labels, digits_victim, seed=8).images != first.images).any()


def test_chance_does_not_hang_on_the_processor(
    digits: Dataset, digits_victim: Victim, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With products in bfloat16 or without, the same seed draws the same for every image."""
    rows = np.arange(5000) % len(digits)  # too many for one batch
    assert digits_victim.twin is not None
    found = []
    for half in (False, True):
        monkeypatch.setattr(digits_victim.twin, "half", half)
        attack = Rogue(limit=Budget("linf", 4))
        found.append(attack(digits.images[rows], digits.labels[rows], digits_victim, seed=0).images)
    assert_array_equal(found[0], found[1])


def test_batches_draw_differently(digits: Dataset, digits_victim: Victim) -> None:
    """The same image in two batches gets other noise, and progress counts up to the end."""
    images = np.repeat(digits.images[:1], 8, axis=0)
    seen: list[int] = []
    result = Rogue()(
        images, digits.labels[:8], digits_victim, seed=0, batch=3, progress=seen.append
    )
    assert seen == [3, 6, 8]
    assert len(np.unique(result.images.reshape(8, -1), axis=0)) == 8


def test_targets_are_neither_the_answer_nor_the_truth(
    digits: Dataset, digits_victim: Victim
) -> None:
    """A targeted attack succeeds at its target alone."""
    images, labels = digits.images[:60], digits.labels[:60]
    result = Aimed(limit=Budget("none"))(images, labels, digits_victim, seed=0)
    assert result.target is not None
    assert (result.target != labels).all()
    assert (result.target != result.clean_prediction).all()
    assert len(np.unique(result.target)) > 5
    assert_array_equal(result.success, result.prediction == result.target)
    assert Rogue()(images, labels, digits_victim, seed=0).target is None


def test_queries_are_passed_on_if_counted(digits: Dataset, digits_victim: Victim) -> None:
    """An attack that counts its questions reports them per image, others none."""
    args = (digits.images[:5], digits.labels[:5], digits_victim)
    assert_array_equal(Rogue(kind="double")(*args, seed=0, batch=3).queries, [0, 1, 2, 0, 1])
    assert Rogue()(*args, seed=0).queries is None


def test_goal_measures_towards_the_target_or_away() -> None:
    """The margin is negative exactly where the goal is reached, and loss rises on the way."""
    logits = torch.tensor([[3.0, 1.0, 0.0], [0.0, 1.0, 3.0]])
    leave = Goal(labels=torch.tensor([0, 0]))
    reach = Goal(labels=torch.tensor([0, 0]), targeted=True)
    assert leave.margin(logits).tolist() == [2.0, -3.0]
    assert reach.margin(logits).tolist() == [-2.0, 3.0]
    assert leave.loss(logits)[1] > leave.loss(logits)[0]
    assert reach.loss(logits)[0] > reach.loss(logits)[1]
    assert leave.take(torch.tensor([1])).margin(logits[1:]).tolist() == [-3.0]


def test_repr_tells_the_settings() -> None:
    """A repr serves as a test's id and as a record of what was run."""
    assert repr(attack_named("fgsm-linf-2")) == "FGSM(size=2.0)"


def test_wrong_calls_are_refused(digits: Dataset, digits_victim: Victim) -> None:
    """What doesn't fit is named."""
    images, labels = digits.images[:4], digits.labels[:4]
    with pytest.raises(
        AttackError, match=r"expected whole-number labels of shape \(4,\), got int64"
    ):
        Rogue()(images, labels[:3], digits_victim, seed=0)
    with pytest.raises(AttackError, match="got float64"):
        Rogue()(images, labels.astype(float), digits_victim, seed=0)
    with pytest.raises(ImageError, match="expected uint8 images"):
        Rogue()(images.astype("f4"), labels, digits_victim, seed=0)
    with pytest.raises(AttackError, match=r"expected rogue-shape-linf-2 to return pixels of shape"):
        Rogue(kind="shape")(images, labels, digits_victim, seed=0)


def test_an_attack_without_what_it_needs_says_so(digits: Dataset, digits_victim: Victim) -> None:
    """No twin, no gradients; no surrogates, no transfer."""
    bare = Victim(predict=digits_victim.predict)
    args = (digits.images[:2], digits.labels[:2], bare)
    with pytest.raises(AttackError, match="pgd-linf-4 needs gradients: expected a twin"):
        attack_named("pgd-linf-4")(*args, seed=0)
    with pytest.raises(AttackError, match="transfer-mifgsm-linf-8 needs surrogates: expected anot"):
        attack_named("transfer-mifgsm-linf-8")(*args, seed=0)
    with pytest.raises(AttackError, match="expected a twin for an attack that needs gradients"):
        _ = bare.differentiable
