"""Pictures without labels: files, patterns and folders of them. N images."""

import glob
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from reluguard.detector.images import Images
from reluguard.training.data.folder import decode_file, is_picture, text_of
from reluguard.training.data.reading import Reading
from reluguard.training.errors import DataError

__all__ = ["Pictures", "find_pictures"]

_WILD = frozenset("*?[")


class Pictures:
    """Files that become images of one size, a few at a time.

    Args:
        files: in the order they are read.
        reading: how; must say which size and how many channels.
    """

    def __init__(self, files: list[Path], reading: Reading) -> None:
        self.files, self._reading = files, reading

    def __len__(self) -> int:
        return len(self.files)

    @property
    def names(self) -> list[str]:
        """Return where each came from, in words that can be printed."""
        return [text_of(file) for file in self.files]

    def batches(self, size: int) -> Iterator[Images]:
        """Yield images, uint8 (B, H, W, C), `size` or fewer at a time.

        Raises:
            DataError: a file does not decode.
        """
        for start in range(0, len(self.files), size):
            some = self.files[start : start + size]
            yield np.stack([decode_file(file, self._reading) for file in some])


def find_pictures(text: str) -> list[Path] | None:
    """Return the files that a word stands for, None where it stands for no loose pictures.

    A file of an image; a pattern like `photos/**/*.jpg`, of which files that are no images are left
    out; or a folder that holds images itself, where one that holds folders of them is a folder per
    class.

    Raises:
        DataError: a pattern that no image fits.
    """
    path = Path(text)
    if path.is_file():
        return [path] if is_picture(path) else None
    if path.is_dir():
        loose = sorted(file for file in path.iterdir() if is_picture(file))
        return loose or None
    if not _WILD & set(text):
        return None
    # of pathlib's, none takes a pattern that may begin at the root
    found = sorted(Path(one) for one in glob.glob(text, recursive=True))  # noqa: PTH207
    pictures = [file for file in found if is_picture(file)]
    if not pictures:
        what = f"{len(found)} files that are no images" if found else "nothing"
        raise DataError(f"expected images that {text!r} stands for, found {what}")
    return pictures
