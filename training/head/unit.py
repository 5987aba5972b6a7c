"""A hidden unit of its own for a new attack: what the champion knows stays as it is.

The unit is a linear classifier of the new attack against harmless images, less a level that few
harmless images reach: on all others it adds nothing to the score. Its level and strength are those
that detect most of the new images out of fold while no old attack loses more than a little and no
harmless change is flagged much more often. There is no chance in it, so nothing old is forgotten by
bad luck. N images, X features.

On ResNet-20 without its family, from 138 labelled images and at level .005 and strength 2: patches
.35 to .79 detected at 5 % false positives where fitting everything anew gives .66, and the old
attack that loses most loses .005 AUROC where fitting anew loses .020 (two draws of labels).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.head import Head
from reluguard.training.errors import DataError
from reluguard.training.harvest.readings import Readings
from reluguard.training.statistics.metrics import auroc

__all__ = ["Unit", "add_unit", "without_accidents"]

Floats = NDArray[np.floating[Any]]
FOLDS = 5
FEWEST = 5  # new images below which there is nothing to learn out of fold
PENALTY = 1e-2  # inverse; of the logistic regression
MOST_ROWS = 20_000  # of harmless images; more teach a linear classifier nothing
REACHED = (0.02, 0.01, 0.005, 0.0025)  # shares of clean images that reach the unit's level
STRENGTHS = (4.0, 2.0, 1.0, 0.5, 0.25)  # in ways from the median clean image to the threshold
FORGOTTEN = 0.005  # AUROC that an old attack may lose
FLAGGED = 0.02  # share of a harmless change that may be flagged on top


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """What a unit was chosen by.

    Attributes:
        name: of the new attack.
        reached: share of clean images at its level.
        strength: what the median new image above the level gains, in ways from the median clean
            image to the threshold.
        before, after: share of the new images that are detected, out of fold.
    """

    name: str
    reached: float
    strength: float
    before: float
    after: float

    def to_json(self) -> dict[str, Any]:
        """Return plain values, for the manifest."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Group:
    """Scores of a group by the head as it is, and what the unit's classifier says: both (N,)."""

    group: Readings
    score: Floats
    said: Floats

    def raised(self, level: float, gain: float) -> Floats:
        """Return the scores with the unit."""
        scores: Floats = self.score + gain * np.maximum(self.said - level, 0)
        return scores


