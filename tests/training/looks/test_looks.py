"""Second looks in training: which serves a model, attacks on both at once, and the fit of one."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from reluguard.detector.artifact import GuardArtifact
from reluguard.detector.looks.views import view_named
from reluguard.detector.runtime import Guard
from reluguard.training.attacks import FGSM, Square, Victim
from reluguard.training.data.case import Case, open_case
from reluguard.training.data.dataset import Dataset
from reluguard.training.errors import DataError
from reluguard.training.evaluation.leave_out import family, leave_one_out, open_fit
from reluguard.training.harvest.workspace import work_folder
from reluguard.training.looks.both import AtBoth, both_twin
from reluguard.training.looks.choice import Second, choose_second
from reluguard.training.recipes import Recipe, recipe_named
from reluguard.training.recipes.both import with_both
from tests.training.conftest import save_network, trained
from tests.training.fitting import Order

Chosen = Callable[[str], tuple[Second | None, str]]


@pytest.fixture(scope="module")
def sibling(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another network that knows digits."""
    net = trained(digits.take(np.arange(300, len(digits))), units=10, seed=3)
    return save_network(net, tmp_path_factory.mktemp("sibling") / "sibling.onnx")


@pytest.fixture(scope="module")
def choose(digits_model: Path, digits_file: Path) -> Chosen:
    """Ask which second look serves the digits model."""
    case, reader = open_case(
        digits_model,
        str(digits_file),
        levels=(0.5, 1.5),
        shares={"fit": 0.5, "calibrate": 0.3, "test": 0.2},
        preprocessing=None,
        output=None,
        fpr=0.05,
        seed=0,
        threads=1,
    )
    assert isinstance(case, Case)
    return lambda how: choose_second(how, case, reader, levels=(0.5, 1.5), threads=1)


def test_a_model_must_agree_with_itself(choose: Chosen) -> None:
    """Digits are no mirror images: the mirror is passed over, and refused if it is asked for."""
    found, word = choose("auto")
    assert found is None or found.look.view in {"smaller", "blur"}
    assert "second look" in word
    with pytest.raises(DataError, match="expected a view on which the model agrees with itself"):
        choose("mirror")
    assert choose("none") == (None, "")


def test_another_network_brings_its_own_taps(choose: Chosen, sibling: Path) -> None:
    """Its digest and the name of its file go into the guard."""
    found, word = choose(str(sibling))
    assert found is not None
    assert found.look.is_other
    assert found.look.file == "sibling.onnx"
    assert [tap.channels for tap in found.taps] == [10, 20]
    assert all(len(tap.levels) == 2 for tap in found.taps)
    assert found.look.agreement > 0.8
    assert "sibling.onnx, which gives the model's answer on" in word


def test_what_can_not_look_is_refused(
    choose: Chosen, digits_model: Path, parity_model: Path, digits: Dataset, tmp_path: Path
) -> None:
    """Each message says what was expected and what came."""
    expected = "expected a second look of auto, none, mirror, shift, smaller, blur, or the ONNX"
    with pytest.raises(DataError, match=expected):
        choose("upside-down")
    with pytest.raises(DataError, match="expected another network to look again"):
        choose(str(digits_model))
    with pytest.raises(DataError, match=re.escape("of the model's 10 classes")):
        choose(str(parity_model))
    wrong = replace(digits, labels=(digits.labels + 1) % 10)
    save_network(trained(wrong, units=4, seed=0), tmp_path / "wrong.onnx")
    with pytest.raises(DataError, match="are its classes in the same order"):
        choose(str(tmp_path / "wrong.onnx"))
    large = onnx.load(digits_model)
    large.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 3
    onnx.save(large, tmp_path / "large.onnx")
    with pytest.raises(DataError, match="expected a second network that takes the model's input"):
        choose(str(tmp_path / "large.onnx"))


