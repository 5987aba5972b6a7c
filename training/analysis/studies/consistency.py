"""Study 6: are attacked images inside like real ones? L taps, P images, C channels at most."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reluguard.training.analysis.checks import Floats, Ints
from reluguard.training.analysis.consistency import (
    class_cosine,
    class_prototypes,
    distance_ratio,
    flip_rates,
    level_of_consistency,
    twin_cosine,
)
from reluguard.training.analysis.influence import prediction_difference
from reluguard.training.analysis.material import Material
from reluguard.training.analysis.words import likeness_table

__all__ = ["ConsistencyStudy", "study_consistency"]

_TRACED = 24  # images whose channels are silenced one by one
_TOP = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsistencyStudy:
    """Real and attacked representations held against each other; attacked means successes only.

    Attributes:
        flips: (L, C). Share of bits the attack flips per channel; NaN past a tap's channels.
        flips_noise: (L, C). The same for harmless noise of that size.
        level_real: (L, C). How often two of a channel's ten favourite real images share a label.
        level_attacked: (L, C). The same among attacked images, by what they show.
        tree_real: (L, C). How alike the labels of two favourites are by the tree of words; NaN
            where it lacks a class.
        tree_attacked: (L, C). The same among attacked images.
        twin: (L,). Mean cosine of a code before and after the attack.
        twin_noise: (L,).
        real: (L, P'). Cosine of real images to the prototype of their class.
        attacked_true: (L, P'). Of attacked images to the prototype of what they show.
        attacked_answer: (L, P'). Of attacked images to the prototype of the answer.
        ratio: (L,). Median distance to the true class by distance to the answer, attacked.
        traced: int64, (T,). Rows of the images whose channels were silenced at the last tap.
        influence_clean: (T, C'). By how much the answer's logit falls without a channel.
        influence_attacked: (T, C').
    """

    flips: Floats
    flips_noise: Floats
    level_real: Floats
    level_attacked: Floats
    tree_real: Floats
    tree_attacked: Floats
    twin: Floats
    twin_noise: Floats
    real: Floats
    attacked_true: Floats
    attacked_answer: Floats
    ratio: Floats
    traced: Ints
    influence_clean: NDArray[np.float32]
    influence_attacked: NDArray[np.float32]


def study_consistency(material: Material) -> ConsistencyStudy:
    """Return the study.

    Prototypes come from the images that were not attacked, or where those lack a class, from all.
    """
    count = len(material.taps)
    widest = max(tap.channels for tap in material.taps)
    chosen = np.flatnonzero(material.success[material.main])
    labels = material.row_labels[chosen]
    attacked = material.attacked[material.main]
    answers = attacked.answers[chosen]
    makers = _prototype_rows(material)
    per_channel = np.full((6, count, widest), np.nan)
    likeness = _likeness(material)
    per_image = np.full((3, count, len(chosen)), np.nan)
    per_tap = np.full((3, count), np.nan)
    classes = int(material.labels.max()) + 1
    for i, tap in enumerate(material.taps):
        c = tap.channels
        rows = material.rows[chosen]
        before = np.asarray(material.clean.patterns[i][rows])
        after = np.asarray(attacked.patterns[i][chosen])
        shaken = np.asarray(material.noisy.patterns[i][chosen])
        per_channel[0, i, :c] = flip_rates(before, after, tap.shape, tap.channel_axis)
        per_channel[1, i, :c] = flip_rates(before, shaken, tap.shape, tap.channel_axis)
        real, fooled = material.clean.means[i][rows], attacked.means[i][chosen]
        top = min(_TOP, len(chosen))
        per_channel[2, i, :c] = level_of_consistency(real, labels, top=top)
        per_channel[3, i, :c] = level_of_consistency(fooled, labels, top=top)
        if likeness is not None:
            for k, codes in ((4, real), (5, fooled)):
                per_channel[k, i, :c] = level_of_consistency(
                    codes, labels, top=top, likeness=likeness
                )
        per_tap[0, i] = twin_cosine(real, fooled).mean()
        per_tap[1, i] = twin_cosine(real, material.noisy.means[i][chosen]).mean()
        prototypes = _prototypes(material, i, makers, classes)
        known = np.isfinite(prototypes[answers]).all(axis=1)
        per_image[0, i] = class_cosine(real, labels, np.nan_to_num(prototypes))
        per_image[1, i] = class_cosine(fooled, labels, np.nan_to_num(prototypes))
        per_image[2, i] = class_cosine(fooled, answers, np.nan_to_num(prototypes))
        per_image[2, i, ~known] = np.nan
        ratio = distance_ratio(fooled, labels, answers, np.nan_to_num(prototypes))
        per_tap[2, i] = np.median(ratio[known]) if known.any() else np.nan
    traced = chosen[:: max(1, len(chosen) // _TRACED)][:_TRACED]
    clean_influence, attacked_influence = _influences(material, traced)
    return ConsistencyStudy(
        flips=per_channel[0],
        flips_noise=per_channel[1],
        level_real=per_channel[2],
        level_attacked=per_channel[3],
        tree_real=per_channel[4],
        tree_attacked=per_channel[5],
        twin=per_tap[0],
        twin_noise=per_tap[1],
        real=per_image[0],
        attacked_true=per_image[1],
        attacked_answer=per_image[2],
        ratio=per_tap[2],
        traced=traced,
        influence_clean=clean_influence,
        influence_attacked=attacked_influence,
    )


def _likeness(material: Material) -> Floats | None:
    """Return how alike classes are by the tree of words: (K, K), only those attacked filled in."""
    present = np.unique(material.row_labels)
    block = likeness_table([material.class_names[c] for c in present])
    if block is None:
        return None
    table = np.eye(len(material.class_names))
    table[np.ix_(present, present)] = block
    return table


def _prototype_rows(material: Material) -> Ints:
    others = np.setdiff1d(np.arange(len(material.labels)), material.rows)
    needed = np.unique(material.row_labels)
    if np.isin(needed, material.labels[others]).all():
        return others
    return np.arange(len(material.labels))


def _prototypes(material: Material, tap: int, rows: Ints, classes: int) -> Floats:
    """Return (K, C), NaN for classes without an image."""
    labels = material.labels[rows]
    present = np.unique(labels)
    found = np.full((classes, material.taps[tap].channels), np.nan)
    renamed = np.searchsorted(present, labels)
    found[present] = class_prototypes(material.clean.means[tap][rows], renamed, len(present))
    return found


def _influences(
    material: Material, traced: Ints
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    last = material.taps[-1]
    if material.spec.batch is not None or len(traced) == 0:
        empty = np.empty((0, last.channels), np.float32)
        return empty, empty
    clean, attacked = (
        material.clean.answers[material.rows],
        material.attacked[material.main].answers,
    )
    pictures = (
        (material.images[material.rows[traced]], clean[traced]),
        (material.attacked_images[material.main][traced], attacked[traced]),
    )
    before, after = (
        prediction_difference(material.production, material.spec, last, images, answers)
        for images, answers in pictures
    )
    return before, after
