"""How alike bit patterns are, all pairs. N and M images, B bits, W = ceil(B / 8) bytes.

Everything without weights follows from the Hamming counts, so those are made once: XOR and
`np.bitwise_count` in tiles that stay in the cache. Measured (`benchmarks/hamming.py`) this beats a
BLAS product of the unpacked bits, which is what weighted similarity still needs.
"""

import numpy as np
from numpy.typing import NDArray

from reluguard.training.analysis.checks import (
    Floats,
    Ints,
    Packed,
    check_labels,
    check_memory,
    check_packed,
    check_rows,
)
from reluguard.training.errors import ConstantError, ShapeError

__all__ = [
    "Counts",
    "bit_counts",
    "bit_rates",
    "class_weights",
    "cosine_similarity",
    "hamming_counts",
    "hamming_similarity",
    "jaccard_similarity",
    "overlaps",
    "weighted_similarity",
]

Counts = NDArray[np.int32]

_TILE_WORDS = 1024  # 8 KiB per pattern: a tile of 32 patterns and its counts fit a 512 KiB cache
_TILE = 32 * 1024
_UNPACK_BITS = 4096


def hamming_counts(a: Packed, b: Packed | None = None) -> Counts:
    """Return in how many bits each pattern of `a` differs from each of `b`: int32, (N, M).

    Exact. Beside the result it takes a few tiles of memory.

    Args:
        a: uint8, (N, W), packed.
        b: uint8, (M, W); by default `a`, and only half of the pairs is counted.

    Raises:
        ShapeError: not packed patterns, or of another width.
        OutOfMemoryError: the (N, M) result would not fit.
    """
    check_packed(a)
    if b is not None:
        check_packed(b)
        if a.shape[1] != b.shape[1]:
            raise ShapeError(f"expected patterns of one width, got {a.shape} and {b.shape}")
    columns = len(a if b is None else b)
    check_memory(4 * len(a) * columns, f"a distance matrix of {len(a)} x {columns} images")
    out = np.zeros((len(a), columns), np.int32)
    for start in range(0, a.shape[1], 8 * _TILE_WORDS):
        left = _words(a[:, start : start + 8 * _TILE_WORDS])
        right = left if b is None else _words(b[:, start : start + 8 * _TILE_WORDS])
        _add_counts(out, left, right, symmetric=b is None)
    if b is None:
        lower = np.tril_indices(len(a), -1) if len(a) <= 256 else None
        if lower is not None:
            out[lower] = out.T[lower]
        else:
            _mirror(out)
    return out


def _words(packed: Packed) -> NDArray[np.uint64]:
    padding = -packed.shape[1] % 8
    if padding:
        packed = np.pad(packed, ((0, 0), (0, padding)))
    return np.ascontiguousarray(packed).view(np.uint64)