def test_both_looks_pull_as_hard(
    choose: Chosen, digits: Dataset, digits_victim: Victim, sibling: Path
) -> None:
    """The scores attacked are the mean of the model's and of those of the second look."""
    found = choose(str(sibling))[0]
    assert found is not None
    twin = digits_victim.differentiable
    images = digits.images[:6]
    both = both_twin(twin, found, images).predict(images)
    _, spec = found.network(twin.spec)
    theirs = found.reader(spec, threads=1).read(images)[1]
    np.testing.assert_allclose(both, (twin.predict(images) + theirs) / 2, atol=1e-3)
    for view in ("mirror", "blur"):
        own = replace(found, look=replace(found.look, view=view, model_sha256=""))
        both = both_twin(twin, own, images).predict(images)
        seen = view_named(view, 8, 8).apply(images)
        pixels = torch.from_numpy(seen).permute(0, 3, 1, 2) / 255
        with torch.no_grad():
            wanted = (twin.predict(images) + twin.logits(pixels).numpy()) / 2
        np.testing.assert_allclose(both, wanted, atol=1e-4)


def test_an_attack_on_both_keeps_its_budget_and_its_family(
    digits: Dataset, digits_victim: Victim
) -> None:
    """It is the attack, led otherwise; without a second look it is the attack itself."""
    attack = AtBoth(attack=FGSM(size=32.0))
    images, labels = digits.images[:24], digits.labels[:24]
    alone = attack(images, labels, digits_victim, seed=0)
    plain = FGSM(size=32.0)(images, labels, digits_victim, seed=0)
    np.testing.assert_array_equal(alone.images, plain.images)
    both = replace(digits_victim, both=digits_victim.surrogates[0])
    led = attack(images, labels, both, seed=0)
    assert led.linf.max() <= 32
    assert (led.images != plain.images).any()
    assert attack.name == "both-fgsm-linf-32"
    assert family(attack.name) == family("fgsm-linf-32")
    assert attack.passes.exact == 2 * FGSM(size=32.0).passes.exact


def test_a_recipe_attacks_both_looks_too(brief_recipe: Recipe) -> None:
    """What follows gradients comes once more on a share of the images; queries do not."""
    more = with_both(brief_recipe)
    added = [p.change.name for p in more.attacks if p not in brief_recipe.attacks]
    assert added == ["both-fgsm-linf-48", "both-pgd-linf-24-4"]
    full = {p.change.name for p in with_both(recipe_named("default")).attacks}
    assert {"both-pgd-linf-2", "both-fgsm-linf-8"} <= full
    assert not any(name.startswith("both-cw") for name in full)  # a hundred passes an image
    assert not any(isinstance(p.change, Square) for p in more.attacks[len(brief_recipe.attacks) :])
    assert more.benign == brief_recipe.benign


@pytest.mark.slow
def test_a_fit_learns_a_second_look(
    fit_settings: Order, fitted: GuardArtifact, sibling: Path, tmp_path: Path
) -> None:
    """It finds more with two looks, the first stays what it is, and a fit goes on where it was."""
    order = replace(fit_settings, out=tmp_path / "guard", second=str(sibling))
    made = order.run()
    assert made.second is not None
    assert fitted.second is None
    assert made.second.look.file == "sibling.onnx"
    document = json.loads((made.path / "manifest.json").read_text())
    assert document["second"]["model_sha256"] == made.second.look.model_sha256
    attacks = [one["slug"] for one in made.manifest.provenance["recipe"]["attacks"]]
    assert "both-fgsm-linf-48" in attacks
    assert made.second.order("suspicious").share < 0.3
    again = order.run()
    for name, value in made.second.to_arrays().items():
        np.testing.assert_array_equal(again.second.to_arrays()[name], value)  # type: ignore[union-attr]  # it has one as before
    opened = Guard.open(order.model, made.path, second_model=sibling, looks="always")
    assert (opened.inspect(made.golden.images).look == 2).all()
    judge = partial(leave_one_out, open_fit(work_folder(made.path), made.manifest), made.manifest)
    once, both = judge(rows=60), judge(rows=60, second=made.second)
    assert once.families == both.families
    assert "both-fgsm-linf-48" in both.unseen  # an attack like any other, of its attack's family
    assert both.auroc["nothing"] != once.auroc["nothing"]
