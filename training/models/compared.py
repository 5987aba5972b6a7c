"""Whether an export answers as the network that it was made of. N images, K classes."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.errors import ModelError
from reluguard.detector.images import Images, InputSpec
from reluguard.detector.model import Production
from reluguard.detector.session import in_batches, open_session
from reluguard.training.models.export import run_program
from reluguard.training.models.torch_model import TorchModel
from reluguard.training.twin.agreement import Difference, difference, unit_of

__all__ = ["Compared", "compared"]

TOLERANCE = 1e-3  # of the largest score
HALF_TOLERANCE = 2e-2  # of the distance between classes, where torch too computes in 16 bits


@dataclass(frozen=True, slots=True)
class Compared:
    """How far torch's class scores and ONNX Runtime's are apart, on `count` images.

    Attributes:
        largest: difference of two scores.
        scale: the largest score.
        others: how many answers are others.
        count: how many images there were.
        judged: the difference, by what arithmetic can do.
    """

    largest: float
    scale: float
    others: int
    count: int
    judged: Difference

    @property
    def is_same(self) -> bool:
        """Whether both are one network."""
        return self.judged.is_small

    @property
    def words(self) -> str:
        """Say how far they are apart."""
        return (
            f"scores differ by up to {self.largest:.3g}, where the largest is {self.scale:.3g}, "
            f"and {self.others} of {self.count} answers are others"
        )


def compared(
    opened: TorchModel, production: Production, spec: InputSpec, images: Images
) -> Compared:
    """Return how a network's scores in torch and in ONNX Runtime compare.

    Args:
        opened: the network.
        production: its export.
        spec: how images go into both.
        images: uint8, (N, H, W, C).

    Raises:
        ModelError: one of them fails, or they give scores of other shapes.
    """
    tensor = spec.to_tensor(images)
    step = spec.batch or len(tensor)
    rows = np.arange(-(-len(tensor) // step) * step) % len(tensor)  # a fixed batch is filled up
    raw = np.concatenate(
        [run_program(opened.program, tensor[rows[i : i + step]]) for i in range(0, len(rows), step)]
    )[: len(tensor)]

    def scores(*, optimise: bool) -> NDArray[np.float32]:
        session = open_session(production.proto, optimise=optimise)
        (found,) = in_batches(session, spec, tensor, [production.answer])
        if found.shape != raw.shape:
            raise ModelError(
                f"{opened.source} gives scores of shape {raw.shape} in torch and {found.shape} in "
                "ONNX Runtime"
            )
        return np.asarray(production.class_scores(found), np.float32)

    wanted = scores(optimise=True)
    found = np.asarray(production.class_scores(raw), np.float32)
    unit = unit_of(production.proto)
    judged = difference(
        found,
        wanted,
        unit=unit,
        tolerance=HALF_TOLERANCE if spec.dtype == "float16" else TOLERANCE,
        unoptimised=scores(optimise=False) if unit else None,
    )
    return Compared(
        largest=float(np.abs(found.astype(np.float64) - wanted).max(initial=0.0)),
        scale=float(np.abs(wanted).max(initial=0.0)),
        others=int((found.argmax(axis=1) != wanted.argmax(axis=1)).sum()),
        count=len(wanted),
        judged=judged,
    )
