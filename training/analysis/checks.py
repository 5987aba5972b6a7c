"""What every analysis asks of its arrays before it starts. N images, W packed bytes."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reluguard.training.errors import (
    AnalysisError,
    ConstantError,
    LabelError,
    OutOfMemoryError,
    ShapeError,
)

__all__ = [
    "Floats",
    "Ints",
    "Packed",
    "check_labels",
    "check_memory",
    "check_packed",
    "check_rows",
    "check_square",
    "check_varies",
    "free_bytes",
]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Packed = NDArray[np.uint8]

_SHARE = 0.8  # of the free memory: the rest is for BLAS, plots and the neighbours


def check_packed(packed: NDArray[Any], bits: int | None = None) -> None:
    """Raise ShapeError unless this is uint8 (N, W) that can hold exactly `bits` bits."""
    if packed.dtype != np.uint8 or packed.ndim != 2 or len(packed) == 0:
        raise ShapeError(
            f"expected packed uint8 patterns of shape (N, W), got {packed.dtype} {packed.shape}"
        )
    if bits is not None and packed.shape[1] != -(-bits // 8):
        raise ShapeError(f"expected {-(-bits // 8)} bytes for {bits} bits, got {packed.shape[1]}")


def check_rows(*arrays: NDArray[Any]) -> int:
    """Return the common row count.

    Raises:
        ShapeError: the counts differ, or there is no row.
    """
    counts = [len(array) for array in arrays]
    if len(set(counts)) != 1:
        raise ShapeError(f"expected one row per image in every array, got {counts} rows")
    if counts[0] == 0:
        raise ShapeError("expected at least one image, got none")
    return counts[0]


def check_square(matrix: NDArray[Any]) -> int:
    """Return N of an (N, N) matrix with two or more rows; ShapeError for any other shape."""
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or len(matrix) < 2:
        raise ShapeError(f"expected a square matrix of two or more images, got {matrix.shape}")
    return len(matrix)


def check_labels(labels: NDArray[Any], wanted: int = 2) -> Ints:
    """Return the sorted classes among the labels.

    Raises:
        LabelError: fewer classes than wanted.
    """
    found = np.unique(labels).astype(np.int64)
    if len(found) < wanted:
        raise LabelError(
            f"expected images of {wanted} or more classes, got {len(found)}: {found.tolist()}"
        )
    return found


def check_varies(values: NDArray[Any], what: str = "the layer") -> None:
    """Raise ConstantError if all rows are equal."""
    if len(values) and (values == values[:1]).all():
        raise ConstantError(
            f"{what} is constant: it says the same of all {len(values)} images, "
            "so nothing can be compared"
        )


def free_bytes() -> int:
    """Return how many bytes of memory are free for us, container limits included."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file():
        text = limit.read_text(encoding="ascii").strip()
        if text.isdigit():
            free = min(free, int(text) - int(used.read_text(encoding="ascii")))
    return max(free, 0)


def check_memory(needed: int, what: str, *, free: int | None = None) -> None:
    """Raise OutOfMemoryError if `needed` bytes for `what` are more than may be taken.

    Args:
        needed: in bytes.
        what: the thing to be built, for the message.
        free: bytes that are free; by default what the system says.
    """
    if needed < 0:
        raise AnalysisError(f"expected a size in bytes, got {needed}")
    there = free_bytes() if free is None else free
    if needed > _SHARE * there:
        raise OutOfMemoryError(
            f"{what} needs {needed / 2**30:.1f} GiB and {there / 2**30:.1f} GiB are free: "
            "take fewer images (limit, pairwise)"
        )
