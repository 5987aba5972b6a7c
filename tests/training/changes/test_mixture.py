"""Changes by chance: one of several, or a few of them in turn."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from reluguard.detector.images import Images
from reluguard.training.changes import Blur, Brightness, Grey, Saturation, Shift
from reluguard.training.changes.mixture import InTurn, Mixture
from reluguard.training.errors import AttackError

UP, DOWN = Brightness(amount=20 / 255), Brightness(amount=-60 / 255)


def shades(images: Images) -> set[int]:
    return {int(image.min()) for image in images}


def test_each_image_goes_through_one_or_two() -> None:
    """Of two changes of light every image meets the one, the other or both, and never one twice."""
    images = np.full((200, 4, 4, 3), 100, np.uint8)
    changed = InTurn("both", (UP, DOWN))(images, seed=0)
    assert shades(changed) == {120, 40, 60}
    assert (changed == changed[:, :1, :1, :1]).all()
    assert shades(InTurn("one", (UP, DOWN), most=1)(images, seed=0)) == {120, 40}
    assert_array_equal(changed, InTurn("both", (UP, DOWN))(images, seed=0))
    assert (changed != InTurn("both", (UP, DOWN))(images, seed=1)).any()


def test_the_order_is_by_chance() -> None:
    """A cut at black and light after it is not light and then the cut."""
    images = np.full((60, 4, 4, 1), 30, np.uint8)
    assert {0, 20} <= shades(InTurn("both", (UP, DOWN))(images, seed=0))


def test_it_suits_size_and_colour() -> None:
    """Every part grows with the image, and those that need colour are left out of grey."""
    turn = InTurn("turn", (Mixture("blur", (Blur(sigma=0.5),)), Shift(down=1, right=0)))
    assert turn.for_images(64, 64).changes == (
        Mixture("blur", (Blur(sigma=0.5),)).for_images(64, 64),
        Shift(down=1, right=0).for_images(64, 64),
    )
    mixed = Mixture("mixed", (Saturation(factor=0.5), Blur(sigma=0.5)))
    grey = InTurn("grey", (Grey(), mixed)).in_grey()
    assert grey == InTurn("grey", (Mixture("mixed", (Blur(sigma=0.5),)),), most=1)
    assert not InTurn("both", (Grey(), Blur(sigma=0.5))).needs_colour
    assert InTurn("all", (Grey(), Saturation(factor=0.5))).needs_colour


@pytest.mark.parametrize("most", [0, 3])
def test_no_more_in_turn_than_there_are(most: int) -> None:
    """The message says how many there may be."""
    with pytest.raises(AttackError, match=f"expected 1 to 2 of the changes of both .* got {most}"):
        InTurn("both", (UP, DOWN), most=most)
