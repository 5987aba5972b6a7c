"""A network that learns, and keeps what its last gate says for the loss. N images, K classes."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import onnx
import torch
from torch import Tensor, nn

from reluguard.detector.images import Images
from reluguard.detector.model import Production

__all__ = ["Student"]


class Student(nn.Module, ABC):
    """A module that returns class scores, float (N, K), and learns.

    Attributes:
        weights: what is trained, by name.
    """

    weights: Mapping[str, Tensor]

    def __init__(self) -> None:
        super().__init__()
        self._phi: list[Tensor] = []

    def hear(self, phi: Tensor) -> None:
        """Keep what the last gate said of some images, (n, ...)."""
        self._phi.append(phi)

    def forget(self) -> None:
        """Drop what the last gate said so far."""
        self._phi.clear()

    @property
    def phi(self) -> Tensor:
        """What the last gate said since `forget`, (N, ...); a model may take few images a time."""
        return torch.cat(self._phi)

    @abstractmethod
    def finished(
        self, weights: Mapping[str, Tensor], sample: Images
    ) -> tuple[onnx.ModelProto, Production]:
        """Return the model with these weights.

        Args:
            weights: by name.
            sample: uint8, (N, H, W, C): images on which an export must answer as the network does.

        Raises:
            ModelError: it can't be exported, or answers otherwise afterwards.
        """
