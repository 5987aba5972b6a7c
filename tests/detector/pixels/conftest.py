"""Small pictures, and what other libraries make of them."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray


@pytest.fixture(scope="session")
def golden_pixels() -> Path:
    return Path(__file__).parents[2] / "golden" / "pixels"


@pytest.fixture(scope="session")
def pictures(golden_pixels: Path) -> list[NDArray[np.uint8]]:
    """The images that `make.py` showed to the other libraries."""
    with np.load(golden_pixels / "pictures.npz") as arrays:
        return [arrays[str(i)] for i in range(len(arrays.files))]
