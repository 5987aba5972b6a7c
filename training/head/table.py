"""The table a head is fitted on: rates where they lie, features as a batch needs them.

N rows, D rates, K classes, X features. A small table's features are made once and kept; those of a
large one are made anew for every pass, so that memory is that of a few blocks.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reluguard.training.harvest.rates import StoredRates
from reluguard.training.head.moments import Moments, row_blocks
from reluguard.training.head.probes import Probes, standardise

__all__ = ["KEPT_BYTES", "Table"]

Floats = NDArray[np.float32]

KEPT_BYTES = 2**30  # of features in memory; 6,000 images under the default recipe take 0.7 of it
WINDOW_VALUES = 2**25  # of features that are shuffled together
RUN = 128  # neighbouring rows that stay in one window: reading them is one access to the disk


@dataclass(slots=True)
class Table:
    """Rows to fit on.

    Attributes:
        rates: (N, D).
        logits: float32, (N, K).
        sources: int64, (N,). The image a row was made from.
        attacked: bool, (N,).
        weights: float32, (N,).
        kept_bytes: how much room features may take in memory.
    """

    rates: StoredRates
    logits: Floats
    sources: NDArray[np.int64]
    attacked: NDArray[np.bool_]
    weights: Floats
    kept_bytes: int = KEPT_BYTES
    _probes: Probes | None = None
    _kept: Tensor | None = None

    def __len__(self) -> int:
        return len(self.sources)

    def describe(self, probes: Probes, *, limit: float) -> Probes:
        """Describe rows by these probes from now on; return them standardised on the harmless rows.

        Args:
            probes: whose features are not cut.
            limit: to cut standardised features at.
        """
        moments = Moments(np.float64)
        harmless = np.flatnonzero(~self.attacked)
        width = probes.features.width
        for block in row_blocks(len(harmless), width):
            moments.add(self._made(probes, harmless[block]))
        self._probes = standardise(probes, moments.mean, moments.spread, limit=limit)
        if 4 * len(self) * width <= self.kept_bytes:
            kept = np.empty((len(self), width), np.float32)
            for block in row_blocks(len(self), width):
                kept[block] = self._made(self._probes, np.arange(len(self))[block])
            self._kept = torch.from_numpy(kept)
        return self._probes

    @property
    def targets(self) -> Tensor:
        """bool, (N,)."""
        return torch.from_numpy(self.attacked)

    def batches(
        self, rows: Tensor, size: int, generator: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield features (n, X) and rows (n,) of each batch, in an order by chance.

        Args:
            rows: int64. Which to draw from, all of them once.
            size: n, of all batches but the last.
            generator: the only source of chance.
        """
        if self._kept is not None:
            order = rows[torch.randperm(len(rows), generator=generator)]
            for batch in order.split(size):
                yield self._kept[batch], batch
            return
        runs = [rows[i : i + RUN] for i in range(0, len(rows), RUN)]
        order = torch.cat([runs[i] for i in torch.randperm(len(runs), generator=generator)])
        window = max(1, WINDOW_VALUES // self.width // size) * size
        for part in order.split(window):
            x = self.features(part)
            for batch in torch.randperm(len(part), generator=generator).split(size):
                yield x[batch], part[batch]

    def blocks(self, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield features and rows, in order, of bounded memory."""
        for block in row_blocks(len(rows), self.width):
            yield self.features(rows[block]), rows[block]

    def features(self, rows: Tensor) -> Tensor:
        """Return features of these rows, each described by the map of its own fold: (n, X)."""
        if self._kept is not None:
            return self._kept[rows]
        assert self._probes is not None
        return torch.from_numpy(self._made(self._probes, rows.numpy()))

    @property
    def width(self) -> int:
        """X."""
        assert self._probes is not None
        return self._probes.features.width

    def _made(self, probes: Probes, rows: NDArray[np.int64]) -> Floats:
        rates = self.rates[rows].astype(np.float32)
        return probes.out_of_fold(rates, self.logits[rows], self.sources[rows])
