"""Budgets: the arithmetic that no attack escapes."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reluguard.training.attacks.budget import Budget, Norm, norms
from reluguard.training.errors import AttackError

# Budgets far smaller than the pixel range, or they would prove nothing.
BUDGETS = [
    Budget("linf", 1),
    Budget("linf", 2.7),
    Budget("linf", 8),
    Budget("l2", 0.02),
    Budget("l2", 0.1),
    Budget("l2", 0.5),
    Budget("l1", 0.1),
    Budget("l1", 3.0),
    Budget("l0", 1),
    Budget("l0", 7),
]


@st.composite
def pixels_and_moves(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    """Whole clean pixels and moves of any size, some of them not even numbers."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    shape = (3, draw(st.sampled_from([1, 3])), 6, 5)
    clean = torch.randint(0, 256, shape, generator=generator).float() / 255
    scale = draw(st.sampled_from([1e-4, 2e-3, 1e-2, 0.1, 3.0]))
    kind = draw(st.sampled_from(["normal", "half", "sparse"]))
    noise = torch.randn(shape, generator=generator)
    if kind == "half":  # every value next to where rounding turns
        noise = noise.sign() * 0.5001 / 255 / scale
    if kind == "sparse":
        noise = noise * (torch.rand(shape, generator=generator) < 0.1)
    moved = clean + scale * noise
    if draw(st.booleans()):
        moved[0, 0, 0, :3] = torch.tensor([math.nan, math.inf, -math.inf])
    return clean, moved


@pytest.mark.parametrize("budget", BUDGETS, ids=str)
@given(pixels_and_moves())
@settings(max_examples=40, deadline=None)
def test_whole_pixels_keep_the_budget(
    budget: Budget, pair: tuple[torch.Tensor, torch.Tensor]
) -> None:
    """Whatever was asked for, whole pixels in range and within the budget come out."""
    clean, moved = pair
    whole = budget.whole(clean, moved)
    assert whole.dtype == torch.uint8
    measured = norms((clean * 255).round().to(torch.uint8), whole)[budget.norm]
    assert (measured <= budget.size + 1e-9).all(), measured


@pytest.mark.parametrize("budget", BUDGETS, ids=str)
@given(pixels_and_moves())
@settings(max_examples=25, deadline=None)
def test_projection_keeps_the_budget_and_rests_there(
    budget: Budget, pair: tuple[torch.Tensor, torch.Tensor]
) -> None:
    """A projected image is within budget and range, and projecting it again changes nothing."""
    clean, moved = pair
    once = budget.project(clean, moved)
    assert torch.isfinite(once).all()
    assert once.min() >= 0
    assert once.max() <= 1
    flat = (once - clean).flatten(1).abs()
    size = {
        "linf": flat.amax(1) * 255,
        "l2": flat.square().sum(1).sqrt(),
        "l1": flat.sum(1),
        "l0": (once != clean).any(1).flatten(1).sum(1).float(),
    }[budget.norm]
    assert (size <= budget.size * (1 + 1e-4) + 1e-6).all()
    torch.testing.assert_close(budget.project(clean, once), once, atol=1e-5, rtol=0)


@pytest.mark.parametrize("budget", BUDGETS, ids=str)
def test_what_is_whole_and_within_stays(budget: Budget) -> None:
    """Whole pixels already within the budget come back as they are."""
    generator = torch.Generator().manual_seed(1)
    clean = torch.randint(0, 256, (4, 3, 6, 5), generator=generator).float() / 255
    within = budget.whole(clean, clean + 0.3 * torch.randn(clean.shape, generator=generator))
    again = budget.whole(clean, within.float() / 255)
    assert torch.equal(again, within)


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_rounding_takes_back_as_little_as_needed(norm: Norm) -> None:
    """Where rounding errors even out, the budget is used up all but a little."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.full((8, 3, 16, 16), 128 / 255)
    budget = Budget(norm, 0.5 if norm == "l2" else 8.0)
    whole = budget.whole(clean, clean + 0.05 * torch.randn(clean.shape, generator=generator))
    used = norms((clean * 255).round().to(torch.uint8), whole)[norm]
    assert (used > 0.95 * budget.size).all()


def test_of_equal_changes_the_first_are_kept() -> None:
    """Where all places changed alike, a budget of places takes the first, and rounding the last."""
    clean = torch.full((2, 1, 40, 40), 100 / 255)
    moved = clean + 3 / 255
    whole = Budget("l0", 700).whole(clean, moved)
    assert torch.equal((whole != 100).flatten(1), (torch.arange(1600) < 700).expand(2, -1))
    # six tenths of a step everywhere: rounded up they are too far, and 576 places may be
    whole = Budget("l2", 0.6001 * 40 / 255).whole(clean, clean + 0.6 / 255)
    assert torch.equal((whole != 100).flatten(1), (torch.arange(1600) >= 1024).expand(2, -1))


def test_budgets_grow_with_the_image() -> None:
    """Steps of a pixel stay; L2 and L1 grow with the side, and smaller images keep them."""
    assert Budget("linf", 4.0).for_images(224, 224) == Budget("linf", 4.0)
    assert Budget("l2", 0.5).for_images(128, 128) == Budget("l2", 1.0)
    assert Budget("l2", 0.25).for_images(224, 224) == Budget("l2", 0.661)
    assert Budget("l1", 12.0).for_images(512, 512) == Budget("l1", 1540.0)
    assert Budget("none").for_images(224, 224) == Budget("none")
    for norm in ("l2", "l1"):
        sizes = [Budget(norm, 1.0).for_images(side, side).size for side in (8, 32, 48, 96, 224)]
        assert sizes[:2] == [1.0, 1.0]
        assert sizes == sorted(sizes)


def test_norms_of_one_known_change() -> None:
    """Two values of one place by 3 and -4 steps."""
    clean = torch.full((1, 3, 2, 2), 100, dtype=torch.uint8)
    attacked = clean.clone()
    attacked[0, 0, 1, 1] += 3
    attacked[0, 2, 1, 1] -= 4
    measured = {name: value.item() for name, value in norms(clean, attacked).items()}
    assert measured == {
        "linf": 4,
        "l2": pytest.approx(5 / 255),
        "l1": pytest.approx(7 / 255),
        "l0": 1,
    }


@pytest.mark.parametrize(
    ("norm", "size", "message"),
    [
        ("l3", 1, "expected a norm of linf, l2, l1, l0, none, got 'l3'"),
        ("linf", 0, "expected a positive size of the linf budget, got 0"),
        ("l2", -1.0, "expected a positive size of the l2 budget"),
        ("l2", math.inf, "expected a positive size of the l2 budget, got inf"),
        ("l1", math.nan, "expected a positive size of the l1 budget, got nan"),
    ],
)
def test_meaningless_budgets_are_refused(norm: Norm, size: float, message: str) -> None:
    """A budget has a known norm and a positive, finite size."""
    with pytest.raises(AttackError, match=message):
        Budget(norm, size)
