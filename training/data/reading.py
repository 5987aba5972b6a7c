"""How the files of a data set become images: the same way as when they are served."""

from dataclasses import dataclass

from reluguard.detector.artifact import Manifest
from reluguard.detector.images import InputSpec
from reluguard.detector.model import Production
from reluguard.detector.pixels.pipeline import Pipeline, Resize
from reluguard.detector.pixels.preprocessing import Preprocessing

__all__ = ["Reading", "stretched_words"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What is known of the images before the first is read.

    Attributes:
        files: from a file to pixels; None stretches it to `size`, or leaves it where that is None.
        size: (H, W) that the model takes.
        channels: 3 or 1; None takes what the files have.
    """

    files: Pipeline | None = None
    size: tuple[int, int] | None = None
    channels: int | None = None

    @property
    def pipeline(self) -> Pipeline:
        """What happens to each file."""
        if self.files is not None:
            return self.files
        if self.size is None:
            return Pipeline()
        return Pipeline(resize=Resize(height=self.size[0], width=self.size[1]))

    @classmethod
    def of(cls, spec: InputSpec) -> "Reading":
        """Return how a model's images are read."""
        return cls(files=spec.files, size=(spec.height, spec.width), channels=spec.channels)

    @classmethod
    def of_guard(cls, manifest: Manifest) -> "Reading":
        """Return how the images of a guard are read."""
        return cls.of(manifest.input)

    @classmethod
    def for_model(cls, production: Production, how: Preprocessing) -> "Reading":
        """Return how images of a model without a guard are read."""
        return cls(files=how.files, size=production.image_size, channels=production.image_channels)


def stretched_words(odd: int, count: int, size: tuple[int, ...], what: str = "file") -> list[str]:
    """Return words on images that were stretched although nobody said how they are resized.

    Args:
        odd: how many were.
        count: of how many.
        size: (H, W) that they have now.
        what: one of them is called.
    """
    if not odd:
        return []
    h, w = size
    word = (
        f"{odd} of {count} {what}s are not {h} x {w} and were stretched to it: where your own "
        "pipeline cuts or pads them, fit with its --preprocessing"
    )
    return [word]