def add_unit(
    head: Head,
    new: Readings,
    groups: Sequence[Readings],
    *,
    clean: Readings,
    labelled: Sequence[Readings] = (),
    fpr: float,
    seed: int,
) -> tuple[Head, Unit]:
    """Return the head with one unit more, and what it was chosen by.

    Args:
        head: of one hidden layer.
        new: attacked images to learn, none of which the head was fitted on.
        groups: of the harvest's fitting split: one is "clean". They bound what the unit may do.
        clean: images that the head was not fitted on: on those it was, a unit is silent more often
            than on fresh ones. They choose among few levels and strengths, nothing else.
        labelled: further harmless images to tell the new ones from; they bound nothing.
        fpr: the false-positive rate that detection is counted at.
        seed: of the folds.

    Raises:
        DataError: the head has another number of layers, or there are too few new images.
    """
    if len(head.weights) != 2:
        raise DataError(f"expected a head of one hidden layer, got {len(head.weights) - 1}")
    if len(new) < FEWEST:
        raise DataError(f"expected at least {FEWEST} new images of {new.name}, got {len(new)}")
    rng = np.random.default_rng(seed)
    harmless = [
        without_accidents(group) for group in (*groups, *labelled) if group.kind != "attack"
    ]
    total = sum(map(len, harmless))
    if total > MOST_ROWS:
        harmless = [
            group.rows(np.sort(rng.permutation(len(group))[: -(-len(group) * MOST_ROWS // total)]))
            for group in harmless
        ]
    harmless = [group for group in harmless if len(group)]
    weight = np.concatenate([np.full(len(g), g.weight / len(g) * _share(g, harmless))
                             for g in harmless])  # fmt: skip
    model, of_new, of_harmless = _learn(
        _features(head, new),
        np.concatenate([_features(head, group) for group in harmless]),
        weight / weight.sum(),
        rng,
    )
    cuts = np.cumsum([len(group) for group in harmless])[:-1]
    known = [
        _Group(group, _score(head, group), said)
        for group, said in zip(harmless, np.split(of_harmless, cuts), strict=True)
        if group.kind != "clean" and group.name not in {extra.name for extra in labelled}
    ]
    known += [
        _Group(group, _score(head, group), _features(head, group) @ model[0] + model[1])
        for group in (clean, *groups)
        if group is clean or (group.kind == "attack" and len(group))
    ]
    said = next(one.said for one in known if one.group is clean)
    unit, level, gain = _chosen(_Group(new, _score(head, new), of_new), known, _levels(said), fpr)
    column = model[0].astype(np.float16).astype(np.float32)[:, None]
    return (
        replace(
            head,
            weights=(
                np.concatenate([head.weights[0], column], axis=1),
                np.concatenate([head.weights[1], np.array([[gain]], np.float32)]),
            ),
            biases=(np.append(head.biases[0], np.float32(model[1] - level)), head.biases[1]),
        ),
        unit,
    )


def without_accidents(group: Readings) -> Readings:
    """Return the group without harmless changes that the model answers wrong: nobody vouches."""
    return group.rows(group.answered_right) if group.kind == "benign" else group


def _share(group: Readings, harmless: Sequence[Readings]) -> float:
    """Clean images weigh as much as all harmless changes."""
    return 1 / sum(other.weight for other in harmless if other.kind == group.kind)


def _score(head: Head, group: Readings) -> Floats:
    return head.score(group.rates[np.arange(len(group))], group.logits).score


def _features(head: Head, group: Readings) -> NDArray[np.float32]:
    return head.features.transform(group.rates[np.arange(len(group))], group.logits)


def _learn(
    new: NDArray[np.float32],
    harmless: NDArray[np.float32],
    weight: Floats,
    rng: np.random.Generator,
) -> tuple[tuple[NDArray[np.float64], float], Floats, Floats]:
    """Return the classifier, and what it says out of fold of new and of harmless images."""
    from sklearn.linear_model import LogisticRegression

    x, y = np.concatenate([new, harmless]), np.arange(len(new) + len(harmless)) < len(new)
    w = np.concatenate([np.full(len(new), 1 / len(new)), weight])
    w *= len(w) / w.sum()
    dealt = np.concatenate([rng.permutation(len(own)) % FOLDS for own in (new, harmless)])

    def fitted(rows: NDArray[np.bool_]) -> LogisticRegression:
        model = LogisticRegression(C=PENALTY, max_iter=1000, tol=1e-3)
        return model.fit(x[rows], y[rows], sample_weight=w[rows])

    said = np.empty(len(x))
    for fold in range(FOLDS):
        said[dealt == fold] = fitted(dealt != fold).decision_function(x[dealt == fold])
    model = fitted(dealt >= 0)
    return (model.coef_[0], float(model.intercept_[0])), said[: len(new)], said[len(new) :]


def _levels(said: Floats) -> list[tuple[float, float]]:
    """Return the levels that so few clean images reach, each with that share."""
    return [(share, float(np.quantile(said, 1 - share))) for share in REACHED]


def _chosen(
    new: _Group, known: Sequence[_Group], levels: Sequence[tuple[float, float]], fpr: float
) -> tuple[Unit, float, float]:
    """Return the unit that detects most within bounds, with its level and gain.

    Where none is within, the one that reaches fewest and weighs least.
    """
    clean = next(one for one in known if one.group.kind == "clean")  # the one that is held out
    limit = float(np.quantile(clean.score, 1 - fpr))
    way = limit - float(np.median(clean.score))
    before = float((new.score > limit).mean())
    old = {one.group.name: auroc(clean.score, one.score) for one in known
           if one.group.kind == "attack"}  # fmt: skip
    found: list[tuple[float, Unit, float, float]] = []
    for (reached, level), strength in product(levels, STRENGTHS):
        above = new.said[new.said > level]
        if not len(above):
            continue
        gain = strength * way / float(np.median(above) - level)
        cleaned = clean.raised(level, gain)
        moved = float(np.quantile(cleaned, 1 - fpr))
        detected = float((new.raised(level, gain) > moved).mean())
        unit = Unit(
            name=new.group.name, reached=reached, strength=strength, before=before, after=detected
        )
        excess = max(
            [
                (old[one.group.name] - auroc(cleaned, one.raised(level, gain))) / FORGOTTEN
                if one.group.kind == "attack"
                else float((one.raised(level, gain) > moved).mean() - (one.score > limit).mean())
                / FLAGGED
                for one in known
                if one is not clean
            ]
        )
        found.append((detected if excess <= 1 else -excess, unit, level, gain))
    if not found:
        raise DataError(
            f"nothing tells the new images of {new.group.name} from harmless ones: label more"
        )
    _, unit, level, gain = max(found, key=lambda one: one[0])
    return unit, level, gain
