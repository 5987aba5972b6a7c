"""From pixels to the model's input: said once, when a guard is fitted, and read from it ever after.

H rows, W columns, C channels.
"""

from dataclasses import dataclass

from reluguard.detector.images import InputSpec
from reluguard.detector.model import Production, infer_spec

__all__ = ["Preprocessing", "spec_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """How pixels become the model's input: tensor = (pixel * scale - mean) / std.

    `scale` is 1 / 255 by default, or 1 for a model that takes uint8.
    """

    scale: float | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    bgr: bool = False

    @classmethod
    def of(cls, spec: InputSpec) -> "Preprocessing":
        """Return what a guard's input specification says, for another model of the same images."""
        return cls(scale=spec.scale, mean=spec.mean, std=spec.std, bgr=spec.bgr)


def spec_of(
    production: Production,
    image_shape: tuple[int, ...],
    preprocessing: Preprocessing | None = None,
) -> InputSpec:
    """Return how images go into a model that has no guard yet.

    Args:
        production: the model.
        image_shape: (H, W, C).
        preprocessing: from pixels to the model's input; by default to [0, 1].

    Raises:
        ModelError: images of this size can't be laid into the model's input, or it doesn't run.
        SettingsError: a value has no meaning.
    """
    how = preprocessing or Preprocessing()
    h, w, c = image_shape
    return infer_spec(
        production, (h, w, c), scale=how.scale, mean=how.mean, std=how.std, bgr=how.bgr
    )
