"""What clean calibration images looked like inside the network, for drift to be measured against.

The layer rate of an image at a tap is the mean of its firing rates there: the share of the layer's
ReLUs that are on. N images, D rates, L taps, Q quantiles, K classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detector.errors import GuardError
from detector.taps import Tap

__all__ = ["KEY", "LEVELS", "Reference", "layer_rates", "read_reference", "reference_of"]

KEY = "reference"  # in a manifest's provenance
LEVELS = tuple(round(0.05 * step, 2) for step in range(1, 20))  # Q of them: .05, .10, ... .95


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """Distributions on the clean calibration images.

    Attributes:
        images: how many they were.
        layers: float64, (L, Q). Quantiles of each layer's rate, at LEVELS.
        classes: float64, (K,). The share of each predicted class.
    """

    images: int
    layers: NDArray[np.float64]
    classes: NDArray[np.float64]

    def to_json(self) -> dict[str, Any]:
        """Return plain values for the manifest."""
        return {
            "images": self.images,
            "layers": np.round(self.layers, 6).tolist(),
            "classes": np.round(self.classes, 6).tolist(),
        }


def layer_rates(rates: NDArray[Any], taps: Sequence[Tap]) -> NDArray[np.float32]:
    """Return each image's layer rates: float32, (N, L).

    Args:
        rates: (N, D), as the taps give them; of a tap with a second level the first counts.
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
    quantiles = np.quantile(layer_rates(rates, taps).astype(np.float64), LEVELS, axis=0)
    counts = np.bincount(logits.argmax(axis=1), minlength=logits.shape[1])
    return Reference(images=len(rates), layers=quantiles.T, classes=counts / len(rates))


def read_reference(provenance: Mapping[str, Any], taps: Sequence[Tap]) -> Reference | None:
    """Return the reference a guard's manifest keeps, or None from a guard without one.

    Raises:
        GuardError: it is damaged, or of other taps.
    """
    stored = provenance.get(KEY)
    if stored is None:
        return None
    try:
        images = int(stored["images"])
        layers = np.asarray(stored["layers"], np.float64)
        classes = np.asarray(stored["classes"], np.float64)
    except (KeyError, TypeError, ValueError) as error:
        raise GuardError(f"the guard's reference for drift is damaged: {error}") from error
    if layers.shape != (len(taps), len(LEVELS)) or classes.ndim != 1 or images < 1:
        raise GuardError(
            f"expected a reference of {len(taps)} taps at {len(LEVELS)} levels, "
            f"got {layers.shape} from {images} images"
        )
    return Reference(images=images, layers=layers, classes=classes)
