"""Labels that contradict the rest: how many of those given are likely wrong. N labelled images.

Three sets are at hand: what is labelled attacked, what is labelled clean, and harmless images of
the harvest, whose labels are beyond doubt. A linear classifier learns, fold by fold, to tell the
first from the third; each image is judged by one that has not learned from it. Of the labelled ones

- attacked ones that rank below the median of harmless images look harmless: twice their share is
  the share of harmless images among them;
- clean ones rank high as often as attacked ones do if they are attacked, and as rarely as harmless
  ones if they are not: their share in between is the share of attacked images among them.

Harmless images are matched by the champion's score: labels are given to what looks suspicious, and
that a clean image is suspicious must not count against its label.

Source: Rogan and Gladen 1978, Estimating prevalence from the results of a screening test; in the
spirit of Northcutt et al. 2021, Confident learning.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.head import Head
from reluguard.training.harvest.readings import Readings

__all__ = ["Contradicted", "contradicted"]

Floats = NDArray[np.float64]
FEWEST = 10  # labelled attacks below which nothing is said
FOLDS = 5
MATCHED = 8  # harmless images on either side of a labelled one, by the champion's score
PENALTY = 1e-2  # inverse; of the logistic regression
MIDDLE = 0.5  # of the harmless ranks: below it an attacked image looks harmless
HIGH = 0.8  # above it a clean one looks attacked
LEAST_GAIN = 0.1  # what attacked images must rank high more often than harmless ones do
DRAWS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Contradicted:
    """The estimated share of wrong labels, with a 95 % interval.

    Attributes:
        share, low, high: of all labels.
        of_attacks: share of what is labelled attacked that looks harmless.
        of_clean: share of what is labelled clean that looks attacked.
        labels: N.
    """

    share: float
    low: float
    high: float
    of_attacks: float
    of_clean: float
    labels: int


def contradicted(
    head: Head, labelled: Sequence[Readings], harmless: Sequence[Readings], *, seed: int
) -> Contradicted | None:
    """Return how many labels contradict the rest, None where there are too few to say.

    Args:
        head: of the champion, which has learned from none of these images.
        labelled: captures; those of kind "attack" are labelled attacked, the others clean.
        harmless: clean and harmlessly changed images of the harvest.
        seed: of folds and draws.
    """
    attacked = [group for group in labelled if group.kind == "attack"]
    clean = [group for group in labelled if group.kind != "attack"]
    count = sum(map(len, attacked))
    if count < FEWEST or sum(map(len, harmless)) < FEWEST:
        return None
    scores = [_score(head, group) for group in (*attacked, *clean)]
    chosen = _matched(np.concatenate(scores), [_score(head, group) for group in harmless])
    known = [group.rows(rows) for group, rows in zip(harmless, chosen, strict=True) if len(rows)]
    ranks = _ranks(*(_features(head, groups) for groups in (attacked, known, clean)), seed=seed)
    of_attacks, of_clean, share = _shares(*ranks)
    rng = np.random.default_rng(seed)
    drawn = [_shares(*(rng.choice(own, len(own)) for own in ranks))[2] for _ in range(DRAWS)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Contradicted(
        share=share,
        low=float(low),
        high=float(high),
        of_attacks=of_attacks,
        of_clean=of_clean,
        labels=count + sum(map(len, clean)),
    )


def _score(head: Head, group: Readings) -> NDArray[np.float32]:
    return head.score(group.rates[np.arange(len(group))], group.logits).score


def _features(head: Head, groups: Sequence[Readings]) -> NDArray[np.float32]:
    parts = [
        head.features.transform(group.rates[np.arange(len(group))], group.logits)
        for group in groups
    ]
    return np.concatenate([np.zeros((0, head.features.width), np.float32), *parts])


def _matched(
    scores: NDArray[np.float32], pools: Sequence[NDArray[np.float32]]
) -> list[NDArray[np.int64]]:
    """Return the rows of each pool whose scores lie next to one of these."""
    pooled = np.concatenate(pools)
    order = np.argsort(pooled, kind="stable")
    at = np.searchsorted(pooled[order], scores)
    near = np.clip(at[:, None] + np.arange(-MATCHED, MATCHED), 0, len(pooled) - 1)
    found = np.sort(order[np.unique(near)])
    starts = np.cumsum([0, *map(len, pools)])
    return [found[(found >= start) & (found < stop)] - start for start, stop in pairwise(starts)]


def _ranks(
    attacked: NDArray[np.float32],
    harmless: NDArray[np.float32],
    clean: NDArray[np.float32],
    *,
    seed: int,
) -> tuple[Floats, Floats]:
    """Return where attacked and clean images rank among harmless ones, in [0, 1], out of fold."""
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(seed)
    dealt = [rng.permutation(len(rows)) % FOLDS for rows in (attacked, harmless)]
    of_attacked, of_clean = np.empty(len(attacked)), np.zeros(len(clean))
    for fold in range(FOLDS):
        first, second = (own != fold for own in dealt)
        x = np.concatenate([attacked[first], harmless[second]])
        y = np.arange(len(x)) < first.sum()
        model = LogisticRegression(C=PENALTY, class_weight="balanced", max_iter=1000, tol=1e-3)
        model.fit(x, y)
        level = np.sort(model.decision_function(harmless[~second]))
        of_attacked[~first] = _rank(model.decision_function(attacked[~first]), level)
        if len(clean):
            of_clean += _rank(model.decision_function(clean), level) / FOLDS
    return of_attacked, of_clean


def _rank(values: Floats, level: Floats) -> Floats:
    ranks: Floats = np.searchsorted(level, values) / len(level)
    return ranks


def _shares(attacked: Floats, clean: Floats) -> tuple[float, float, float]:
    """Return the wrong share of what is labelled attacked, labelled clean, and of both."""
    of_attacks = min(float((attacked <= MIDDLE).mean()) / MIDDLE, 1.0)
    of_clean = 0.0
    if len(clean):
        rarely = 1 - HIGH
        gain = max(float((attacked > HIGH).mean()) - rarely, LEAST_GAIN)
        of_clean = float(np.clip(((clean > HIGH).mean() - rarely) / gain, 0, 1))
    wrong = of_attacks * len(attacked) + of_clean * len(clean)
    return of_attacks, of_clean, wrong / (len(attacked) + len(clean))
