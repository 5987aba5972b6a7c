"""Every attack in the list, through one body, on a small trained network."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from reluguard.training.attacks import (
    APGD,
    ATTACKS,
    BIM,
    CWL2,
    FAB,
    FGSM,
    FMN,
    MIFGSM,
    PGD,
    Attack,
    Budget,
    DeepFool,
    Ensemble,
    FromART,
    HopSkipJump,
    Patch,
    PGDThrough,
    Pushed,
    RandomSearch,
    SparsePGD,
    Spatial,
    Square,
    Transfer,
    Varied,
    VariedQueries,
    Victim,
    attack_named,
)
from reluguard.training.attacks.fab import onto_plane
from reluguard.training.changes import Blur
from reluguard.training.data.dataset import Dataset
from reluguard.training.errors import AttackError
from reluguard.training.twin.twin import Twin

# On 8 x 8 digits a budget that fools some and not all, so that success can go wrong both ways.
TABLE: list[tuple[Attack, float]] = [
    # attack, and the least share of images it must fool
    (FGSM(size=24.0), 0.3),
    (BIM(size=24.0, steps=5), 0.4),
    (MIFGSM(size=24.0, steps=5), 0.4),
    (PGD(size=24.0), 0.4),
    (PGD(size=24.0, early_stop=True), 0.4),
    (PGD(size=16.0, restarts=2, steps=5), 0.1),
    (PGD(norm="l2", size=0.8), 0.4),
    (PGD(norm="l1", size=4.0), 0.4),
    (PGDThrough(size=24.0, steps=6), 0.4),
    (PGDThrough(norm="l2", size=0.8, steps=6, draws=2), 0.4),
    (APGD(loss="ce", size=24.0, steps=15), 0.4),
    (APGD(loss="dlr", size=24.0, steps=15), 0.4),
    (APGD(loss="ce", norm="l2", size=0.8, steps=15), 0.4),
    (DeepFool(), 0.9),
    (DeepFool(overshoot=0.5), 0.9),
    (FMN(norm="l2"), 0.9),
    (FMN(norm="linf"), 0.9),
    (FAB(norm="l2"), 0.9),
    (FAB(norm="linf"), 0.9),
    (CWL2(), 0.9),
    (CWL2(confidence=2.0), 0.9),
    (SparsePGD(places=6), 0.4),
    (Patch(side=3), 0.4),
    (Square(size=40.0, most_queries=100), 0.3),
    (HopSkipJump(steps=3, probes=30), 0.9),
    (Spatial(turns=5, share=0.2), 0.4),
    (Spatial(turns=5, share=0.2, padding="border"), 0.2),
    (RandomSearch(low=20.0, high=80.0, tries=20), 0.3),
    (Pushed(low=8.0), 0.5),
    (Varied("varied", (FGSM(size=24.0), PGD(norm="l2", size=0.8), Patch(side=3))), 0.3),
    (VariedQueries("varied-queries", (Square(size=40.0, most_queries=60), RandomSearch())), 0.2),
    (Transfer(inner=MIFGSM(size=32.0)), 0.1),
    (Ensemble(rate=20.0, weight=10.0), 0.4),
    (Ensemble(rate=20.0, weight=10.0, with_twin=False), 0.05),
    (
        FromART(
            attack="NewtonFool", arguments=(("max_iter", 20), ("eta", 0.3), ("verbose", False))
        ),
        0.1,
    ),
    (FromART(attack="FastGradientMethod", arguments=(("eps", 0.2),), limit=Budget("linf", 5)), 0),
]
ATTACK = [row[0] for row in TABLE]


@pytest.mark.filterwarnings("ignore::Warning:art")
@pytest.mark.parametrize(("attack", "least"), TABLE, ids=map(repr, ATTACK))
def test_attack_keeps_its_promises(
    attack: Attack, least: float, digits: Dataset, digits_victim: Victim
) -> None:
    """Within budget, whole, in range, measured on ONNX, repeatable, and it does fool the model."""
    images, labels = digits.images[:24], digits.labels[:24]
    untouched = images.copy()
    result = attack(images, labels, digits_victim, seed=3, batch=16)
    assert_array_equal(images, untouched)
    norm, size = attack.budget.norm, attack.budget.size
    if norm != "none":
        assert (getattr(result, norm) <= size + 1e-9).all()
    before = digits_victim.predict(images).argmax(axis=1)
    after = digits_victim.predict(result.images).argmax(axis=1)
    wanted = after != before if result.target is None else after == result.target
    assert_array_equal(result.success, wanted)
    assert result.success.mean() >= least
    again = attack(images, labels, digits_victim, seed=3, batch=16)
    assert_array_equal(again.images, result.images)
    if result.queries is not None:
        assert (result.queries >= 1).all()


def test_the_table_has_every_kind() -> None:
    """No attack class in the list goes untested."""
    assert {type(make()) for make in ATTACKS.values()} == {
        type(attack) for attack in ATTACK if not isinstance(attack, Varied)
    }


def test_more_of_the_same_is_stronger(digits: Dataset, digits_victim: Victim) -> None:
    """Success rises with the budget and reaches nearly all: the gradients are sound."""
    args = (digits.images[:80], digits.labels[:80], digits_victim)
    rates = [PGD(size=size)(*args, seed=0).success.mean() for size in (4.0, 16.0, 48.0, 128.0)]
    assert rates == sorted(rates)
    assert rates[0] < 0.5
    assert rates[-1] > 0.97
    weak = FGSM(size=24.0)(*args, seed=0).success.mean()
    assert PGD(size=24.0, steps=40)(*args, seed=0).success.mean() >= weak


def test_least_changes_are_small(digits: Dataset, digits_victim: Victim) -> None:
    """The minimal attacks agree on how far the boundary is, and confidence costs distance."""
    args = (digits.images[:40], digits.labels[:40], digits_victim)
    lengths = {
        attack.name: np.median(attack(*args, seed=0).l2)
        for attack in (DeepFool(), FMN(), FAB(), CWL2(), CWL2(confidence=2.0))
    }
    assert lengths["fmn-l2"] < 1.25 * lengths["cw-l2"]
    assert lengths["cw-l2"] < 1.25 * lengths["fmn-l2"]
    assert lengths["fab-l2"] < 1.25 * lengths["fmn-l2"]
    assert lengths["deepfool-l2"] < 1.6 * lengths["fmn-l2"]
    assert lengths["cw-l2-k2"] > 1.1 * lengths["cw-l2"]


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_onto_a_plane_is_the_nearest_point_of_it(norm: Literal["l2", "linf"]) -> None:
    """On the plane, in the box, and no point found by chance on it is nearer."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(50, 6, generator=generator)
    normal = torch.randn(50, 6, generator=generator)
    inside = torch.rand(50, 6, generator=generator)
    offset = -(normal * inside).sum(1)  # each plane goes through the box
    found = onto_plane(x, normal, offset, norm=norm)
    assert ((found >= 0) & (found <= 1)).all()
    torch.testing.assert_close((normal * found).sum(1) + offset, torch.zeros(50), atol=1e-4, rtol=0)
    order = 2 if norm == "l2" else torch.inf
    nearest = torch.linalg.vector_norm(found - x, order, dim=1)
    others = torch.rand(2000, 50, 6, generator=generator)
    height = ((normal * others).sum(2) + offset) / normal.square().sum(1)
    others = others - height[:, :, None] * normal
    allowed = ((others >= 0) & (others <= 1)).all(2)
    distance = torch.linalg.vector_norm(others - x, order, dim=2)
    distance[~allowed] = torch.inf
    assert (distance.amin(0) > nearest - 1e-4).all()
    assert (distance.amin(0) < 1.5 * nearest + 0.2).float().mean() > 0.5  # some came close


