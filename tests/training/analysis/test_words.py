import numpy as np
import pytest

from reluguard.training.analysis.words import depth, known_word, likeness, likeness_table

CIFAR = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
IMAGENETTE = (
    "0000-tench", "0217-english_springer", "0482-cassette_player", "0491-chain_saw",
    "0497-church", "0566-french_horn", "0569-garbage_truck", "0571-gas_pump",
    "0574-golf_ball", "0701-parachute",
)  # fmt: skip


@pytest.mark.parametrize("names", [CIFAR, IMAGENETTE], ids=["cifar", "imagenette"])
def test_likeness_is_symmetric_and_one_for_the_same_word_only(names: tuple[str, ...]) -> None:
    """Every class of both sets is known, and no two are one word."""
    table = likeness_table(names)
    assert table is not None
    assert (table == table.T).all()
    assert (np.diagonal(table) == 1).all()
    others = table[~np.eye(len(table), dtype=bool)]
    assert (others > 0).all()
    assert (others < 1).all()


def test_what_is_nearer_in_kind_is_more_alike() -> None:
    """A cat is more like a dog than like a frog, and that more than like a ship."""
    assert likeness("cat", "dog") > likeness("cat", "frog") > likeness("cat", "ship")
    assert likeness("automobile", "truck") > likeness("automobile", "airplane")
    assert likeness("dog", "english springer") > likeness("dog", "cat")


def test_worked_example() -> None:
    """Twice the depth of what is above both, by the sum of depths."""
    assert (depth("thing"), depth("placental"), depth("cat"), depth("dog")) == (1, 9, 12, 12)
    assert likeness("cat", "dog") == pytest.approx(2 * depth("carnivore") / 24)


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("Golf_Ball", "golf ball"),
        ("n02102040 English springer, English springer spaniel", "english springer"),
        ("soft-finned fish", "soft-finned fish"),
        ("car", "automobile"),
        ("7", None),
        ("daisy", None),
    ],
)
def test_names_are_found_as_they_are_written(name: str, word: str | None) -> None:
    """Case, underscores and numbers in front don't matter; what is unknown is None."""
    assert known_word(name) == word


def test_one_unknown_name_leaves_no_table() -> None:
    """Half a tree would grade some pairs by kind and others not."""
    assert likeness_table(["cat", "daisy"]) is None
    assert likeness_table([]) is None
