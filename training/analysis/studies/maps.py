"""Study 4: self-organizing maps. L taps, N images, P attacked, R x R units, two kinds of code."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from reluguard.training.analysis.checks import Floats, Ints
from reluguard.training.analysis.material import Material
from reluguard.training.analysis.som import (
    bmu_entropy,
    bmu_map,
    displacement,
    fit_som,
    label_information,
    participation_ratio,
    purity,
)
from reluguard.training.analysis.stages import homogeneity_of, narrowed, stages_of
from reluguard.training.errors import ConstantError
from reluguard.training.statistics.intervals import rank_trend
from reluguard.training.statistics.metrics import Interval

__all__ = ["CODES", "MapStudy", "depth_trend", "last_minus_first", "study_maps"]

CODES = ("feature-map means", "firing rates")
_FOLDS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class MapStudy:
    """Functional codes and their maps; the first axis of (2, L) arrays is CODES.

    Attributes:
        quantisation: (2, L), in standard deviations per root channel; clean images.
        quantisation_attacked: (2, L).
        topographic: (2, L).
        participation: (2, L). Directions the codes vary in.
        participation_share: (2, L). By the number of channels.
        codebook: (2, L). Mean cosine distance of the codebook vectors.
        entropy: (2, L). Of the best-matching units.
        information: (2, L). NMI of unit and class.
        purity: (2, L).
        moved: (2, L). Median displacement by the main attack, successes only, in grid units.
        moved_noise: (2, L). The same by noise of that size.
        profiles: (3, F, L). Participation, codebook distance, entropy of the means, on F folds.
        stages: int64, (G,). The last tap of each stage.
        stage_profiles: (3, F', G). The same of the stages' codes, brought to one number of columns,
            on F' parts of the images that share none.
        stage_profiles_own: (3, F', G). With the columns that each stage has.
        winners: int64, (L, R, R). Class most frequent on each unit of the means' map, -1: none.
        hits: int64, (L, R, R). Images on it.
    """

    quantisation: Floats
    quantisation_attacked: Floats
    topographic: Floats
    participation: Floats
    participation_share: Floats
    codebook: Floats
    entropy: Floats
    information: Floats
    purity: Floats
    moved: Floats
    moved_noise: Floats
    profiles: Floats
    stages: Ints
    stage_profiles: Floats
    stage_profiles_own: Floats
    winners: Ints
    hits: Ints


def study_maps(material: Material) -> MapStudy:
    """Return the study. A constant layer's figures are NaN."""
    count = len(material.taps)
    found = np.full((10, 2, count), np.nan)
    side = max(2, round(np.sqrt(5 * np.sqrt(len(material.labels)))))
    classes = int(material.labels.max()) + 1
    winners = np.full((count, side, side), -1, np.int64)
    hits = np.zeros((count, side, side), np.int64)
    profiles = np.full((3, _FOLDS, count), np.nan)
    noise = np.full((2, count), np.nan)
    success = material.success[material.main]
    for kind, field in enumerate(("means", "rates")):
        for i in range(count):
            codes = getattr(material.clean, field)[i]
            attacked = getattr(material.attacked[material.main], field)[i]
            noisy = getattr(material.noisy, field)[i]
            try:
                som = fit_som(codes, rows=side, columns=side, seed=material.seed)
            except ConstantError:
                continue
            best = som.best(codes)
            scale = np.sqrt(codes.shape[1])
            after, shaken = som.best(attacked), som.best(noisy)
            moved = displacement(best[material.rows], after, side)[success]
            ratio = participation_ratio(codes)
            found[:, kind, i] = (
                som.quantisation_error(codes) / scale,
                som.quantisation_error(attacked) / scale,
                som.topographic_error(codes),
                ratio,
                ratio / codes.shape[1],
                som.codebook_distance(),
                bmu_entropy(best, side * side),
                label_information(best, material.labels),
                purity(best, material.labels),
                np.median(moved) if len(moved) else np.nan,
            )
            if kind == 0:
                table = bmu_map(best, material.labels, side, side, classes)
                hits[i] = table.sum(axis=2)
                winners[i] = np.where(hits[i] > 0, table.argmax(axis=2), -1)
                profiles[:, :, i] = _folds(codes, material.seed)
            noise[kind, i] = np.median(displacement(best[material.rows], shaken, side))
    stages = stages_of(material.taps)
    of_stages = [material.clean.means[i] for i in stages]
    return MapStudy(
        quantisation=found[0],
        quantisation_attacked=found[1],
        topographic=found[2],
        participation=found[3],
        participation_share=found[4],
        codebook=found[5],
        entropy=found[6],
        information=found[7],
        purity=found[8],
        moved=found[9],
        moved_noise=noise,
        profiles=profiles,
        stages=stages,
        stage_profiles=homogeneity_of(narrowed(of_stages, seed=material.seed), seed=material.seed)
        if of_stages
        else np.empty((3, 0, 0)),
        stage_profiles_own=homogeneity_of(of_stages, seed=material.seed)
        if of_stages
        else np.empty((3, 0, 0)),
        winners=winners,
        hits=hits,
    )


def _folds(codes: NDArray[np.float32], seed: int) -> Floats:
    """Homogeneity on random halves of the images: participation, codebook distance, entropy."""
    out = np.full((3, _FOLDS), np.nan)
    generator = np.random.default_rng(seed)
    for fold in range(_FOLDS):
        half = codes[generator.permutation(len(codes))[: max(2, len(codes) // 2)]]
        try:
            som = fit_som(half, rows=8, columns=8, epochs=8, seed=seed)
        except ConstantError:
            continue
        out[:, fold] = (
            participation_ratio(half),
            som.codebook_distance(),
            bmu_entropy(som.best(half), 64),
        )
    return out


def depth_trend(profiles: Floats, *, seed: int = 0) -> Interval | None:
    """Return Spearman's rho of depth and a homogeneity figure: (F, L) folds in, interval out.

    None for fewer than three taps, over which nothing can be said to rise.
    """
    known = profiles[:, np.isfinite(profiles).all(axis=0)]
    return rank_trend(known, seed=seed) if known.shape[1] > 2 else None


def last_minus_first(profile: Floats) -> Interval | None:
    """Return by how much a figure is larger at the last stage than at the first.

    The mean over parts with Student's 95 % interval; parts share no image. None with fewer than
    two stages, or two parts in which both are known.

    Args:
        profile: (F, G).
    """
    if profile.shape[1] < 2:
        return None
    change = profile[:, -1] - profile[:, 0]
    change = change[np.isfinite(change)]
    n = len(change)
    if n < 2:
        return None
    reach = float(stats.t.ppf(0.975, n - 1) * change.std(ddof=1) / np.sqrt(n))
    mean = float(change.mean())
    return Interval(mean, mean - reach, mean + reach, n)