def test_confidence_is_reached(digits: Dataset, digits_victim: Victim) -> None:
    """A confident attack leaves the asked margin behind it, in logits of the ONNX model."""
    result = CWL2(confidence=2.0)(digits.images[:24], digits.labels[:24], digits_victim, seed=0)
    logits = digits_victim.predict(result.images)[result.success]
    rows = np.arange(len(logits))
    old = logits[rows, result.clean_prediction[result.success]]
    assert ((logits.max(axis=1) - old) > 1.95).mean() > 0.9


def test_early_stop_rests_at_the_boundary(digits: Dataset, digits_victim: Victim) -> None:
    """With an early stop the answer is less certain than after all steps."""
    args = (digits.images[:40], digits.labels[:40], digits_victim)
    deep, early = (PGD(size=48.0, early_stop=stop)(*args, seed=0) for stop in (False, True))
    assert early.success.mean() >= deep.success.mean() - 0.1
    assert early.l2.mean() < deep.l2.mean()


def test_square_stops_asking(digits: Dataset, digits_victim: Victim) -> None:
    """An image is not asked about again once it is fooled, nor more often than allowed."""
    attack = Square(size=40.0, most_queries=50)
    result = attack(digits.images[:40], digits.labels[:40], digits_victim, seed=0)
    assert result.queries is not None
    assert result.queries.max() == 50
    assert (result.queries[~result.success] == 50).all()
    assert result.queries.min() < 25


