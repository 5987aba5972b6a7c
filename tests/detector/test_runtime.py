"""The guard in process: one answer however an image comes in."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from detector.images import Images
from detector.runtime import Guard


def test_tensors_give_what_images_give(
    tiny_model: Path, tiny_guard: Path, make_images: Callable[..., Images]
) -> None:
    """The model's own tensor and the image it came from get the same verdicts."""
    guard = Guard.open(tiny_model, tiny_guard, threads=1)
    images = make_images(6, seed=7)
    a, b = guard.inspect(images), guard.inspect_tensor(guard.spec.to_tensor(images))
    np.testing.assert_array_equal(a.score, b.score)
    np.testing.assert_array_equal(a.is_adversarial, b.is_adversarial)
