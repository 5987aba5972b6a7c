"""What a secret decides: which rates a guard reads, and which of several judges sees an image."""

import hashlib
import hmac
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.images import Images
from reluguard.training.head.probes import Read, column_taps

__all__ = ["By", "hidden_columns", "picked"]

By = Literal["rates", "taps"]


def hidden_columns(
    taps: Sequence[Read], secret: str, share: float, by: By = "rates"
) -> NDArray[np.int64]:
    """Return which of the rates a guard of this secret reads, ascending: int64, (F,).

    Args:
        taps: all that could be read.
        secret: of the deployment.
        share: of the rates, or of the taps, in (0, 1].
        by: whether rates are drawn one by one, or whole taps.
    """
    digest = hashlib.sha256(f"{by} {secret}".encode()).digest()
    rng = np.random.default_rng(np.frombuffer(digest, np.uint32))
    of_rate = column_taps(taps)
    pool = len(of_rate) if by == "rates" else len(taps)
    drawn = rng.permutation(pool)[: max(1, round(share * pool))]
    if by == "rates":
        return np.sort(drawn)
    return np.flatnonzero(np.isin(of_rate, drawn))


def picked(images: Images, secret: str, judges: int) -> NDArray[np.int64]:
    """Return which of so many judges sees each image, int64 (N,): one changed pixel draws anew.

    Args:
        images: uint8, (N, H, W, C).
        secret: of the deployment.
        judges: how many there are.
    """
    key = secret.encode()
    digests = [hmac.digest(key, np.ascontiguousarray(image).data, "sha256") for image in images]
    return np.array([int.from_bytes(one[:8], "big") % judges for one in digests], np.int64)
