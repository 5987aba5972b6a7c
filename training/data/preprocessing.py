"""From files to pixels to the model's input: said once, when a guard is fitted, and read from it.

H rows, W columns, C channels.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reluguard.detector.errors import SettingsError
from reluguard.detector.images import InputSpec
from reluguard.detector.model import Production, infer_spec
from reluguard.detector.pixels.configs import from_config, from_transform, preprocessing_named
from reluguard.detector.pixels.preprocessing import Preprocessing

__all__ = ["HowPixels", "Preprocessing", "given_preprocessing", "spec_of", "told_by"]

HowPixels = Preprocessing | str | Path | Mapping[str, Any] | Any
"""A preprocessing, a preset's or file's name, a configuration, or a torchvision transform."""


def given_preprocessing(
    what: HowPixels | None, size: tuple[int, int] | None = None
) -> Preprocessing:
    """Return the preprocessing however it was given.

    Args:
        what: a `Preprocessing`; the name of a preset or of a file, as `preprocessing_named` takes
            it; the data configuration of timm or an image processor's of Hugging Face; or
            `weights.transforms()` of torchvision. None is [0, 1] and files stretched.
        size: (H, W) that the model takes, for presets.

    Raises:
        SettingsError: it can't be read, or says something that is not known here.
    """
    if what is None:
        return Preprocessing()
    if isinstance(what, Preprocessing):
        return what
    if isinstance(what, (str, Path)):
        return preprocessing_named(str(what), size)
    if isinstance(what, Mapping):
        return from_config(what)
    if callable(what):
        return from_transform(what)
    raise SettingsError(
        "expected a preprocessing, the name of a preset or file, a configuration or a transform, "
        f"got {type(what).__name__}"
    )


def told_by(spec: InputSpec) -> Preprocessing:
    """Return what a guard's input specification says, for another model of the same images."""
    return Preprocessing(
        scale=spec.scale, mean=spec.mean, std=spec.std, bgr=spec.bgr, files=spec.files
    )


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
        production,
        (h, w, c),
        scale=how.scale,
        mean=how.mean,
        std=how.std,
        bgr=how.bgr,
        files=how.files,
    )
