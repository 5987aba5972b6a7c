"""What clean calibration images looked like inside the network, for drift to be measured against.

The layer rate of an image at a tap is the mean of its firing rates there: the share of the layer's
ReLUs that are on. N images, D rates, L taps, K classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.errors import GuardError
from reluguard.detector.taps import Tap

__all__ = ["KEY", "Histogram", "Reference", "layer_rates", "read_reference", "reference_of"]

KEY = "reference"  # in a manifest's provenance
LEVELS = tuple(round(0.05 * step, 2) for step in range(1, 20))

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """B bins between B - 1 edges, the outer two open: `shares` (B,) of the images fall into each.

    A value equal to an edge falls below it.
    """

    edges: Floats
    shares: Floats

    def __post_init__(self) -> None:
        fits = self.edges.ndim == self.shares.ndim == 1 and len(self.shares) == len(self.edges) + 1
        if not fits or not (np.diff(self.edges) > 0).all() or not (self.shares >= 0).all():
            raise GuardError("expected ascending edges and one share more than edges")

    @classmethod
    def of(cls, values: Floats) -> "Histogram":
        """Return the histogram of these values, (N,), between twentieths of them."""
        edges = np.unique(np.round(np.quantile(values, LEVELS), 7))
        empty = cls(edges=edges, shares=np.zeros(len(edges) + 1))
        return cls(edges=edges, shares=np.round(empty.count(values), 7))

    def count(self, values: Floats, weight: Floats | None = None) -> Floats:
        """Return the share of these values, (N,), weighted by (N,), in each bin: (B,)."""
        counts = np.bincount(np.searchsorted(self.edges, values), weight, len(self.edges) + 1)
        shares: Floats = counts / counts.sum()
        return shares


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """Distributions on the clean calibration images.

    Attributes:
        images: how many they were.
        layers: one histogram of layer rates per tap.
        classes: float64, (K,). The share of each predicted class.
    """

    images: int
    layers: tuple[Histogram, ...]
    classes: Floats

    def to_json(self) -> dict[str, Any]:
        """Return plain values for the manifest."""
        return {
            "images": self.images,
            "layers": [
                {"edges": layer.edges.tolist(), "shares": layer.shares.tolist()}
                for layer in self.layers
            ],
            "classes": np.round(self.classes, 7).tolist(),
        }


def layer_rates(rates: NDArray[Any], taps: Sequence[Tap]) -> NDArray[np.float32]:
    """Return each image's layer rates: float32, (N, L).

    Args:
        rates: (N, D), as the taps give them; of a tap with several levels the first counts.
        taps: L of them.
    """
    starts = np.cumsum([0, *(tap.rates for tap in taps[:-1])])
    means = [
        rates[:, start : start + tap.channels].astype(np.float32).mean(axis=1)
        for start, tap in zip(starts, taps, strict=True)
    ]
    return np.stack(means, axis=1)


def reference_of(rates: NDArray[Any], logits: NDArray[Any], taps: Sequence[Tap]) -> Reference:
    """Return the reference of clean readings: rates (N, D), logits (N, K), at these taps."""
    values = layer_rates(rates, taps).astype(np.float64)
    counts = np.bincount(logits.argmax(axis=1), minlength=logits.shape[1])
    return Reference(
        images=len(rates),
        layers=tuple(Histogram.of(column) for column in values.T),
        classes=counts / len(rates),
    )


def read_reference(provenance: Mapping[str, Any], taps: Sequence[Tap]) -> Reference | None:
    """Return the reference a guard's manifest keeps, or None from a guard without one.

    Raises:
        GuardError: it is damaged, or of other taps.
    """
    stored = provenance.get(KEY)
    if stored is None:
        return None
    try:
        reference = Reference(
            images=int(stored["images"]),
            layers=tuple(
                Histogram(
                    edges=np.asarray(layer["edges"], np.float64),
                    shares=np.asarray(layer["shares"], np.float64),
                )
                for layer in stored["layers"]
            ),
            classes=np.asarray(stored["classes"], np.float64),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise GuardError(f"the guard's reference for drift is damaged: {error}") from error
    if len(reference.layers) != len(taps) or reference.classes.ndim != 1 or reference.images < 1:
        raise GuardError(
            f"expected a reference of {len(taps)} taps, got one of {len(reference.layers)} from "
            f"{reference.images} images"
        )
    return reference
