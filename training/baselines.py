"""What a guard must beat: simpler and well-known detectors, on the same images in the same run.

Fitted where they need fitting on the guard's own fitting split, on so many rows of each attack and
harmless change; what stands beside them as "bits, same rows" is our own head on exactly those rows.
Scores are higher for more adversarial images. N images, D rates, M channel means, K classes.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from detector.features import confidence
from detector.head import Head
from detector.images import Images
from detector.taps import Tap
from training.errors import DataError
from training.fit import HeadSettings, Kind, Readings, fit_head

__all__ = [
    "BASELINES",
    "ActivationDetector",
    "Baseline",
    "Bits",
    "Confidence",
    "Context",
    "FeatureSqueezing",
    "Floats",
    "LocalDimension",
    "Mahalanobis",
    "Material",
    "RandomScore",
]

Scores = NDArray[np.float64]
Matrix = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """One group of images and what was read of them.

    Attributes:
        readings: rates and logits, sources and labels, and of which kind.
        images: uint8, (N, H, W, C).
        means: float32, (N, M). Each channel's mean output, tap after tap.
    """

    readings: Readings
    images: Images
    means: Matrix

    @property
    def kind(self) -> Kind:
        """Clean, benign or attack."""
        return self.readings.kind

    def __len__(self) -> int:
        return len(self.readings)


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What a baseline may use beside its material.

    Attributes:
        taps: of the guard.
        settings: of the guard's head.
        predict: uint8 images to logits (N, K), the ONNX model.
        activations: uint8 images to one late tap's values (N, ...).
        seed: of every random choice.
    """

    taps: Sequence[Tap]
    settings: HeadSettings
    predict: Any
    activations: Any
    seed: int

    @property
    def blocks(self) -> list[slice]:
        """Where each tap's channels lie in `Material.means`."""
        edges = np.cumsum([0, *(tap.channels for tap in self.taps)])
        return [slice(int(a), int(b)) for a, b in pairwise(edges)]


class Baseline(ABC):
    """A detector: `fit` on groups, then `score` of any."""

    name: ClassVar[str]
    note: ClassVar[str] = ""
    needs_fit: ClassVar[bool] = True

    @abstractmethod
    def fit(self, groups: Sequence[Material], context: Context) -> None:
        """Fit on the fitting split's groups; without need of fitting, keep the context."""

    @abstractmethod
    def score(self, material: Material) -> Scores:
        """Return scores: (N,)."""


@dataclass
class RandomScore(Baseline):
    """Chance."""

    name: ClassVar[str] = "random score"
    needs_fit: ClassVar[bool] = False
    seed: int = 0

    def fit(self, groups: Sequence[Material], context: Context) -> None:
        """Keep the seed."""
        del groups
        self.seed = context.seed

    def score(self, material: Material) -> Scores:
        """Draw."""
        entropy = [self.seed, *material.readings.name.encode()]
        return np.random.default_rng(entropy).random(len(material))


@dataclass
class Confidence(Baseline):
    """Boosted trees on top probability, margin, top logit, energy and entropy."""

    name: ClassVar[str] = "confidence only"
    model: Any = None

    def fit(self, groups: Sequence[Material], context: Context) -> None:
        """Fit the trees, both sides of equal weight."""
        from sklearn.ensemble import HistGradientBoostingClassifier

        x = np.concatenate([confidence(group.readings.logits) for group in groups])
        self.model = HistGradientBoostingClassifier(
            max_iter=100, max_leaf_nodes=8, random_state=context.seed
        ).fit(x, _targets(groups), sample_weight=_weights(groups))

    def score(self, material: Material) -> Scores:
        """Return log-odds."""
        scores: Scores = self.model.decision_function(confidence(material.readings.logits))
        return scores


@dataclass
class Bits(Baseline):
    """Our own head on the rows the baselines are fitted on."""

    name: ClassVar[str] = "bits, same rows"
    head: Head | None = None

    def fit(self, groups: Sequence[Material], context: Context) -> None:
        """Fit a head as the guard's was."""
        self.head = fit_head(
            [group.readings for group in groups],
            taps=context.taps,
            settings=context.settings,
            seed=context.seed,
        )

    def score(self, material: Material) -> Scores:
        """Return the head's score."""
        assert self.head is not None
        scores = self.head.score(material.readings.rates, material.readings.logits).score
        return scores.astype(np.float64)


