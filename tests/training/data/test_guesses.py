"""A preprocessing that the model was not trained on is seen; the right one never is refused."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from reluguard.detector.errors import ModelError
from reluguard.detector.images import Images, InputSpec
from reluguard.training.data.guesses import Better, alternatives, better_guess, odd_scale, options

SPEC = InputSpec(name="x", height=2, width=2, channels=3)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def answers_of(right: InputSpec, accuracy: dict[bool, float]) -> Callable[..., NDArray[np.int64]]:
    """Return a model that is right so often with one specification, and with others."""

    def answers(spec: InputSpec, images: Images) -> NDArray[np.int64]:
        share = accuracy[spec == right]
        return (images[:, 0, 0, 0] >= 256 * share).astype(np.int64)

    return answers


def images(count: int) -> Images:
    some = np.zeros((count, 2, 2, 3), np.uint8)
    some[:, 0, 0, 0] = np.random.default_rng(0).permutation(np.arange(count) % 256)
    return some


def guessed(
    answers: Callable[..., NDArray[np.int64]], given: InputSpec, count: int
) -> Better | None:
    some, labels = images(count), np.zeros(count, np.int64)
    return better_guess(answers, given, some, labels, given=answers(given, some) == labels, seed=0)


@pytest.mark.parametrize(
    ("given", "right"),
    [
        (InputSpec(name="x", height=2, width=2, channels=3, bgr=True), SPEC),
        (SPEC, InputSpec(name="x", height=2, width=2, channels=3, mean=MEAN, std=STD)),
        (
            InputSpec(name="x", height=2, width=2, channels=3, mean=STD, std=MEAN),
            InputSpec(name="x", height=2, width=2, channels=3, mean=MEAN, std=STD),
        ),
        (SPEC, InputSpec(name="x", height=2, width=2, channels=3, scale=1 / 127.5, mean=(1.0,))),
        (InputSpec(name="x", height=2, width=2, channels=3, scale=1.0), SPEC),
    ],
    ids=["blue first", "left out", "swapped", "range", "scale"],
)
def test_the_right_one_is_found(given: InputSpec, right: InputSpec) -> None:
    """Twelve of a hundred images more are enough to see it, in 300."""
    answers = answers_of(right, {True: 0.93, False: 0.81})
    found = guessed(answers, given, 300)
    assert found is not None
    assert found.spec == right
    assert found.is_clear
    assert f"with {options(right)}" in found.words(given)


@pytest.mark.parametrize("count", [20, 300, 2000])
def test_the_right_one_is_never_refused(count: int) -> None:
    """Where others answer as well or worse, nothing is said."""
    for other in (0.81, 0.93):
        answers = answers_of(SPEC, {True: 0.93, False: other})
        assert guessed(answers, SPEC, count) is None


def test_an_alternative_that_fails_is_passed_by() -> None:
    """A model that another layout breaks tells nothing of it."""

    def answers(spec: InputSpec, images: Images) -> NDArray[np.int64]:
        if spec != SPEC:
            raise ModelError("no")
        return np.ones(len(images), np.int64)

    assert guessed(answers, SPEC, 99) is None


def test_alternatives_are_others() -> None:
    """None is the one given, none comes twice; grey has no channel order."""
    found = alternatives(SPEC)
    assert SPEC not in found
    assert len(set(found)) == len(found)
    grey = InputSpec(name="x", height=2, width=2, channels=1)
    assert not any(spec.bgr for spec in alternatives(grey))
    bytes_in = InputSpec(name="x", height=2, width=2, channels=3, dtype="uint8", scale=1.0)
    assert [spec.bgr for spec in alternatives(bytes_in)] == [True]


def test_a_mean_of_another_range_gets_words() -> None:
    """Means of 0 to 255 are not for pixels of 0 to 1."""
    odd = InputSpec(name="x", height=2, width=2, channels=3, mean=(125.0, 122.0, 114.0))
    assert "125, 122, 114 is subtracted from pixels of 0 to 1" in str(odd_scale(odd))
    assert odd_scale(SPEC) is None
