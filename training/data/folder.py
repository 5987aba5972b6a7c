"""A folder per class, read as the server reads files. N images, H rows, W columns, C channels."""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from reluguard.detector.allowance import available_cores
from reluguard.detector.arrays import DAMAGE
from reluguard.detector.errors import ImageError
from reluguard.detector.images import Images
from reluguard.detector.pixels.decoding import OFFLINE
from reluguard.training.data.mapped import empty_array, release
from reluguard.training.data.reading import Reading, stretched_words
from reluguard.training.errors import DataError

__all__ = [
    "Folder",
    "decode_file",
    "is_picture",
    "is_shown",
    "left_out_words",
    "read_folder",
    "text_of",
]

MAX_FILE_BYTES = 2**28
RELEASED_FILES = 256
MAX_PIXELS = 178_956_970  # one's own photographs: a panorama is no attack; above, Pillow warns
_SUFFIXES = (
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".ppm", ".pgm", ".pbm",
    ".pnm", ".webp", ".gif", ".tif", ".tiff",
)  # fmt: skip
# pictures that are not read: who has such must be told that they are missing
_OTHERS = (
    ".heic", ".heif", ".avif", ".jxl", ".jp2", ".j2k", ".psd", ".tga", ".ico", ".svg", ".exr",
    ".hdr", ".pfm", ".dng", ".cr2", ".nef", ".arw", ".raw", ".dcm", ".npy",
)  # fmt: skip
_GREY = {"1", "L", "LA", "La"}
_NO_ENDING = f"no file ends in {', '.join(_SUFFIXES)}"


class Folder:
    """What lies in a folder, by class.

    Attributes:
        root: the folder.
        names: of the classes, in alphabetical order: every folder that is not hidden.
        files: the images, with their class's place in `names`.
        words: what people should know of what is there beside.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.names = tuple(
            sorted(
                entry.name for entry in root.iterdir() if entry.is_dir() and is_shown(entry.name)
            )
        )
        found = [
            (file, place)
            for place, name in enumerate(self.names)
            for file in sorted((root / name).rglob("*"))
            if all(map(is_shown, file.relative_to(root).parts))
        ]
        self.files = [(file, place) for file, place in found if is_picture(file)]
        self.words = left_out_words(file for file, _ in found)
        if not self.files:
            raise DataError(
                f"expected one folder of images per class in {text_of(root)}, got no images"
                f"{self._instead()}"
            )

    def _instead(self) -> str:
        """Return what is there instead."""
        beside = list(self.root.iterdir())
        loose = sum(is_picture(file) for file in beside)
        if loose:
            return (
                f" in folders, only {loose} beside each other: put those of each class into a "
                "folder of its name"
            )
        if words := self.words or left_out_words(beside):
            return f": {words[0]}"
        if not self.names:
            return f": it holds no folder, and {_NO_ENDING}" if beside else ": it is empty"
        some = ", ".join(self.names[:3]) + (" and more" if len(self.names) > 3 else "")
        return f": in {some}, {_NO_ENDING}"


def read_folder(folder: Folder, reading: Reading) -> tuple[Images, tuple[str, ...]]:
    """Return the images of all files, and words on what was done to them.

    What takes 32 MiB or more lies in a file of the temporary folder, not in memory.

    Args:
        folder: what to read.
        reading: how.

    Returns:
        uint8, (N, H, W, C), and sentences for people.

    Raises:
        DataError: a file does not decode, or another size than the others has come of it.
    """
    files = [file for file, _ in folder.files]
    told = replace(reading, channels=reading.channels or _channels(files))
    first = decode_file(files[0], told)
    images: Images = empty_array((len(files), *first.shape), np.uint8)

    def place(row: int) -> bool:
        image = decode_file(files[row], told) if row else first
        if image.shape != first.shape:
            raise DataError(
                f"expected images of one size in {text_of(folder.root)}, got {first.shape} from "
                f"{text_of(files[0])} and {image.shape} from {text_of(files[row])}: say which size "
                "to resize to, by --preprocessing"
            )
        images[row] = image
        if row % RELEASED_FILES == 0:
            release(images)
        return reading.files is None and _size(files[row]) != first.shape[:2]

    odd = sum(_in_threads(place, range(len(files))))
    return images, (*folder.words, *stretched_words(odd, len(files), first.shape[:2]))


def decode_file(file: Path, reading: Reading) -> Images:
    """Return the image of a file, uint8 (H, W, C).

    Args:
        file: what to read.
        reading: how; must say how many channels.

    Raises:
        DataError: it does not decode, or can't be read.
    """
    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            raise DataError(f"expected images of at most 256 MiB, {text_of(file)} is larger")
        return reading.pipeline.decode(
            file.read_bytes(),
            channels=reading.channels or 3,
            max_pixels=MAX_PIXELS,
            formats=OFFLINE,
        )
    except ImageError as error:
        raise DataError(f"expected an image, {text_of(file)} does not decode: {error}") from error
    except OSError as error:
        raise DataError(f"expected an image, {text_of(file)} can't be read") from error


def is_picture(path: Path) -> bool:
    """Return whether a path is a file of an image by its name, and meant to be seen."""
    return path.suffix.lower() in _SUFFIXES and is_shown(path.name) and path.is_file()


def left_out_words(files: Iterable[Path]) -> tuple[str, ...]:
    """Return words on pictures among these files whose format is not read, if there are any."""
    left = [file.suffix.lower() for file in files if file.suffix.lower() in _OTHERS]
    if not left:
        return ()
    are = "file is" if len(left) == 1 else "files are"
    kinds = ", ".join(sorted(set(left)))
    return (f"{len(left)} {are} left out, for {kinds} is not read: convert to PNG or JPEG",)


def _in_threads(work: Callable[[int], bool], rows: Sequence[int]) -> list[bool]:
    with ThreadPoolExecutor(available_cores()) as pool:
        return list(pool.map(work, rows))


def is_shown(name: str) -> bool:
    """Return whether a file or folder is meant to be seen: not .ipynb_checkpoints or __MACOSX."""
    return not name.startswith((".", "__"))


def _channels(files: Sequence[Path]) -> int:
    """Return 1 where all files are grey, and otherwise 3."""
    for file in files:
        try:
            with Image.open(file, formats=OFFLINE) as image:
                if image.mode not in _GREY and not image.mode.startswith("I"):
                    return 3
        except DAMAGE:  # decoding it says what is wrong
            continue
    return 1


def _size(file: Path) -> tuple[int, int]:
    with Image.open(file, formats=OFFLINE) as image:
        return image.height, image.width


def text_of(path: Path) -> str:
    """Return a path that can be printed, whatever bytes its name is made of."""
    return os.fsencode(path).decode("utf-8", "replace")
