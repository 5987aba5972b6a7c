"""What a network did with a set of images. N images, L taps, C channels, K classes.

One pass of ONNX Runtime per batch with every tap as an output; the bits go packed to files, so
memory stays that of one batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from reluguard.detector.images import Images, InputSpec, check_images
from reluguard.detector.model import Production
from reluguard.detector.runtime import in_batches
from reluguard.detector.session import open_session
from reluguard.detector.taps import Tap
from reluguard.training.analysis.checks import Ints, Packed
from reluguard.training.analysis.pattern import pack
from reluguard.training.errors import ShapeError

__all__ = ["Recorder", "Recording"]

Singles = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """Everything the analyses read of one set of images.

    Attributes:
        taps: the L taps.
        patterns: per tap uint8 (N, W), packed bits; a memory map where a folder was given.
        rates: per tap float32 (N, C), the share of a channel's bits that are on.
        means: per tap float32 (N, C), the mean of a channel's outputs.
        logits: float32, (N, K).
    """

    taps: tuple[Tap, ...]
    patterns: tuple[Packed, ...]
    rates: tuple[Singles, ...]
    means: tuple[Singles, ...]
    logits: Singles

    def __len__(self) -> int:
        return len(self.logits)

    @property
    def answers(self) -> Ints:
        """int64, (N,): the class the network gives each image."""
        answers: Ints = self.logits.argmax(axis=1).astype(np.int64)
        return answers

    def take(self, rows: Ints) -> "Recording":
        """Return these images only, in memory."""
        return Recording(
            taps=self.taps,
            patterns=tuple(np.asarray(p[rows]) for p in self.patterns),
            rates=tuple(r[rows] for r in self.rates),
            means=tuple(m[rows] for m in self.means),
            logits=self.logits[rows],
        )


class Recorder:
    """A network with its taps as outputs, ready to record."""

    def __init__(
        self,
        production: Production,
        spec: InputSpec,
        taps: Sequence[Tap],
        *,
        threads: int | None = None,
    ) -> None:
        self.taps = tuple(taps)
        self.spec = spec
        self._logits = production.logits
        probe = onnx.ModelProto()
        probe.CopyFrom(production.proto)
        there = {value.name for value in probe.graph.output}
        wanted = [*(tap.name for tap in self.taps), production.logits]
        probe.graph.output.extend(
            onnx.ValueInfoProto(name=name) for name in wanted if name not in there
        )
        self._session = open_session(probe, threads=threads)

    def record(
        self,
        images: Images,
        *,
        folder: Path | None = None,
        batch: int = 64,
        progress: Callable[[int], None] = lambda _: None,
    ) -> Recording:
        """Return what the network did with these images.

        Args:
            images: uint8, (N, H, W, C).
            folder: where packed bits go, one raw file per tap; in memory if None.
            batch: images per run; memory grows with it.
            progress: told how many images were just done.

        Raises:
            ImageError: images that don't fit the model.
            ModelError: the model doesn't run.
        """
        check_images(images)
        if batch < 1:
            raise ShapeError(f"expected one or more images per batch, got {batch}")
        n = len(images)
        patterns = tuple(self._room(i, n, folder) for i in range(len(self.taps)))
        rates = tuple(np.empty((n, tap.channels), np.float32) for tap in self.taps)
        means = tuple(np.empty((n, tap.channels), np.float32) for tap in self.taps)
        logits: list[Singles] = []
        names = [*(tap.name for tap in self.taps), self._logits]
        for start in range(0, n, batch):
            stop = min(n, start + batch)
            tensor = self.spec.to_tensor(images[start:stop])
            *values, scores = in_batches(self._session, self.spec, tensor, names)
            logits.append(scores.astype(np.float32))
            for i, (tap, value) in enumerate(zip(self.taps, values, strict=True)):
                on = value > tap.off
                patterns[i][start:stop] = pack(on.reshape(len(on), -1))
                others = tuple(a + 1 for a in range(len(tap.shape)) if a != tap.channel_axis)
                rates[i][start:stop] = on.mean(axis=others, dtype=np.float32) if others else on
                means[i][start:stop] = value.mean(axis=others) if others else value
            progress(stop - start)
        return Recording(
            taps=self.taps,
            patterns=patterns,
            rates=rates,
            means=means,
            logits=np.concatenate(logits),
        )

    def _room(self, index: int, n: int, folder: Path | None) -> Packed:
        shape = (n, -(-self.taps[index].bits // 8))
        if folder is None:
            return np.empty(shape, np.uint8)
        folder.mkdir(parents=True, exist_ok=True)
        return np.memmap(folder / f"tap-{index:03d}.bits", np.uint8, "w+", shape=shape)
