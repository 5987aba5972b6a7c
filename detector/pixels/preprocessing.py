"""Everything between a file and the model's tensor that the model itself does not say."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from reluguard.detector.errors import SettingsError
from reluguard.detector.pixels.pipeline import Pipeline

__all__ = ["Preprocessing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """How files become pixels, and pixels the model's input: (pixel * scale - mean) / std.

    Attributes:
        scale: 1 / 255 by default, or 1 for a model that takes uint8.
        mean: subtracted after scaling, one value or one for red, green and blue.
        std: divided by after that.
        bgr: whether the model wants blue first.
        files: from a file to pixels; None stretches it to the model's size.
        name: where this is from, for people.
    """

    scale: float | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    bgr: bool = False
    files: Pipeline | None = None
    name: str = ""

    def with_files(self, **changes: Any) -> "Preprocessing":
        """Return this with some settings of its pipeline changed."""
        return replace(self, files=replace(self.files or Pipeline(), **changes))

    def words(self) -> str:
        """Return what happens to pixels, for people."""
        scale = "1/255" if self.scale is None else f"{self.scale:.6g}"
        parts = [f"scale {scale}"]
        if set(self.mean) != {0.0}:
            parts.append(f"mean {', '.join(f'{v:g}' for v in self.mean)}")
        if set(self.std) != {1.0}:
            parts.append(f"std {', '.join(f'{v:g}' for v in self.std)}")
        if self.bgr:
            parts.append("blue first")
        return ", ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """Return plain values, as a file of one's own may hold them."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Preprocessing":
        """Undo `to_json`; what is not there keeps its default.

        Raises:
            SettingsError: a key is unknown, or a value has no meaning.
        """
        unknown = sorted(set(values) - set(cls.__dataclass_fields__))
        if unknown:
            raise SettingsError(f"unknown preprocessing settings: {', '.join(unknown)}")
        read = dict(values)
        for name in ("mean", "std"):
            if name in read:
                value = read[name]
                read[name] = tuple(value) if isinstance(value, list | tuple) else (float(value),)
        if read.get("files") is not None:
            read["files"] = Pipeline.from_json(read["files"])
        return cls(**read)
