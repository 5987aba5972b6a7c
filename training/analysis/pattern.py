"""Bit patterns: which ReLUs fired. N images, B bits, W = ceil(B / 8) bytes.

A bit is `relu_output > 0`, so a pre-activation of exactly zero counts as off.
"""

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.errors import SettingsError

__all__ = ["hamming", "pack", "unpack"]


def pack(active: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return bits packed eight to a byte, first bit highest: uint8, (N, W).

    Bits past the last one are zero, so that `hamming` never counts them.

    Args:
        active: bool, (N, B).

    Raises:
        SettingsError: not a boolean matrix.
    """
    if active.dtype != np.bool_ or active.ndim != 2:
        raise SettingsError(
            f"expected bool bits of shape (N, B), got {active.dtype} {active.shape}"
        )
    return np.packbits(active, axis=1)


def unpack(packed: NDArray[np.uint8], bits: int) -> NDArray[np.bool_]:
    """Return bool, (N, bits): what `pack` was given.

    Raises:
        SettingsError: the bytes can't hold exactly this many bits.
    """
    _check_packed(packed)
    if packed.shape[1] != -(-bits // 8):
        raise SettingsError(
            f"expected {-(-bits // 8)} bytes for {bits} bits, got {packed.shape[1]}"
        )
    return np.unpackbits(packed, axis=1, count=bits).astype(np.bool_)


def hamming(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return in how many bits each row of `a` differs from the same row of `b`: int64, (N,).

    Args:
        a: uint8, (N, W), packed.
        b: uint8, (N, W) or (1, W), packed.

    Raises:
        SettingsError: the widths differ, or the rows don't match up.
    """
    _check_packed(a)
    _check_packed(b)
    if a.shape[1] != b.shape[1] or len(b) not in {1, len(a)}:
        raise SettingsError(f"expected patterns of one shape, got {a.shape} and {b.shape}")
    counts: NDArray[np.int64] = np.bitwise_count(a ^ b).sum(axis=1, dtype=np.int64)
    return counts


def _check_packed(packed: NDArray[np.uint8]) -> None:
    if packed.dtype != np.uint8 or packed.ndim != 2:
        got = f"{packed.dtype} {packed.shape}"
        raise SettingsError(f"expected packed uint8 patterns of shape (N, W), got {got}")