@dataclass
class Floats(Baseline):
    """The guard's head on each channel's mean output in place of its firing rates."""

    name: ClassVar[str] = "float activations"
    note: ClassVar[str] = "mean per channel of the same taps, same head, same rows"
    head: Head | None = None

    def fit(self, groups: Sequence[Material], context: Context) -> None:
        """Fit a head on means."""
        taps = [replace(tap, level=0.0) for tap in context.taps]
        self.head = fit_head(
            [_with_means(group) for group in groups],
            taps=taps,
            settings=context.settings,
            seed=context.seed,
        )

    def score(self, material: Material) -> Scores:
        """Return the head's score."""
        assert self.head is not None
        scores = self.head.score(material.means, material.readings.logits).score
        return scores.astype(np.float64)


@dataclass
class _Logistic(Baseline):
    """Logistic regression over a few numbers per tap, scaled on the fitting rows."""

    model: Any = None
    context: Context | None = None

    @abstractmethod
    def prepare(self, clean: Material, context: Context) -> None:
        """Learn what is usual from clean images."""

    @abstractmethod
    def describe(self, material: Material) -> NDArray[Any]:
        """Return numbers per image: (N, taps)."""

    def fit(self, groups: Sequence[Material], context: Context) -> None:
        """Learn what is usual, then how much each tap counts."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        self.context = context
        self.prepare(_clean(groups), context)
        x = np.concatenate([self.describe(group) for group in groups])
        self.model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        self.model.fit(x, _targets(groups), logisticregression__sample_weight=_weights(groups))

    def score(self, material: Material) -> Scores:
        """Return log-odds."""
        scores: Scores = self.model.decision_function(self.describe(material))
        return scores


@dataclass
class Mahalanobis(_Logistic):
    """Distance per tap to the nearest class mean under one shared covariance.

    Source: Lee et al. 2018, arXiv 1807.03888, without its input noise.
    """

    name: ClassVar[str] = "Mahalanobis per layer"
    parts: list[tuple[NDArray[Any], NDArray[Any]]] = field(default_factory=list)

    def prepare(self, clean: Material, context: Context) -> None:
        """Take class means and a shrunk covariance of each tap."""
        from sklearn.covariance import ledoit_wolf

        labels = clean.readings.labels
        self.parts = []
        for block in context.blocks:
            x = clean.means[:, block].astype(np.float64)
            centers = np.stack([x[labels == label].mean(axis=0) for label in np.unique(labels)])
            own = centers[np.searchsorted(np.unique(labels), labels)]
            covariance, _ = ledoit_wolf(x - own)
            root = np.linalg.cholesky(np.linalg.inv(covariance + 1e-8 * np.eye(len(covariance))))
            self.parts.append((centers, root))

    def describe(self, material: Material) -> NDArray[Any]:
        """Return the distances."""
        assert self.context is not None
        columns = []
        for block, (centers, root) in zip(self.context.blocks, self.parts, strict=True):
            x = material.means[:, block] @ root
            y = centers @ root
            columns.append(((x[:, None] - y[None]) ** 2).sum(axis=2).min(axis=1))
        distances: NDArray[Any] = np.stack(columns, axis=1)
        return distances


@dataclass
class LocalDimension(_Logistic):
    """Local intrinsic dimension per tap among a fixed reference set of clean images.

    The reference set is apart from every row that is fitted on or judged, so no image meets its own
    clean twin, as it does in the published code.

    Source: Ma et al. 2018, arXiv 1801.02613, equation 4.
    """

    name: ClassVar[str] = "LID"
    neighbours: ClassVar[int] = 20
    reference_images: ClassVar[int] = 1000
    reference: Matrix = field(default_factory=lambda: np.zeros((0, 0), np.float32))

    def fit(self, groups: Sequence[Material], context: Context) -> None:
        """Set the reference images apart, by source, then fit."""
        clean = _clean(groups)
        sources = np.random.default_rng(context.seed).permutation(np.unique(clean.readings.sources))
        kept = sources[: min(self.reference_images, len(sources) // 2)]
        self.reference = clean.means[np.isin(clean.readings.sources, kept)]
        rest = [_rows(g, ~np.isin(g.readings.sources, kept)) for g in groups]
        super().fit([group for group in rest if len(group)], context)

    def prepare(self, clean: Material, context: Context) -> None:
        """Nothing more to learn."""

    def describe(self, material: Material) -> NDArray[Any]:
        """Return the dimensions."""
        assert self.context is not None
        k = min(self.neighbours, len(self.reference) - 1)
        columns = []
        for block in self.context.blocks:
            x, y = material.means[:, block], self.reference[:, block]
            square = (x**2).sum(1)[:, None] - 2 * x @ y.T + (y**2).sum(1)[None]
            near = np.sort(np.partition(square, k, axis=1)[:, :k], axis=1)
            distance = np.sqrt(np.maximum(near, 1e-12))
            ratio = np.log(distance / distance[:, -1:]).mean(axis=1)
            columns.append(-1 / np.minimum(ratio, -1e-6))
        dimensions: NDArray[Any] = np.log(np.stack(columns, axis=1))
        return dimensions


@dataclass
class FeatureSqueezing(Baseline):
    """How far the answer moves on a median-filtered and on a coarser image.

    Largest L1 distance of probabilities over a 2 x 2 median and 5 bits per value. The non-local
    means of the original needs OpenCV and is left out.

    Source: Xu et al. 2018, arXiv 1704.01155.
    """

    name: ClassVar[str] = "feature squeezing"
    note: ClassVar[str] = "2 x 2 median and 5 bits; without non-local means"
    needs_fit: ClassVar[bool] = False
    context: Context | None = None

    def fit(self, groups: Sequence[Material], context: Context) -> None:
        """Keep the model."""
        del groups
        self.context = context

    def score(self, material: Material) -> Scores:
        """Return the distances."""
        from scipy.ndimage import median_filter

        assert self.context is not None
        squeezed = (
            median_filter(material.images, size=(1, 2, 2, 1), mode="reflect"),
            (np.rint(material.images / 255 * 31) / 31 * 255).round().astype(np.uint8),
        )
        plain = _softmax(material.readings.logits)
        moved = [np.abs(_softmax(self.context.predict(s)) - plain).sum(axis=1) for s in squeezed]
        largest: Scores = np.max(moved, axis=0).astype(np.float64)
        return largest


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
            rows = _balanced(groups, context.seed)
            targets = np.eye(2, dtype=np.float32)[_targets(groups).astype(int)[rows]]
            state = np.random.get_state()  # noqa: NPY002  (ART draws from it)
            np.random.seed(context.seed)  # noqa: NPY002  (ART draws from it)
            try:
                self.detector.fit(images[rows].astype(np.float32), targets, nb_epochs=10)
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


BASELINES: tuple[type[Baseline], ...] = (
    Bits,
    Floats,
    Mahalanobis,
    LocalDimension,
    Confidence,
    FeatureSqueezing,
    ActivationDetector,
    RandomScore,
)


def _clean(groups: Sequence[Material]) -> Material:
    for group in groups:
        if group.kind == "clean":
            return group
    raise DataError("expected clean images to fit the baselines on, got none")


def _rows(material: Material, chosen: NDArray[np.bool_]) -> Material:
    return Material(
        readings=material.readings.rows(chosen),
        images=material.images[chosen],
        means=material.means[chosen],
    )


def _with_means(group: Material) -> Readings:
    # a Readings holds half precision for bits; means keep theirs
    values: Mapping[str, Any] = {"rates": group.means}
    return replace(group.readings, **values)


def _targets(groups: Sequence[Material]) -> NDArray[np.bool_]:
    return np.concatenate([np.full(len(group), group.kind == "attack") for group in groups])


def _weights(groups: Sequence[Material]) -> Scores:
    """Groups count alike within a side, and the sides alike."""
    sides = {side: sum((g.kind == "attack") == side for g in groups) for side in (True, False)}
    parts = [np.full(len(g), 1 / sides[g.kind == "attack"] / len(g)) for g in groups]
    weights = np.concatenate(parts)
    even: Scores = weights / weights.mean()
    return even


def _balanced(groups: Sequence[Material], seed: int) -> NDArray[np.int64]:
    rng = np.random.default_rng(seed)
    positive = _targets(groups)
    sides = [np.flatnonzero(positive == side) for side in (False, True)]
    count = min(map(len, sides))
    return np.concatenate([rng.choice(side, count, replace=False) for side in sides])


def _softmax(logits: NDArray[Any]) -> NDArray[Any]:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: NDArray[Any] = shifted / shifted.sum(axis=1, keepdims=True)
    return probabilities