def test_varied_keeps_the_budget_of_each(digits: Dataset, digits_victim: Victim) -> None:
    """Each image stays within the budget of one of the attacks, and every attack gets some."""
    attack = Varied("either", (FGSM(size=3.0), Patch(side=2)))
    result = attack(digits.images[:40], digits.labels[:40], digits_victim, seed=0)
    small, few = result.linf <= 3, result.l0 <= 4
    assert (small | few).all()
    assert small.any()
    assert few.any()
    assert result.queries is None


def test_chance_stops_at_its_first_success(digits: Dataset, digits_victim: Victim) -> None:
    """A fooled image is not asked about again; the others use up their tries."""
    attack = RandomSearch(low=20.0, high=80.0, tries=6)
    result = attack(digits.images[:40], digits.labels[:40], digits_victim, seed=0)
    assert result.queries is not None
    assert (result.queries[~result.success] == 6).all()
    assert result.queries.min() < 6


def test_a_patch_is_one_square(digits: Dataset, digits_victim: Victim) -> None:
    """All changed places lie within one square."""
    result = Patch(side=3)(digits.images[:20], digits.labels[:20], digits_victim, seed=0)
    changed = (result.images != digits.images[:20]).any(axis=3)
    for image in changed:
        rows, columns = np.nonzero(image)
        assert np.ptp(rows) < 3
        assert np.ptp(columns) < 3


def test_spatial_moves_by_whole_pixels_and_turns() -> None:
    """A shift by whole pixels moves them; no turn and no shift change nothing."""
    import torch

    from reluguard.training.attacks.spatial import turned

    image = torch.rand(1, 3, 6, 8)
    torch.testing.assert_close(turned(image, 0, 0, 0), image, atol=1e-5, rtol=0)
    torch.testing.assert_close(turned(image, 0, 2, 1)[..., 2:, 1:], image[..., :-2, :-1])
    square = torch.rand(1, 1, 5, 5)
    turns = [turned(square, degrees, 0, 0) for degrees in (90, -90)]
    torch.testing.assert_close(turns[0], turns[1].flip(2, 3), atol=1e-5, rtol=0)
    wide = torch.zeros(1, 1, 5, 9)
    wide[..., 2, 2:7] = 1  # a bar of five pixels across stays five long when upright
    upright = turned(wide, 90, 0, 0)
    torch.testing.assert_close(upright[0, 0, :, 4], torch.ones(5), atol=1e-4, rtol=0)


def test_names_are_unique_and_make_what_they_say() -> None:
    """Every name in the list makes an attack of that name."""
    for name in ATTACKS:
        assert attack_named(name).name == name
    assert len(ATTACKS) >= 28


