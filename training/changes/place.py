"""Where in the picture things are: resized, cropped, padded, stretched, turned. N images.

Measures are shares of the side, so that they suit images of any size. What a move uncovers is the
picture mirrored at its edge, as a photograph would go on.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from PIL import Image

from reluguard.detector.images import Images
from reluguard.training.changes.base import Change, check_positive, check_share, each_picture
from reluguard.training.errors import AttackError

__all__ = ["Crop", "Fill", "Filter", "Pad", "Resize", "Rotate", "Stretch"]

Filter = Literal["nearest", "bilinear", "bicubic", "lanczos", "area"]
Fill = Literal["grey", "black", "white", "edge"]

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "area": Image.Resampling.BOX,
}
_LEVELS = {"grey": 114, "black": 0, "white": 255}  # grey as the YOLO family letterboxes
_MOST_DEGREES = 45


@dataclass(frozen=True, kw_only=True)
class Resize(Change):
    """Brought to `share` of the side and back, both by one of Pillow's filters; `area` is its box.

    A share above one enlarges first. Pillow widens its filters when it shrinks: antialias.
    """

    share: float = 0.5
    by: Filter = "bilinear"

    def __post_init__(self) -> None:
        check_positive(self.share, "share")
        if self.by not in get_args(Filter):
            raise AttackError(
                f"expected a filter of {', '.join(get_args(Filter))}, got {self.by!r}"
            )

    @property
    def name(self) -> str:
        """As `resize-0.5-bilinear`."""
        return f"resize-{self.share:g}-{self.by}"

    def apply(self, images: Images, generator: np.random.Generator) -> Images:
        """Resize each image twice."""
        del generator
        h, w = images.shape[1:3]
        size, form = (max(1, round(w * self.share)), max(1, round(h * self.share))), self.by
        return each_picture(
            images, lambda one: one.resize(size, _FILTERS[form]).resize((w, h), _FILTERS[form])
        )


@dataclass(frozen=True, kw_only=True)
class Crop(Change):
    """A window of `keep` of the side anywhere in the picture, enlarged to all of it, bilinear.

    With .86 the middle moves by up to 7 % of the side.
    """

    keep: float = 0.9

    def __post_init__(self) -> None:
        check_share(self.keep)

    @property
    def name(self) -> str:
        """As `crop-0.9`."""
        return f"crop-{self.keep:g}"

    def apply(self, images: Images, generator: np.random.Generator) -> Images:
        """Draw a window for each image."""
        h, w = images.shape[1:3]
        places = iter(generator.random((len(images), 2)).tolist())

        def cut(picture: Image.Image) -> Image.Image:
            top, left = (place * (1 - self.keep) for place in next(places))
            return _window(picture, (left * w, top * h, self.keep * w, self.keep * h))

        return each_picture(images, cut)


@dataclass(frozen=True, kw_only=True)
class Stretch(Change):
    """Made `ratio` times as wide for its height, the middle kept: a picture of another shape.

    4/3 shows what a photograph of 3:4 looks like that was stretched to a square; below one it is
    the height that grows. Bilinear.
    """

    ratio: float = 4 / 3

    def __post_init__(self) -> None:
        check_positive(self.ratio, "ratio")

    @property
    def name(self) -> str:
        """As `stretch-1.33`."""
        return f"stretch-{self.ratio:.3g}"

    def apply(self, images: Images, generator: np.random.Generator) -> Images:
        """Enlarge the middle of one axis."""
        del generator
        h, w = images.shape[1:3]
        wide, high = w / max(1.0, self.ratio), h * min(1.0, self.ratio)
        window = ((w - wide) / 2, (h - high) / 2, wide, high)
        return each_picture(images, lambda picture: _window(picture, window))


@dataclass(frozen=True, kw_only=True)
class Pad(Change):
    """Shrunk to shares of the height and width, in the middle of a plain frame: a letterbox.

    `down` of .75 and `across` of 1 is a photograph of 4:3 in a square. The frame is grey (114),
    black, white, or the picture's own edge drawn out.
    """

    down: float = 0.75
    across: float = 1.0
    fill: Fill = "grey"

    def __post_init__(self) -> None:
        check_share(self.down)
        check_share(self.across)
        if self.fill not in get_args(Fill):
            raise AttackError(f"expected a fill of {', '.join(get_args(Fill))}, got {self.fill!r}")

    @property
    def name(self) -> str:
        """As `pad-0.75-1-grey`: down, across, fill."""
        return f"pad-{self.down:g}-{self.across:g}-{self.fill}"

    def apply(self, images: Images, generator: np.random.Generator) -> Images:
        """Shrink and frame."""
        del generator
        h, w = images.shape[1:3]
        rows, columns = max(1, round(h * self.down)), max(1, round(w * self.across))
        top, left = (h - rows) // 2, (w - columns) // 2
        edges = ((top, h - rows - top), (left, w - columns - left))

        def frame(picture: Image.Image) -> Image.Image:
            small = np.asarray(picture.resize((columns, rows), Image.Resampling.BILINEAR))
            around = edges if small.ndim == 2 else (*edges, (0, 0))
            if self.fill == "edge":
                return Image.fromarray(np.pad(small, around, mode="edge"))
            level = _LEVELS[self.fill]
            return Image.fromarray(np.pad(small, around, constant_values=level))

        return each_picture(images, frame)


@dataclass(frozen=True, kw_only=True)
class Rotate(Change):
    """Turned about its middle by `degrees`, against the clock where positive, bicubic."""

    degrees: float = 2.0

    def __post_init__(self) -> None:
        if not abs(self.degrees) <= _MOST_DEGREES:
            raise AttackError(
                f"expected at most {_MOST_DEGREES} degrees either way, got {self.degrees}"
            )

    @property
    def name(self) -> str:
        """As `rotate-2`."""
        return f"rotate-{self.degrees:g}"

    def apply(self, images: Images, generator: np.random.Generator) -> Images:
        """Turn each image with a mirrored rim, and cut the rim off."""
        del generator
        h, w = images.shape[1:3]
        rim = max(h, w) // 2
        wide = np.pad(images, ((0, 0), (rim, rim), (rim, rim), (0, 0)), mode="symmetric")
        turned = each_picture(wide, lambda one: one.rotate(self.degrees, Image.Resampling.BICUBIC))
        return turned[:, rim : rim + h, rim : rim + w]


def _window(picture: Image.Image, window: tuple[float, float, float, float]) -> Image.Image:
    """Return a window of the picture, left, top, width and height in pixels, at full size."""
    left, top, width, height = window
    box = (left, top, left + width, top + height)
    return picture.resize(picture.size, Image.Resampling.BILINEAR, box=box)
