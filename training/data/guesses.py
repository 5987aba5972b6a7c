"""Whether the pixels that a model is given are those it was trained on. N images, K classes.

A model that is fed blue first, or values of another range, still answers, only worse: .93 becomes
.81. With labels that can be seen: likely mistakes are undone one at a time, and where the model
then answers clearly more images right, it was a mistake.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.errors import ModelError, SettingsError
from reluguard.detector.images import Images, InputSpec
from reluguard.detector.pixels.presets import CAFFE_MEAN, IMAGENET_MEAN, IMAGENET_STD

__all__ = ["Better", "better_guess", "odd_scale"]

LOOKS = (24, 64, 256, 1024)  # images of which the later ones are read only for who is ahead so far
GLANCE = 2  # images of the first look by which an alternative may be behind and yet be looked at
CHANCE = 1e-4  # of finding a difference where there is none, for one alternative
LIKELY = 1e-3  # the same where only a word is said
CLEARLY = 0.03  # of the images more must be right
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, slots=True, kw_only=True)
class Better:
    """A preprocessing that suits the model better than the one given.

    Attributes:
        spec: of the model's input.
        right: of `images`, how many the model answers right with it.
        given: and with what was given.
        images: looked at.
        is_clear: whether chance is ruled out, or only unlikely.
    """

    spec: InputSpec
    right: int
    given: int
    images: int
    is_clear: bool

    def words(self, given: InputSpec) -> str:
        """Return what was found, and the options that say so."""
        return (
            f"the model answers {self.given / self.images:.1%} of {self.images} images right with "
            f"{options(given)}, and {self.right / self.images:.1%} with {options(self.spec)}"
        )


def options(spec: InputSpec) -> str:
    """Return the command's options for a model's range, normalisation, order and layout."""
    found = []
    if not math.isclose(spec.scale, 1 / 255, rel_tol=1e-6):
        found.append(f"--scale {spec.scale:.6g}")
    for name, values, nothing in (("mean", spec.mean, 0.0), ("std", spec.std, 1.0)):
        if set(values) != {nothing}:
            found.append(f"--{name} {','.join(f'{value:.6g}' for value in values)}")
    if spec.bgr:
        found.append("--bgr")
    text = " ".join(found) or "none of --scale, --mean, --std and --bgr"
    return f"{text} and layout {spec.layout}" if spec.layout == "NHWC" else text


def odd_scale(spec: InputSpec) -> str | None:
    """Return words where mean and deviation are of another range than the scaled pixels."""
    most = 255 * spec.scale
    for what, values, plain in (("mean", spec.mean, 0.0), ("std", spec.std, 1.0)):
        named = f"the {what} {', '.join(f'{v:g}' for v in values)} is "
        done = f"{'subtracted from' if what == 'mean' else 'that of'} pixels of 0 to {most:g}"
        if max(map(abs, values)) > 2 * most:
            return f"{named}{done}: is it meant for pixels of 0 to 255, --scale 1?"
        if most > 100 and set(values) != {plain} and max(map(abs, values)) <= 1:
            return f"{named}{done}: is it meant for pixels of 0 to 1, without --scale?"
    return None


def alternatives(spec: InputSpec) -> list[InputSpec]:
    """Return likely other preprocessings, none of them twice nor the one given."""
    if spec.dtype == "uint8":
        return [replace(spec, bgr=not spec.bgr)] if spec.channels == 3 else []
    found = []
    for values in _ranges(spec):
        for bgr in (spec.bgr, not spec.bgr) if spec.channels == 3 else (spec.bgr,):
            try:
                made = replace(spec, bgr=bgr, **values)
            except SettingsError:
                continue
            if made != spec and made not in found:
                found.append(made)
    return found


def _ranges(spec: InputSpec) -> Iterator[dict[str, Any]]:
    """Yield scales, means and deviations: of what was given changed, and well-known ones."""
    unit, scale, mean, std = 1 / 255, spec.scale, spec.mean, spec.std
    yield {}
    plain = {"mean": (0.0,), "std": (1.0,)}
    for other in (unit, 1.0, scale * 2, scale / 2):
        yield {"scale": other}
    yield {"scale": unit, **plain}
    yield {"scale": 1.0, **plain}
    yield {"scale": 1 / 127.5, **plain}
    yield {"scale": 1 / 127.5, "mean": (1.0,), "std": (1.0,)}
    yield {"mean": std, "std": mean}
    yield {"mean": mean, "std": (1.0,)}
    yield {"mean": (0.0,), "std": std}
    yield {"mean": tuple(value * 255 for value in mean), "std": tuple(v * 255 for v in std)}
    yield {"mean": tuple(value / 255 for value in mean), "std": tuple(v / 255 for v in std)}
    if spec.channels == 3:
        yield {"mean": mean[::-1], "std": std[::-1]}
        yield {"scale": unit, "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
        yield {"scale": unit, "mean": IMAGENET_MEAN, "std": (1.0,)}
        yield {"scale": unit, "mean": CLIP_MEAN, "std": CLIP_STD}
        yield {"scale": 1.0, "mean": CAFFE_MEAN, "std": (1.0,)}


def better_guess(
    answers: Callable[[InputSpec, Images], NDArray[np.int64]],
    spec: InputSpec,
    images: Images,
    labels: NDArray[np.int64],
    *,
    given: NDArray[np.bool_],
    seed: int,
) -> Better | None:
    """Return the alternative with which the model answers clearly more images right, if any.

    Both answer the same images: of those that one answers right and the other wrong, nearly all
    must speak for the alternative (McNemar's exact test). All alternatives see a few images, and
    only those that are ahead see more: of some 30, nearly all have 24 passes.

    Args:
        answers: gives classes, int64 (N,), of images prepared as a specification says.
        spec: as it was given.
        images: uint8, (N, H, W, C).
        labels: int64, (N,).
        given: bool, (N,). Which of them the model answers right with what was given.
        seed: of the choice of images.
    """
    order = np.random.default_rng(seed).permutation(len(images))[: LOOKS[-1]]
    left = alternatives(spec)
    right: dict[InputSpec, NDArray[np.bool_]] = {}
    seen = np.empty(0, np.int64)
    for low, high in zip((0, *LOOKS), LOOKS, strict=False):
        rows = np.sort(order[low:high])
        if not left or not len(rows):
            break
        seen = np.concatenate([seen, rows])
        for tried in left:
            try:
                found = answers(tried, images[rows]) == labels[rows]
            except ModelError:
                found = np.zeros(len(rows), np.bool_)
            right[tried] = np.concatenate([right.get(tried, np.empty(0, np.bool_)), found])
        own = given[seen]
        least = own.sum() + (CLEARLY / 2 * len(own) if low else -GLANCE - 1)
        left = [tried for tried in left if right[tried].sum() > least]
        best = max(left, key=lambda tried: int(right[tried].sum()), default=spec)
        if left and _is_clear(own, right[best], CHANCE):
            return _better(best, own, right[best], is_clear=True)
    if left and _is_clear(own, right[best], LIKELY):
        return _better(best, own, right[best], is_clear=False)
    return None


def _better(
    spec: InputSpec, given: NDArray[np.bool_], right: NDArray[np.bool_], *, is_clear: bool
) -> Better:
    return Better(
        spec=spec,
        right=int(right.sum()),
        given=int(given.sum()),
        images=len(given),
        is_clear=is_clear,
    )


def _is_clear(given: NDArray[np.bool_], other: NDArray[np.bool_], most: float) -> bool:
    gained, lost = int((other & ~given).sum()), int((given & ~other).sum())
    if gained - lost < CLEARLY * len(given):
        return False
    n = gained + lost
    as_many = sum(math.comb(n, k) for k in range(gained, n + 1))
    return bool(as_many / 2**n < most)