def test_an_attack_of_yours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`module:Class` finds an attack in the working folder; what is none is refused."""
    (tmp_path / "my_attacks.py").write_text(
        "from reluguard.training.attacks import FGSM\n"
        "def strong(): return FGSM(size=32.0)\n"
        "def needy(size): return FGSM(size=size)\n"
        "number = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    try:
        assert attack_named("my_attacks:strong") == FGSM(size=32.0)
        for text, message in (
            ("my_attacks:missing", "can't find the attack my_attacks:missing"),
            ("my_attacks:needy", "expected my_attacks:needy to need no arguments"),
            ("my_attacks:number", "expected my_attacks:number to be an Attack, got int"),
            (
                "nowhere",
                "expected an attack of fgsm-linf-1, .* or module:name of yours, got 'nowh",
            ),
        ):
            with pytest.raises(AttackError, match=message):
                attack_named(text)
    finally:
        sys.modules.pop("my_attacks", None)


def test_an_attack_of_another_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package installed beside ours adds attacks through its entry points."""
    (tmp_path / "their_attacks.py").write_text(
        "from reluguard.training.attacks import FGSM\ndef make(): return FGSM(size=3.0)\n"
    )
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[reluguard.attacks]\ntheir-fgsm = their_attacks:make\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        assert attack_named("their-fgsm") == FGSM(size=3.0)
    finally:
        sys.modules.pop("their_attacks", None)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PGD(norm="l0"), "expected PGD in linf, l2 or l1, got 'l0'"),
        (lambda: PGD(steps=0), "expected positive steps, restarts and step, got 0, 1 and 2.5"),
        (lambda: PGD(size=-1.0), "expected a positive size of the linf budget, got -1.0"),
        (lambda: FGSM(size=0.0), "expected a positive size of the linf budget, got 0"),
        (lambda: BIM(steps=0), "expected positive steps, got 0"),
        (lambda: MIFGSM(decay=-1.0), "expected positive steps and decay, got 10 and -1.0"),
        (lambda: APGD(loss=cast("Any", "mse")), "expected loss ce or dlr"),
        (lambda: DeepFool(candidates=0), "expected positive steps, candidates and overshoot"),
        (lambda: FMN(norm="l1"), "expected FMN in l2 or linf"),
        (lambda: FAB(norm="l1"), "expected FAB in l2 or linf"),
        (lambda: FAB(back=1.0), "back in"),
        (lambda: CWL2(rate=0.0), "expected positive searches, steps, rate and weight"),
        (lambda: CWL2(confidence=-1.0), "expected a confidence of 0 or more, got -1.0"),
        (lambda: SparsePGD(steps=0), "expected positive steps and step"),
        (lambda: Patch(side=0), "expected positive side, steps and step"),
        (lambda: Square(share=0.0), "expected 1 or more queries and a share in"),
        (lambda: HopSkipJump(steps=0), "expected positive steps, probes, starts and bisections"),
        (lambda: Spatial(turns=0), "expected positive turns and shifts"),
        (lambda: Spatial(padding=cast("Any", "wrap")), "expected a padding of zeros, border, refl"),
        (lambda: RandomSearch(low=9.0, high=3.0), "expected 0 < low <= high <= 255"),
        (lambda: RandomSearch(cells=()), r"expected cells of 1 or more pixels, got \(\)"),
        (lambda: Varied("none", ()), "expected at least one attack for none, got none"),
        (
            lambda: Varied("far", (Transfer(), FGSM(size=1.0))),
            "expected untargeted attacks on the model alone for far, got transfer",
        ),
        (
            lambda: VariedQueries("asks", (Square(), FGSM(size=2.0))),
            "expected attacks without gradients, got fgsm-linf-2",
        ),
        (lambda: Transfer(inner=Ensemble()), "expected a plain attack to transfer, got ensemble"),
        (lambda: Ensemble(rate=0.0), "expected positive steps, rate and weight"),
    ],
)
def test_meaningless_settings_are_refused(make: Callable[[], object], message: str) -> None:
    """A setting without meaning stops before anything runs."""
    with pytest.raises(AttackError, match=message):
        make()


@pytest.mark.filterwarnings("ignore::Warning:art")
def test_art_says_what_it_lacks(digits: Dataset, digits_victim: Victim) -> None:
    """An unknown class of ART, and arguments it refuses, are our errors."""
    args = (digits.images[:2], digits.labels[:2], digits_victim)
    with pytest.raises(AttackError, match=r"expected a class of art.attacks.evasion, got 'NoSuch'"):
        FromART(attack="NoSuch")(*args, seed=0)
    with pytest.raises(AttackError, match="ART's FastGradientMethod refuses its arguments"):
        FromART(attack="FastGradientMethod", arguments=(("eps", -1.0),))(*args, seed=0)


