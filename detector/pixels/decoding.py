"""From an encoded file to its pixels, whatever its colours, depth, alpha or orientation.

H rows, W columns, C channels.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image

from reluguard.detector.arrays import DAMAGE
from reluguard.detector.errors import ImageError, ImageTooLargeError
from reluguard.detector.pixels.resampling import Images, Library

__all__ = ["MAX_PIXELS", "OFFLINE", "SERVED", "claimed_pixels", "decode"]

MAX_PIXELS = 16_777_216
SERVED = ("JPEG", "PNG", "WEBP")
"""What a stranger may send: few readers, all of them hardened."""

OFFLINE = (*SERVED, "BMP", "GIF", "TIFF", "PPM")

_UNREADABLE: tuple[type[Exception], ...] = (*DAMAGE, Image.DecompressionBombError)
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# weights of red, green and blue in OpenCV's grey, what is added and how many bits are dropped: PNG
# by libpng's rgb_to_gray, WebP by cvtColor, the rest by its own older conversion
_GREY_OF = {"PNG": (9797, 19234, 3737, 0, 15), "WEBP": (9798, 19235, 3735, 1 << 14, 15)}
_GREY_OF_REST = (4899, 9617, 1868, 1 << 13, 14)


def decode(
    data: bytes,
    *,
    channels: int,
    orientation: bool,
    background: tuple[int, int, int] | None,
    library: Library = "pillow",
    max_pixels: int = MAX_PIXELS,
    formats: tuple[str, ...] = SERVED,
) -> Images:
    """Return an encoded image as uint8 (H, W, C), the first frame where it has several.

    16 bits become 8 by leaving the lower ones out. The header is read before any pixel, so an
    image of a claimed enormous size costs nothing.

    Args:
        data: the whole file.
        channels: 3 for RGB, 1 for luminance.
        orientation: whether to turn the image as its EXIF data says.
        background: the colour that transparent pixels lie over; None leaves alpha out.
        library: whose colours: OpenCV has grey of colour and colour of CMYK by rules of its own,
            all others have Pillow's.
        max_pixels: it may have at most.
        formats: Pillow's names of those that are read.

    Raises:
        ImageError: none of these formats, or broken.
        ImageTooLargeError: more than `max_pixels` pixels.
    """
    with _readable(formats, max_pixels), Image.open(io.BytesIO(data), formats=formats) as image:
        if image.width * image.height > max_pixels:
            raise ImageTooLargeError(
                f"expected at most {max_pixels} pixels, got {image.width} x {image.height}"
            )
        turn = _TURNS.get(_turned(image)) if orientation else None
        if library == "opencv":
            flat = _as_opencv(image, background, channels)
        else:
            flat = _flat(image, background).convert("L" if channels == 1 else "RGB")
        if turn is not None:
            flat = flat.transpose(turn)
        pixels = np.asarray(flat, dtype=np.uint8)
    return pixels.reshape(*pixels.shape[:2], channels)


def claimed_pixels(data: bytes, formats: tuple[str, ...] = SERVED) -> int:
    """Return how many pixels the file's header claims; 0 where there is none to read."""
    try:
        with Image.open(io.BytesIO(data), formats=formats) as opened:
            return opened.width * opened.height
    except _UNREADABLE:
        return 0  # decoding it says what is wrong


@contextmanager
def _readable(formats: tuple[str, ...], max_pixels: int) -> Iterator[None]:
    """Turn all that Pillow raises on what strangers send into an ImageError."""
    try:
        yield
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        size = re.search(r"\((\d+) pixels", str(error))
        raise ImageTooLargeError(
            f"expected at most {max_pixels} pixels, got {size[1] if size else 'more'}"
        ) from error
    except DAMAGE as error:
        names = [{"WEBP": "WebP"}.get(name, name) for name in formats]
        known = f"{', '.join(names[:-1])} or {names[-1]}" if len(names) > 1 else names[0]
        raise ImageError(f"expected a whole {known} image, got bytes that don't decode") from error


def _turned(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except DAMAGE:  # damaged EXIF data leaves the picture as it is
        return 1
    return value if isinstance(value, int) else 1


def _flat(image: Image.Image, background: tuple[int, int, int] | None) -> Image.Image:
    """Return the image in 8 bits and without alpha."""
    if image.mode.startswith("I"):
        return _eight_bits(image)
    if image.mode == "F":
        raise ImageError("expected 8 or 16 bits a channel, got an image of fractions")
    if not ("transparency" in image.info or image.mode in {"LA", "La", "PA", "RGBA", "RGBa"}):
        return image
    if background is None:
        # through RGBA, for Pillow warns of palettes with several transparent colours otherwise
        return image.convert("RGBA").convert("RGB") if image.mode in {"P", "PA"} else image
    clear = image.convert("RGBA")
    under = Image.new("RGBA", clear.size, (*background, 255))
    return Image.alpha_composite(under, clear).convert("RGB")


def _as_opencv(
    image: Image.Image, background: tuple[int, int, int] | None, channels: int
) -> Image.Image:
    """Return the image as `cv2.imread` has it, in colour or in grey, but for the order of colours.

    Source: OpenCV 4.14 and 5.0, modules/imgcodecs; equal in every pixel of the formats tried.
    """
    if channels == 1 and image.format == "JPEG":
        image.draft("L", image.size)  # the file's own luminance
    if image.mode == "CMYK":
        held = 255 - np.asarray(image).astype(np.int32)
        inks, black = held[..., :3], held[..., 3:]
        image = Image.fromarray((black - ((255 - inks) * black >> 8)).astype(np.uint8))
        weights = _GREY_OF_REST
    else:
        weights = _GREY_OF.get(image.format or "", _GREY_OF_REST)
        image = _flat(image, background)
    if channels == 3 or image.mode in {"1", "L", "LA", "La"}:
        return image.convert("L" if channels == 1 else "RGB")
    *factors, rounded, shift = weights
    grey = np.asarray(image.convert("RGB")).astype(np.int32) @ np.array(factors, np.int32)
    return Image.fromarray((grey + rounded >> shift).astype(np.uint8))


def _eight_bits(image: Image.Image) -> Image.Image:
    # convert("L") cuts 16-bit grey at 255, which leaves white
    values = np.asarray(image)
    if values.max(initial=0) > 0xFFFF or values.min(initial=0) < 0:
        raise ImageError("expected 8 or 16 bits a channel, got 32")
    return Image.fromarray((values >> 8).astype(np.uint8))
