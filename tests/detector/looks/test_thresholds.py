"""What is shown of a guard's thresholds holds for its verdicts, in every form of a guard."""

from pathlib import Path

import numpy as np
import pytest

from reluguard.detector.looks.judging import Looks
from reluguard.detector.looks.thresholds import Thresholds, thresholds_at
from reluguard.detector.runtime import Guard
from tests.conftest import images
from tests.looking import going_by_class, looking_twice

PICTURES = images(400, seed=78)


@pytest.fixture(scope="module")
def forms(
    tiny_model: Path, tiny_guard: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A guard of every form, by what it is."""
    folder = tmp_path_factory.mktemp("forms")
    twice = looking_twice(tiny_model, tiny_guard, folder / "twice")
    return {
        "one look": tiny_guard,
        "by class": going_by_class(tiny_model, tiny_guard, folder / "by class"),
        "two looks": twice,
        "both": going_by_class(tiny_model, twice, folder / "both"),
    }


@pytest.mark.parametrize("fpr", [0.02, 0.1, 0.4])
@pytest.mark.parametrize(
    ("form", "looks"),
    [
        ("one look", "first"),
        ("by class", "first"),
        ("two looks", "first"),
        ("two looks", "suspicious"),
        ("two looks", "always"),
        ("both", "suspicious"),
        ("both", "always"),
    ],
)
def test_verdicts_keep_to_what_is_shown(
    form: str, looks: Looks, fpr: float, tiny_model: Path, forms: dict[str, Path]
) -> None:
    """Nothing up to the lowest is flagged, all above the highest, each as look and class say."""
    guard = Guard.open(tiny_model, forms[form], threads=1, looks=looks, fpr=fpr)
    shown, found = guard.thresholds, guard.inspect(PICTURES)
    first = found.score if found.first is None else found.first.score
    assert not found.is_adversarial[first <= shown.lowest].any()
    assert found.is_adversarial[first > shown.highest].all()
    assert shown.is_by_class == (form in {"by class", "both"})
    own = shown.first[found.prediction] if shown.is_by_class else shown.first
    above = first > own
    if shown.second is not None:
        again = shown.second[found.prediction] if shown.is_by_class else shown.second
        np.testing.assert_array_equal(found.look == 2, first > shown.bound)
        above = np.where(found.look == 2, found.score > again, above)
    np.testing.assert_array_equal(found.is_adversarial, above)
    if not np.isnan(shown.single):
        np.testing.assert_array_equal(found.is_adversarial, first > shown.single)


def test_there_is_a_single_one_only_where_there_is(
    tiny_model: Path, forms: dict[str, Path]
) -> None:
    """One number for one look over all classes; else none, and words that say why."""
    said = {}
    for form, folder in forms.items():
        guard = Guard.open(tiny_model, folder, threads=1, fpr=0.1)
        said[form] = guard.thresholds.words
        assert np.isnan(guard.thresholds.single) == (form != "one look")
    assert said["one look"].startswith("score above ")
    assert said["by class"].endswith(", by the class answered (2 thresholds)")
    assert said["two looks"].startswith("second score above ")
    assert "; a second look is taken where the first score is above " in said["two looks"]
    always = Guard.open(tiny_model, forms["two looks"], threads=1, looks="always", fpr=0.1)
    assert always.thresholds.words.endswith("; every image is looked at twice")


def test_classes_of_one_threshold_have_a_single_one() -> None:
    """By class in name alone."""
    same = Thresholds(fpr=0.1, first=np.full(3, 1.5, np.float32), is_by_class=True)
    assert same.single == same.lowest == same.highest == 1.5


def test_rates_that_images_do_not_suffice_for_are_left_out(
    tiny_model: Path, forms: dict[str, Path]
) -> None:
    """Of 199 images none stands for one in ten thousand."""
    artifact = Guard.open(tiny_model, forms["one look"], threads=1).artifact
    found = thresholds_at(artifact.head, None, (0.0001, 0.1, 0.02))
    assert [one.fpr for one in found] == [0.1, 0.02]
