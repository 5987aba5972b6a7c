"""A detector of another library, as that library makes it. N images."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from reluguard.training.evaluation.baselines.base import (
    Baseline,
    Context,
    Material,
    Scores,
    balanced,
    targets,
)

__all__ = ["ActivationDetector"]


@dataclass
class ActivationDetector(Baseline):
    """ART's BinaryActivationDetector: a network of the user's on one layer's activations.

    ART finds layers in modules of its own kind, which a graph from ONNX has none of: it is given a
    model whose single layer is the last convolutional tap, and a detector of one hidden layer.
    """

    name: ClassVar[str] = "ART BinaryActivationDetector"
    note: ClassVar[str] = "last tap with rows and columns, 64 hidden units, 10 epochs"
    detector: Any = None

    def fit(self, groups: Sequence[Material], context: Context) -> None:
        """Let ART train its detector."""
        import torch
        from art.defences.detector.evasion import BinaryActivationDetector
        from art.estimators.classification import PyTorchClassifier

        images = np.concatenate([group.images for group in groups])
        sample = context.activations(images[:1])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(context.seed)
            network = torch.nn.Sequential(
                torch.nn.Flatten(),
                # raw activations are all positive: without this every hidden unit dies
                torch.nn.LayerNorm(int(np.prod(sample.shape[1:]))),
                torch.nn.Linear(int(np.prod(sample.shape[1:])), 64),
                torch.nn.ReLU(),
                torch.nn.Linear(64, 2),
            )
            model = PyTorchClassifier(
                torch.nn.Sequential(_as_layer(context.activations)),
                loss=torch.nn.CrossEntropyLoss(),
                input_shape=images.shape[1:],
                nb_classes=2,
                device_type="cpu",
            )
            detector = PyTorchClassifier(
                network,
                loss=torch.nn.CrossEntropyLoss(),
                optimizer=torch.optim.Adam(network.parameters(), lr=1e-3),
                input_shape=sample.shape[1:],
                nb_classes=2,
                device_type="cpu",
            )
            self.detector = BinaryActivationDetector(model, detector, 0)
            # ART weighs rows alike: draw as many of each side
            rows = balanced(groups, context)
            both = np.eye(2, dtype=np.float32)[targets(groups).astype(int)[rows]]
            state = np.random.get_state()  # noqa: NPY002  (ART draws from it)
            np.random.seed(context.seed)  # noqa: NPY002  (ART draws from it)
            try:
                self.detector.fit(images[rows].astype(np.float32), both, nb_epochs=10)
            finally:
                np.random.set_state(state)  # noqa: NPY002  (ART draws from it)

    def score(self, material: Material) -> Scores:
        """Return the difference of its two outputs."""
        report, _ = self.detector.detect(material.images.astype(np.float32))
        both = np.asarray(report["predictions"], np.float64)
        return both[:, 1] - both[:, 0]


def _as_layer(activations: Any) -> Any:
    """Return a torch module: whole pixels as floats (N, H, W, C) in, the tap's values out."""
    import torch

    class Layer(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            images = pixels.cpu().numpy().round().astype(np.uint8)
            return torch.from_numpy(activations(images))

    return Layer()
