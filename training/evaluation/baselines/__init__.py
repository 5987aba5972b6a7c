"""What a guard must beat: simpler and well-known detectors, on the same images in the same run.

Fitted where they need fitting on the guard's own fitting split, on so many rows of each attack and
harmless change; what stands beside them as "bits, same rows" is our own head on exactly those rows.
Scores are higher for more adversarial images. N images, D rates, M channel means, K classes.
"""

from reluguard.training.evaluation.baselines.art import ActivationDetector
from reluguard.training.evaluation.baselines.auxiliary import Auxiliary
from reluguard.training.evaluation.baselines.base import Baseline, Context, Material
from reluguard.training.evaluation.baselines.distances import LocalDimension, Mahalanobis
from reluguard.training.evaluation.baselines.heads import Bits, Floats
from reluguard.training.evaluation.baselines.layers import LayerShifts
from reluguard.training.evaluation.baselines.roughness import Roughness
from reluguard.training.evaluation.baselines.simple import Confidence, FeatureSqueezing, RandomScore

__all__ = [
    "BASELINES",
    "ActivationDetector",
    "Auxiliary",
    "Baseline",
    "Bits",
    "Confidence",
    "Context",
    "FeatureSqueezing",
    "Floats",
    "LayerShifts",
    "LocalDimension",
    "Mahalanobis",
    "Material",
    "RandomScore",
    "Roughness",
]

BASELINES: tuple[type[Baseline], ...] = (
    Bits,
    Floats,
    Mahalanobis,
    LocalDimension,
    Confidence,
    FeatureSqueezing,
    ActivationDetector,
    LayerShifts,
    Roughness,
    Auxiliary,
    RandomScore,
)
