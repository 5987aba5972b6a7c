"""Tests for what a model's answers say of the labels and images it is judged on."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reluguard.training.data.doubts import is_guessing, perfect_words, reordered

CLASSES = 6


def labelled(count: int = 120, classes: int = CLASSES) -> np.ndarray:
    """Return labels of all classes in turn."""
    return np.arange(count) % classes


@given(st.permutations(range(CLASSES)))
def test_any_other_order_is_found(order: list[int]) -> None:
    """Folders in any other order than the outputs are put in the order they must have."""
    answers, labels = labelled(), np.array(order)[labelled()]
    found = reordered(answers, labels, CLASSES)
    wrong = {label: place for place, label in enumerate(order) if label != place}
    if len(wrong) == 0:
        assert found is None
    else:
        assert found is not None
        assert (found.moved, found.share) == (wrong, 1.0)


@given(st.integers(0, 2**32 - 1))
def test_answers_by_chance_have_no_order(seed: int) -> None:
    """A model that guesses is not said to have its classes in another order."""
    answers = np.random.default_rng(seed).integers(0, CLASSES, 300)
    assert reordered(answers, labelled(300), CLASSES) is None


def test_a_model_that_errs_keeps_its_order() -> None:
    """Nine right of ten, with a class of three images answered as a neighbour, is no order."""
    answers, labels = labelled(), labelled()
    answers[::10] = 0
    few = np.array([5, 5, 5])
    assert reordered(np.append(answers, few - 1), np.append(labels, few), CLASSES) is None


def test_labels_from_one_are_called_so() -> None:
    """Labels that are all one too high are said to count from 1."""
    answers = labelled(classes=CLASSES - 1)
    found = reordered(answers, answers + 1, CLASSES)
    assert found is not None
    assert "labels seem to count from 1, and the first class is 0" in found.words({})


def test_folders_are_named() -> None:
    """Words on an order name folders, the class each should be, and the option that says it."""
    found = reordered(labelled(classes=2), 1 - labelled(classes=2), 2)
    assert found is not None
    assert found.words({"cat": 0, "dog": 1}) == (
        "the model answers 0.0% of these images right as they are labelled, and would 100.0% if "
        "cat were class 1, dog were class 0: the folders are not in the order of the model's "
        "outputs; give --classes FILE with the names of all classes in that order"
    )


@pytest.mark.parametrize(
    ("share", "classes", "guesses"),
    [(0.55, 2, True), (0.65, 2, False), (0.15, 10, True), (0.25, 10, False), (0.45, 3, True)],
)
def test_hardly_better_than_chance(share: float, classes: int, *, guesses: bool) -> None:
    """Two classes with .55 right are a guess, as are ten with .15."""
    labels = np.repeat(np.arange(classes), 100)
    right = np.tile(np.arange(100) < 100 * share, classes)
    answers = np.where(right, labels, (labels + 1) % classes)
    assert is_guessing(answers, labels, classes) is guesses


def test_the_common_answer_is_a_guess() -> None:
    """To say always the class of nine images of ten is a guess, though nine of ten are right."""
    labels = (np.arange(100) < 10).astype(np.int64)
    assert is_guessing(np.zeros(100, np.int64), labels, 2)
    answers = np.where(np.arange(100) % 5 == 0, 1 - labels, labels)
    assert not is_guessing(answers, labels, 2)


@pytest.mark.parametrize(
    ("count", "wrong", "sure", "said"),
    [(200, 0, 9.0, True), (200, 0, 2.0, False), (200, 4, 9.0, False), (50, 0, 9.0, False)],
)
def test_perfect_answers_are_doubted(count: int, wrong: int, sure: float, *, said: bool) -> None:
    """All right and very sure, of many images: that is said; less of either is not."""
    labels = labelled(count)
    right = np.arange(count) >= wrong
    logits = (sure * np.eye(CLASSES)[labels]).astype(np.float32)
    word = perfect_words(logits, labels, right)
    assert (word is not None) is said
    if word:
        assert "answers 200 of 200 images right and is 99.9% sure on average" in word
        assert "Fit on images that the model never saw" in word
