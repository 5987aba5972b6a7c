"""What hardening did to a network, on images that no step of it saw."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from reluguard.detector.images import InputSpec
from reluguard.detector.model import Production
from reluguard.detector.taps import find_taps
from reluguard.training.analysis.checks import Floats, Ints
from reluguard.training.analysis.consistency import twin_cosine
from reluguard.training.analysis.recording import Recorder, Recording
from reluguard.training.attacks.gradient import PGD
from reluguard.training.attacks.victim import Victim
from reluguard.training.data.dataset import Dataset
from reluguard.training.hardening.settings import HardenSettings
from reluguard.training.statistics.metrics import Interval, auroc_interval
from reluguard.training.twin.twin import Twin

__all__ = ["Outcome", "judged"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One network on the held-out images: right, robust bool (N,), cosine (N,), detection."""

    right: NDArray[np.bool_]
    robust: NDArray[np.bool_]
    cosine: Floats
    detection: Interval | None
    attack: str


def judged(
    production: Production,
    module: nn.Module,
    spec: InputSpec,
    test: Dataset,
    settings: HardenSettings,
) -> Outcome:
    """Return how a network does on clean images, and on those that are attacked on it.

    Args:
        production: the network, which answers.
        module: the same in torch, for gradients; returns the logits.
        spec: how images go into both.
        test: the images.
        settings: of the attack.
    """
    recorder = Recorder(production, spec, find_taps(production, spec))
    twin = Twin(module, spec, device="cpu")
    victim = Victim(predict=lambda images: recorder.record(images).logits, twin=twin)
    attack = PGD(size=settings.budget, steps=settings.steps)
    result = attack(test.images, test.labels, victim, seed=settings.seed)
    clean, attacked = recorder.record(test.images), recorder.record(result.images)
    right = clean.answers == test.labels
    robust = attacked.answers == test.labels
    return Outcome(
        right=right,
        robust=robust & right,
        cosine=twin_cosine(clean.means[-1], attacked.means[-1]),
        detection=_detection(clean, attacked, np.flatnonzero(right & ~robust), settings.seed),
        attack=attack.name,
    )


def _detection(
    clean: Recording, attacked: Recording, successes: Ints, seed: int
) -> Interval | None:
    fit, test = successes[::2], successes[1::2]
    if len(test) < 10:
        return None
    before, after = (np.concatenate(r.rates, axis=1) for r in (clean, attacked))
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    model.fit(np.concatenate([before[fit], after[fit]]), np.repeat([0, 1], len(fit)))
    scores = [model.decision_function(x[test]) for x in (before, after)]
    return auroc_interval(scores[0], test, scores[1], test, seed=seed, draws=300)
