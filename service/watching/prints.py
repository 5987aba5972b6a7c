"""Prints of questions: keyed, short, and alike where the network saw nearly the same.

The reading of an image, the firing rates that the guard judges it by, is projected on directions
that only the holder of the key knows, and the signs are kept. Two readings at an angle of a
differ in about a / pi of the signs. Nothing else of an image is kept, neither pixels nor rates.

N images, D rates that are read, P of them that are used, M = 2^m at least as many.

Source: Charikar 2002, Similarity estimation techniques from rounding algorithms; signs and sums as
in Ailon and Chazelle 2009, The fast Johnson-Lindenstrauss transform.
"""

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.artifact import GuardArtifact

__all__ = ["BITS", "WORDS", "Prints", "exact", "nearest"]

BITS = 256
WORDS = BITS // 64  # of 64 bits, in one print
_MOST = 2048  # rates used: beyond it more of them tell nothing new and cost time
_PERSON = b"reluguard watch"  # at most 16 bytes: what this key is used for
_EXACT_BYTES = 8


class Prints:
    """Makes prints of what one guard reads.

    Guards that read the same rates of the same model, standardised alike, give the same prints;
    all others give prints that have nothing in common.

    Args:
        artifact: the guard.
        key: secret, 16 to 64 bytes.
    """

    def __init__(self, artifact: GuardArtifact, key: bytes) -> None:
        features, manifest = artifact.head.features, artifact.manifest
        columns = len(features.columns)
        center, spread = features.center[:columns], features.spread[:columns]
        self._limit = np.float32(features.limit)
        stream = _stream(
            key,
            manifest.model_sha256.encode(),
            *(tap.name.encode() for tap in manifest.taps),
            features.columns.tobytes(),
            center.tobytes(),
            spread.tobytes(),
            count=max(columns, _MOST) + BITS,
        )
        used = np.sort(np.argsort(stream[:columns], kind="stable")[:_MOST])
        self._columns = features.columns[used]
        size = max(BITS, 1 << (len(used) - 1).bit_length())
        signs = np.where(stream[: len(used)] & 1, np.float32(1), np.float32(-1))
        self._center, self._scale = center[used], signs / spread[used]
        chosen = stream[len(stream) - BITS :]
        # every sum once at most, in an order that the key says
        self._sums = _drawn(chosen, size)
        half = size.bit_length() // 2
        self._left, self._right = (
            _hadamard(1 << (size.bit_length() - 1 - half)),
            _hadamard(1 << half),
        )

    def __call__(self, rates: NDArray[np.float32]) -> NDArray[np.uint64]:
        """Return the prints of readings, uint64 (N, WORDS); all signs of a NaN count as off.

        Args:
            rates: float32, (N, D). What `Readings.rates` holds.
        """
        x = (rates[:, self._columns] - self._center) * self._scale
        np.minimum(np.maximum(x, -self._limit, out=x), self._limit, out=x)
        n, used = x.shape
        size = len(self._left) * len(self._right)
        padded = np.zeros((n, size), np.float32)
        padded[:, :used] = x
        # two small products do what one of (P, BITS) would, without its table in memory
        sums = self._left @ padded.reshape(n, len(self._left), len(self._right)) @ self._right
        signs = sums.reshape(n, size)[:, self._sums] > 0
        return np.ascontiguousarray(np.packbits(signs, axis=1)).view(np.uint64)


def nearest(one: NDArray[np.uint64], others: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return in how many bits one print (WORDS,) differs from each of others (C, WORDS)."""
    differing: NDArray[np.int64] = np.bitwise_count(one ^ others).sum(axis=1, dtype=np.int64)
    return differing


def exact(tensor: NDArray[Any], key: bytes) -> NDArray[np.uint64]:
    """Return a keyed hash of each row's bytes, uint64 (N,), never 0: equal for equal rows alone."""
    rows = np.ascontiguousarray(tensor)
    found = [
        hashlib.blake2b(row.data, key=key, digest_size=_EXACT_BYTES, person=_PERSON).digest()
        for row in rows
    ]
    return np.maximum(np.frombuffer(b"".join(found), np.uint64), np.uint64(1))


def _stream(key: bytes, *parts: bytes, count: int) -> NDArray[np.uint64]:
    """Return numbers that follow from key and parts and from nothing else."""
    whole = hashlib.blake2b(key=key, person=_PERSON)
    for part in parts:
        whole.update(len(part).to_bytes(8) + part)
    return np.frombuffer(hashlib.shake_256(whole.digest()).digest(8 * count), "<u8")


def _drawn(stream: NDArray[np.uint64], size: int) -> NDArray[np.int64]:
    """Return as many different numbers below `size` as the stream has, drawn by it."""
    pool = np.arange(size)
    for i, number in enumerate(stream.tolist()):
        other = i + number % (size - i)
        pool[i], pool[other] = pool[other], pool[i]
    return pool[: len(stream)].copy()


def _hadamard(size: int) -> NDArray[np.float32]:
    """Return the matrix of all sums with signs, (size, size), size a power of two."""
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix
