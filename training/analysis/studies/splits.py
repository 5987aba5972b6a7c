"""Study 2: Fiedler cuts. L taps, P images, K classes, G graphs."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reluguard.training.analysis.checks import Floats, Ints
from reluguard.training.analysis.fiedler import (
    GRAPHS,
    fiedler,
    matched_accuracy,
    nystrom,
    pair_accuracies,
    partition,
    split_accuracy,
)
from reluguard.training.analysis.material import Material, choose_rows
from reluguard.training.analysis.similarity import hamming_counts, hamming_similarity
from reluguard.training.analysis.som import label_information
from reluguard.training.errors import ConstantError

__all__ = ["SplitStudy", "study_splits"]

_LEAST = 10  # images on each side of a clean-against-attacked split


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitStudy:
    """What unsupervised cuts find at each tap.

    Attributes:
        classes: int64, (K,).
        pairs: (G, L, K, K). Two-class split accuracy of up to 2 P clean images, graphs as GRAPHS.
        attacked_pairs: (L, K, K). The same for attacked images by what they show.
        connectivity: (L,). Mean second eigenvalue of the normalised graphs.
        gap: (L,). Mean eigengap.
        parts_accuracy: (L,). Recursive cuts into K parts, best matching with the classes.
        parts_information: (L,). Normalised mutual information of parts and classes.
        nystrom: (L,). Two-class accuracy on images that were not in the graph.
        attack_split: (L,). Cutting clean from attacked images, all classes mixed.
        attack_split_within: (L,). The same among images of one answer, mean over answers.
    """

    classes: Ints
    pairs: Floats
    attacked_pairs: Floats
    connectivity: Floats
    gap: Floats
    parts_accuracy: Floats
    parts_information: Floats
    nystrom: Floats
    attack_split: Floats
    attack_split_within: Floats


def study_splits(material: Material) -> SplitStudy:
    """Return the study.

    Raises:
        LabelError: images of one class only.
        ConstantError: a layer is constant.
    """
    labels = material.row_labels
    classes = np.unique(labels)
    k, count = len(classes), len(material.taps)
    pairs = np.full((len(GRAPHS), count, k, k), np.nan)
    attacked_pairs = np.full((count, k, k), np.nan)
    found = np.full((7, count), np.nan)
    # clean cuts cost no attack, so they are made on twice as many images as the rest
    many = choose_rows(material.labels, 2 * len(labels), classes=k, seed=material.seed)
    for i, tap in enumerate(material.taps):
        clean = material.similarity(i)
        more = np.asarray(material.clean.patterns[i][many])
        alike = hamming_similarity(hamming_counts(more), tap.bits)
        for g, graph in enumerate(GRAPHS):
            pairs[g, i] = pair_accuracies(alike, material.labels[many], graph, seed=material.seed)
        attacked_pairs[i] = pair_accuracies(
            material.similarity(i, "attacked"), labels, seed=material.seed
        )
        found[0, i], found[1, i] = _eigenvalues(clean, labels)
        parts = partition(clean, k, "knn", seed=material.seed)
        found[2, i] = matched_accuracy(parts, labels)
        found[3, i] = label_information(parts, np.searchsorted(classes, labels))
        found[4, i] = _out_of_sample(clean, labels)
        found[5, i], found[6, i] = _attack_splits(material, i)
    return SplitStudy(
        classes=classes,
        pairs=pairs,
        attacked_pairs=attacked_pairs,
        connectivity=found[0],
        gap=found[1],
        parts_accuracy=found[2],
        parts_information=found[3],
        nystrom=found[4],
        attack_split=found[5],
        attack_split_within=found[6],
    )


def _pair_rows(labels: Ints) -> list[Ints]:
    classes = np.unique(labels)
    return [
        np.flatnonzero((labels == a) | (labels == b))
        for n, a in enumerate(classes)
        for b in classes[n + 1 :]
    ]


def _eigenvalues(similarity: NDArray[np.float32], labels: Ints) -> tuple[float, float]:
    cuts = [fiedler(similarity[np.ix_(rows, rows)]) for rows in _pair_rows(labels)]
    return (
        float(np.mean([cut.connectivity for cut in cuts])),
        float(np.mean([cut.gap for cut in cuts])),
    )


def _out_of_sample(similarity: NDArray[np.float32], labels: Ints) -> float:
    """Half of the images make the graph, the others get their coordinate from it."""
    accuracies = []
    for rows in _pair_rows(labels):
        known, new = rows[::2], rows[1::2]
        if len(known) < 3:
            continue
        extended = nystrom(similarity[np.ix_(known, known)])
        side = extended.coordinate(similarity[np.ix_(new, known)]) > 0
        agree = np.mean((extended.vector > 0) == (labels[known] == labels[known].max()))
        # which side is which was settled on the known images: no label of a new one is used
        right = (side == (labels[new] == labels[rows].max())).mean()
        accuracies.append(right if agree >= 0.5 else 1 - right)
    return float(np.mean(accuracies)) if accuracies else float("nan")


def _attack_splits(material: Material, tap: int) -> tuple[float, float]:
    """Clean and attacked images of **different** sources, so no image meets its own twin."""
    answers = material.attacked[material.main].answers
    success = material.success[material.main]
    before = material.clean.answers[material.rows]
    index = np.arange(len(material.rows))
    clean = index[(index % 2 == 0) & (before == material.row_labels)]
    attacked = index[(index % 2 == 1) & success]
    mixed = _split(material, tap, clean, attacked)
    within = [
        _split(material, tap, clean[before[clean] == c], attacked[answers[attacked] == c])
        for c in np.unique(answers)
    ]
    kept = [value for value in within if np.isfinite(value)]
    return mixed, float(np.mean(kept)) if kept else float("nan")


def _split(material: Material, tap: int, clean: Ints, attacked: Ints) -> float:
    size = min(len(clean), len(attacked))
    if size < _LEAST:
        return float("nan")
    generator = np.random.default_rng(material.seed)
    a = np.sort(generator.choice(clean, size, replace=False))
    b = np.sort(generator.choice(attacked, size, replace=False))
    cross = material.distances.cross[tap][np.ix_(a, b)]
    counts = np.block(
        [
            [material.distances.clean[tap][np.ix_(a, a)], cross],
            [cross.T, material.distances.attacked[tap][np.ix_(b, b)]],
        ]
    )
    try:
        cut = fiedler(1 - counts / material.taps[tap].bits, seed=material.seed)
    except ConstantError:
        return float("nan")
    return split_accuracy(cut.side, np.arange(2 * size) >= size)