def _add_counts(
    out: Counts, left: NDArray[np.uint64], right: NDArray[np.uint64], *, symmetric: bool
) -> None:
    width = left.shape[1]
    rows = max(1, _TILE // width)
    different = np.empty((rows, width), np.uint64)
    ones = np.empty((rows, width), np.uint8)
    for j in range(0, len(right), rows):
        tile = right[j : j + rows]
        d, c = different[: len(tile)], ones[: len(tile)]
        for i in range(min(j + rows, len(left)) if symmetric else len(left)):
            np.bitwise_xor(left[i], tile, out=d)
            np.bitwise_count(d, out=c)
            out[i, j : j + rows] += c.sum(axis=1, dtype=np.int32)


def _mirror(out: Counts, block: int = 256) -> None:
    for i in range(0, len(out), block):
        corner = out[i : i + block, i : i + block]
        corner[:] = np.triu(corner) + np.triu(corner, 1).T
        out[i + block :, i : i + block] = out[i : i + block, i + block :].T


def bit_counts(packed: Packed) -> Ints:
    """Return how many bits are on in each pattern: int64, (N,)."""
    check_packed(packed)
    counts: Ints = np.bitwise_count(packed).sum(axis=1, dtype=np.int64)
    return counts


def bit_rates(packed: Packed, bits: int) -> NDArray[np.float32]:
    """Return in which share of the images each bit is on: float32, (B,)."""
    check_packed(packed, bits)
    total = np.zeros(packed.shape[1] * 8, np.int64)
    for start in range(0, len(packed), 256):
        total += np.unpackbits(packed[start : start + 256], axis=1).sum(axis=0, dtype=np.int64)
    return (total[:bits] / len(packed)).astype(np.float32)


def hamming_similarity(counts: NDArray[np.integer], bits: int) -> NDArray[np.float32]:
    """Return the share of equal bits, in [0, 1]: 1 - counts / bits."""
    if bits < 1:
        raise ShapeError(f"expected one or more bits, got {bits}")
    return (1 - counts / np.float32(bits)).astype(np.float32)


def overlaps(counts: NDArray[np.integer], on_a: Ints, on_b: Ints | None = None) -> Ints:
    """Return how many bits are on in both patterns: int64, (N, M). The Gram matrix of the bits.

    Args:
        counts: (N, M), from `hamming_counts`.
        on_a: (N,), from `bit_counts`.
        on_b: (M,); by default `on_a`.
    """
    other = on_a if on_b is None else on_b
    if counts.shape != (len(on_a), len(other)):
        raise ShapeError(
            f"expected counts of shape ({len(on_a)}, {len(other)}), got {counts.shape}"
        )
    both: Ints = (on_a[:, None] + other[None, :] - counts) // 2
    return both


def jaccard_similarity(
    counts: NDArray[np.integer], on_a: Ints, on_b: Ints | None = None
) -> NDArray[np.float32]:
    """Return bits on in both by bits on in either, in [0, 1]; two empty patterns are alike.

    Unlike Hamming similarity it ignores bits that are off in both, of which deep layers have many.
    """
    both = overlaps(counts, on_a, on_b)
    either = both + counts
    share = np.divide(both, either, out=np.ones(both.shape), where=either > 0)
    return share.astype(np.float32)


def cosine_similarity(
    counts: NDArray[np.integer], on_a: Ints, on_b: Ints | None = None
) -> NDArray[np.float32]:
    """Return the cosine between the patterns as 0/1 vectors, in [0, 1]; 0 where one is empty."""
    other = on_a if on_b is None else on_b
    both = overlaps(counts, on_a, on_b)
    norms = np.sqrt(on_a.astype(np.float64))[:, None] * np.sqrt(other.astype(np.float64))[None, :]
    cosine = np.divide(both, norms, out=np.zeros(both.shape), where=norms > 0)
    narrowed: NDArray[np.float32] = cosine.astype(np.float32)
    return narrowed


def class_weights(packed: Packed, bits: int, labels: Ints) -> Floats:
    """Return each bit's share of variance between classes, scaled to sum to one: float64, (B,).

    A bit that never changes weighs nothing.

    Args:
        packed: uint8, (N, W).
        bits: B.
        labels: int64, (N,).

    Raises:
        LabelError: fewer than two classes.
        ConstantError: no bit differs between the classes.
    """
    check_rows(packed, labels)
    classes = check_labels(labels)
    overall = bit_rates(packed, bits).astype(np.float64)
    between = np.zeros(bits)
    for label in classes:
        members = labels == label
        rate = bit_rates(packed[members], bits).astype(np.float64)
        between += members.mean() * (rate - overall) ** 2
    within = overall * (1 - overall)
    weights = np.divide(between, within, out=np.zeros(bits), where=within > 0)
    if weights.sum() == 0:
        raise ConstantError(f"the layer is constant: none of its {bits} bits differs by class")
    scaled: Floats = weights / weights.sum()
    return scaled


def weighted_similarity(packed: Packed, bits: int, weights: Floats) -> NDArray[np.float32]:
    """Return the weighted share of equal bits, in [0, 1]: float32, (N, N).

    Args:
        packed: uint8, (N, W).
        bits: B.
        weights: (B,), non-negative, summing to one.

    Raises:
        ShapeError: weights of another length, or negative.
        OutOfMemoryError: the (N, N) result would not fit.
    """
    check_packed(packed, bits)
    if weights.shape != (bits,) or (weights < 0).any():
        raise ShapeError(f"expected {bits} non-negative weights, got {weights.shape}")
    n = len(packed)
    check_memory(8 * n * n, f"a similarity matrix of {n} images")
    root = np.sqrt(weights).astype(np.float32)
    gram = np.zeros((n, n), np.float32)
    for start in range(0, bits, _UNPACK_BITS):
        stop = min(bits, start + _UNPACK_BITS)
        part = np.unpackbits(packed[:, start // 8 : -(-stop // 8)], axis=1, count=stop - start)
        x = (part.astype(np.float32) * 2 - 1) * root[start:stop]  # +-1: equal bits add, others take
        gram += x @ x.T
    similarity: NDArray[np.float32] = np.clip((1 + gram) / 2, 0, 1).astype(np.float32)
    return similarity
