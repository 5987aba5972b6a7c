"""Streams of questions: of attacks that ask, and honest ones. T questions of (H, W, C) pixels.

Attacks are run one image at a time, so their questions come in the order they were thought of.
Honest streams are made of photographs: a window that moves over one, a still camera with noise and
light of its own, one image sent again and again, different images of one class.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from reluguard.detector.images import Images
from reluguard.training.attacks import Attack, HopSkipJump, Square
from reluguard.training.attacks.victim import Victim
from reluguard.training.red_team.deciding import FromPictures

__all__ = ["HONEST", "Stream", "attack_streams", "honest_streams", "photographs"]

Predict = Callable[[Images], NDArray[np.float32]]
HONEST = (
    "pan, 4 pixels a frame",
    "pan, 1 pixel a frame",
    "pan, 1/4 pixel a frame",
    "zoom",
    "still camera",
    "still scene, something moves",
    "retries",
    "one class",
    "any class",
    "re-encoded",
)
_NOISE = 2.0  # standard deviation, in 8-bit steps, of a camera's own noise
_RETRIES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """One caller's questions in order: `images` uint8 (T, H, W, C)."""

    kind: str
    images: Images


def photographs(folder: str | None, most: int) -> list[Images]:
    """Return colour photographs, uint8 (H, W, 3): of a folder, or known samples."""
    if folder is not None:
        from pathlib import Path

        files = sorted(
            path
            for path in Path(folder).rglob("*")
            if path.suffix.lower() in {".jpg", ".jpeg", ".png"}
        )
        step = max(1, len(files) // most)
        return [np.asarray(Image.open(path).convert("RGB")) for path in files[::step][:most]]
    from skimage import data
    from sklearn.datasets import load_sample_images

    named = ["astronaut", "chelsea", "coffee", "rocket"]
    found = [*load_sample_images().images, *(getattr(data, name)() for name in named)]
    return [np.ascontiguousarray(photograph[..., :3]) for photograph in found][:most]


def attack_streams(
    images: Images,
    labels: NDArray[np.int64],
    pictures: Images,
    predict: Predict,
    *,
    queries: int,
    steps: int,
    seed: int,
) -> Iterator[Stream]:
    """Yield what each attack asks for each image.

    Args:
        images: uint8 (N, H, W, C). Those attacked.
        labels: int64 (N,). Their classes.
        pictures: what attackers start from who start from pictures.
        predict: who is asked: uint8 (M, H, W, C) to class scores (M, K).
        queries: most of Square.
        steps: of HopSkipJump.
        seed: of all chance.
    """
    attacks: list[tuple[str, Attack]] = [
        ("Square, 8/255", Square(size=8, most_queries=queries)),
        ("Square, 4/255", Square(size=4, most_queries=queries)),
        ("HopSkipJump from noise", HopSkipJump(steps=steps)),
        ("HopSkipJump from pictures", FromPictures(pictures=pictures, steps=steps)),
    ]
    for name, attack in attacks:
        for i in range(len(images)):
            asked: list[Images] = []

            def heard(batch: Images, asked: list[Images] = asked) -> NDArray[np.float32]:
                asked.append(batch)
                return predict(batch)

            attack(
                images[i : i + 1], labels[i : i + 1], Victim(predict=heard), seed=seed + i, batch=1
            )
            yield Stream(kind=name, images=np.concatenate(asked))


def honest_streams(
    photos: Sequence[Images],
    sets: tuple[Images, NDArray[np.int64]],
    *,
    size: int,
    length: int,
    seed: int,
) -> Iterator[Stream]:
    """Yield honest streams.

    Args:
        photos: photographs, uint8 (H, W, 3) each.
        sets: images of the network's own kind and their labels.
        size: of the network's images, in pixels.
        length: questions of each stream.
        seed: of all chance.
    """
    rng = np.random.default_rng(seed)
    for photo in photos:
        for kind, speed in (("4 pixels", 4.0), ("1 pixel", 1.0), ("1/4 pixel", 0.25)):
            yield Stream(kind=f"pan, {kind} a frame", images=_pan(photo, size, length, speed, rng))
        yield Stream(kind="zoom", images=_zoom(photo, size, length, rng))
        yield Stream(kind="still camera", images=_still(photo, size, length, rng))
        yield Stream(
            kind="still scene, something moves", images=_busy(photo, photos, size, length, rng)
        )
        yield Stream(kind="re-encoded", images=_encoded(photo, size, length))
    images, labels = sets
    for label in np.unique(labels):
        mine = rng.permutation(np.flatnonzero(labels == label))[:length]
        yield Stream(kind="one class", images=images[mine])
        few = images[mine[: max(1, length // _RETRIES)]]
        yield Stream(kind="retries", images=np.concatenate([few] * _RETRIES))
        yield Stream(kind="any class", images=images[rng.permutation(len(images))[:length]])


def _view(photo: Images, left: float, top: float, side: float, size: int) -> Images:
    box = (left, top, left + side, top + side)
    found = Image.fromarray(photo).resize((size, size), Image.Resampling.BOX, box=box)
    return np.asarray(found)


def _noisy(frame: Images, rng: np.random.Generator) -> Images:
    return np.asarray(
        np.clip(np.rint(frame + rng.normal(0, _NOISE, frame.shape)), 0, 255), np.uint8
    )


def _path(most: float, length: int, step: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return positions in [0, most] a step apart, turned back at the ends."""
    walked = rng.uniform(0, 2 * most) + step * np.arange(length)
    turned: NDArray[np.float64] = np.abs((walked % (2 * most)) - most)
    return turned


def _pan(photo: Images, size: int, length: int, speed: float, rng: np.random.Generator) -> Images:
    """A window of half the photograph that moves so many of the network's pixels a frame."""
    side = min(photo.shape[:2]) / 2
    step = speed * side / size
    across = _path(photo.shape[1] - side, length, step * 0.8, rng)
    down = _path(photo.shape[0] - side, length, step * 0.6, rng)
    return np.stack(
        [_noisy(_view(photo, x, y, side, size), rng) for x, y in zip(across, down, strict=True)]
    )


def _zoom(photo: Images, size: int, length: int, rng: np.random.Generator) -> Images:
    whole = min(photo.shape[:2])
    sides = whole / 4 + _path(whole * 3 / 4, length, whole * 3 / 4 / 60, rng)
    frames = [
        _view(photo, (photo.shape[1] - side) / 2, (photo.shape[0] - side) / 2, side, size)
        for side in sides
    ]
    return np.stack([_noisy(frame, rng) for frame in frames])


def _still(photo: Images, size: int, length: int, rng: np.random.Generator) -> Images:
    side = min(photo.shape[:2])
    frame = _view(photo, 0, 0, side, size).astype(np.float64)
    light = 1 + 0.03 * np.sin(np.arange(length) / 25)
    return np.stack([_noisy(frame * gain, rng) for gain in light])


def _busy(
    photo: Images, photos: Sequence[Images], size: int, length: int, rng: np.random.Generator
) -> Images:
    """A still camera; something of a third of the view's side walks through, again and again."""
    frames = _still(photo, size, length, rng)
    other = photos[int(rng.integers(len(photos)))]
    side = size // 3
    thing = _view(other, 0, 0, min(other.shape[:2]), side)
    for t, x in enumerate(_path(size - side, length, 1.0, rng)):
        top = int(size / 2 + side / 2 * np.sin(t / 40)) - side // 2
        frames[t, top : top + side, int(x) : int(x) + side] = thing
    return frames


def _encoded(photo: Images, size: int, length: int) -> Images:
    """One picture as clients send it again: at another quality, cut by some pixels more."""
    from io import BytesIO

    found = []
    whole = min(photo.shape[:2])
    for t in range(min(length, 60)):
        cut = (t % 6) * whole / 200
        view = Image.fromarray(_view(photo, cut, cut, whole - 2 * cut, size))
        data = BytesIO()
        view.save(data, "jpeg", quality=95 - (t // 6) * 5)
        found.append(np.asarray(Image.open(data)))
    return np.stack(found)
