"""What the networks see: scikit-learn's digits in colour, or photographs of yours. N images."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from reluguard.detector.images import InputSpec
from reluguard.training.data.dataset import Dataset, load_data, save_dataset
from reluguard.training.data.folder import Folder
from reluguard.training.data.preprocessing import given_preprocessing
from reluguard.training.data.reading import Reading

__all__ = ["PARTS", "Parts", "digits", "digits_in_parts", "photographs_in_parts"]

PARTS = ("train", "fit", "judge")
"""What the last layer is fitted on, what the guard is, and what neither saw."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Where images of each part lie, as `load_data` takes it.

    Attributes:
        places: by name of `PARTS`.
        side: of the pixels that go into the network.
        preprocessing: from files to its input, as `fit` takes it.
    """

    places: Mapping[str, Path]
    side: int
    preprocessing: str | None = None

    def read(self, part: str) -> Dataset:
        """Return the images of a part as the network's pipeline makes them."""
        size = (self.side, self.side)
        how = given_preprocessing(self.preprocessing, size)
        return load_data(str(self.places[part]), Reading(files=how.files, size=size, channels=3))

    def taught(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return tensors and labels that a network's last layer is fitted to.

        Of digits those to train on. What random weights see in photographs tells too little: there
        it is fitted to all of them and to their mirror images, so that it answers them right and
        agrees with itself as trained networks do. Whether all works can be seen of such a network,
        how well can't.
        """
        if self.preprocessing is None:
            return self.tensor(PARTS[0]), self.read(PARTS[0]).labels
        tensors = np.concatenate([self.tensor(part) for part in PARTS])
        labels = np.concatenate([self.read(part).labels for part in PARTS])
        return np.concatenate([tensors, tensors[..., ::-1]]), np.concatenate([labels, labels])

    @property
    def ridge(self) -> float:
        """How strongly that fit is held back."""
        return 1e-2 if self.preprocessing is None else 1e-4

    def tensor(self, part: str) -> NDArray[np.float32]:
        """Return them as they go into the network: float32, (N, 3, side, side)."""
        how = given_preprocessing(self.preprocessing, (self.side, self.side))
        spec = InputSpec(
            name="image", height=self.side, width=self.side, channels=3, mean=how.mean, std=how.std,
            bgr=how.bgr, scale=1 / 255 if how.scale is None else how.scale,
        )  # fmt: skip
        return np.asarray(spec.to_tensor(self.read(part).images), np.float32)


def digits(side: int) -> Dataset:
    """Return scikit-learn's digits in colour: uint8 (1797, side, side, 3)."""
    from sklearn.datasets import load_digits

    found = load_digits()
    grey = np.round(found.images * (255 / 16)).astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(grey))
    tints = np.random.default_rng(1).uniform(0.4, 1, (len(grey), 1, 1, 3))
    images = np.empty((len(grey), side, side, 3), np.uint8)
    for row, image in enumerate(grey):
        large = Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)
        images[row] = np.round(np.asarray(large)[..., None] * tints[row])
    return Dataset(
        images=images[order], labels=found.target[order].astype(np.int64), source="sklearn digits"
    )


def digits_in_parts(folder: Path, side: int, counts: Mapping[str, int]) -> Parts:
    """Return so many digits of each part, in files of a folder."""
    folder = folder / f"{_counted(counts)}-{side}"
    places = {part: folder / f"{part}.npz" for part in PARTS}
    if not all(place.exists() for place in places.values()):
        folder.mkdir(parents=True, exist_ok=True)
        data, start = digits(side), 0
        for part, place in places.items():
            save_dataset(data.take(np.arange(start, start + counts[part])), place)
            start += counts[part]
    return Parts(places=places, side=side)


def _counted(counts: Mapping[str, int]) -> str:
    """Return a name of parts: what one holds goes by how many the others took."""
    return "-".join(str(counts[part]) for part in PARTS)


def photographs_in_parts(
    source: Path, folder: Path, side: int, counts: Mapping[str, int], preprocessing: str | None
) -> Parts:
    """Return so many photographs of each part, copied from a folder per class.

    Each class has about as many of a part as another.
    """
    folder = folder / _counted(counts)
    places = {part: folder / part for part in PARTS}
    if not all(place.exists() for place in places.values()):
        by_class: dict[int, list[Path]] = {}
        for file, label in Folder(source).files:
            by_class.setdefault(label, []).append(Path(file))
        for files in by_class.values():
            np.random.default_rng(0).shuffle(files)
        deepest = max(map(len, by_class.values()))
        turns = [
            files[turn]
            for turn in range(deepest)
            for files in by_class.values()
            if turn < len(files)
        ]
        wanted = sum(counts[part] for part in PARTS)
        if len(turns) < wanted:
            raise SystemExit(f"expected {wanted} photographs in {source}, it has {len(turns)}")
        start = 0
        for part, place in places.items():
            making = place.with_name(f"{place.name}.making")
            shutil.rmtree(making, ignore_errors=True)
            for file in turns[start : start + counts[part]]:
                (making / file.parent.name).mkdir(parents=True, exist_ok=True)
                shutil.copy(file, making / file.parent.name / file.name)
            start += counts[part]
            shutil.rmtree(place, ignore_errors=True)
            making.rename(place)
    return Parts(places=places, side=side, preprocessing=preprocessing)