def test_a_patch_needs_room(digits: Dataset, digits_victim: Victim) -> None:
    """A patch larger than the image is refused."""
    with pytest.raises(AttackError, match="expected images of at least 9 pixels a side"):
        Patch(side=9)(digits.images[:2], digits.labels[:2], digits_victim, seed=0)


@pytest.mark.slow
def test_ten_steps_on_two_thousand_images_take_ten_gradients_each(shared: Path) -> None:
    """PGD is fast enough for fitting: the network goes over every image ten times and no more."""
    from reluguard.detector.images import InputSpec
    from reluguard.training.attacks import open_victim
    from reluguard.training.data.dataset import load_data
    from reluguard.training.twin.twin import load_twin

    data = load_data(str(shared / "data" / "cifar10" / "heldout.npz"))
    model = shared / "models" / "resnet20-cifar10.onnx"
    spec = InputSpec(name="image", height=32, width=32, channels=3)
    twin = load_twin(model, spec, images=data.images, device="cpu")
    victim = open_victim(model, spec, twin=twin, threads=1)
    assert twin is not None
    passes: list[int] = []
    hook = twin.module.register_forward_hook(lambda *called: passes.append(len(called[2])))
    result = PGD(size=4.0)(data.images[:2000], data.labels[:2000], victim, seed=0)
    hook.remove()
    assert sum(passes) == 10 * 2000
    assert len(passes) <= 10 * -(-2000 // 96)  # many at a time
    assert result.success.mean() > 0.98


class Patterns(torch.nn.Module):
    """Answers by a checkerboard, which a blur wipes out, and by left against right, which stays."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return two scores, (N, 2)."""
        fine = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(4, 4)
        coarse = torch.ones(8, 8)
        coarse[:, 4:] = -1.0
        score = ((x - 0.5) * (3 * fine + coarse)).sum(dim=(1, 2, 3))
        return torch.stack([score + 2.0, -score], dim=1)


def test_an_attack_through_changes_survives_them(digits_victim: Victim) -> None:
    """After a blur it is further across than plain PGD of the same length, which was made raw."""
    spec = digits_victim.differentiable.spec
    twin = Twin(Patterns(), replace(spec, layout="NCHW", scale=1 / 255), device="cpu")
    victim = Victim(predict=twin.predict, twin=twin)
    images = np.random.default_rng(0).integers(100, 156, (30, 8, 8, 1), np.uint8)
    labels = np.zeros(30, np.int64)
    leads = []
    for attack in (PGD(norm="l2", size=1.0), PGDThrough(norm="l2", size=1.0, draws=5)):
        seen = Blur(sigma=0.8)(attack(images, labels, victim, seed=0).images, seed=0)
        logits = twin.predict(seen)
        leads.append(float((logits[:, 1] - logits[:, 0]).mean()))
    assert leads[1] > leads[0] + 0.5


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (lambda: PGDThrough(norm="l1"), "expected PGD through changes in linf or l2, got 'l1'"),
        (lambda: PGDThrough(draws=0), "expected positive steps, draws and step, got 10, 0 and 2.5"),
        (lambda: Pushed(beyond=0.5), "beyond of 1 or more and 1 or more rounds, got 1.0, 0.5 and"),
    ],
)
def test_senseless_settings_are_refused(attack: Callable[[], Attack], message: str) -> None:
    """Each says what it expects and what it got."""
    with pytest.raises(AttackError, match=message):
        attack()


def test_pushes_end_at_or_beyond_the_boundary(digits: Dataset, digits_victim: Victim) -> None:
    """What flips does so near the boundary and far from it, along directions unlike each other."""
    args = (digits.images[:60], digits.labels[:60], digits_victim)
    pushed = Pushed(low=8.0)(*args, seed=0)
    near = DeepFool()(*args, seed=0)
    times = (pushed.l2 / near.l2)[pushed.success & near.success]
    assert np.quantile(times, 0.9) > 2 * np.quantile(times, 0.1)
    places = (pushed.images != digits.images[:60]).mean(axis=(1, 2, 3))[pushed.success]
    assert places.min() < 0.4 < places.max()
