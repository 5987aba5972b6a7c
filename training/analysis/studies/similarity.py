"""Study 1: similarity of bit patterns and representational dissimilarity. L taps, Q images."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reluguard.training.analysis.checks import Floats, Ints
from reluguard.training.analysis.material import Material
from reluguard.training.analysis.rdm import (
    balanced_order,
    category_model,
    compare_rdms,
    condense,
    kendall,
    spearman,
)
from reluguard.training.analysis.similarity import (
    class_weights,
    jaccard_similarity,
    weighted_similarity,
)
from reluguard.training.errors import ConstantError

__all__ = ["SimilarityStudy", "study_similarity"]

_SHOWN = 200  # images of a heat map: more than the pixels it is drawn with help nobody


@dataclass(frozen=True, slots=True, kw_only=True)
class SimilarityStudy:
    """How alike images look at each tap.

    Attributes:
        rdm_labels: int64, (Q,). Classes of the images in the heat maps, in order.
        rdm_clean: float16, (L, Q, Q). Share of differing bits.
        rdm_attacked: float16, (L, Q, Q).
        layer_spearman: (L, L), of the clean RDMs.
        layer_kendall: (L, L).
        category_hamming: (L,). Spearman with the category model, of clean RDMs.
        category_jaccard: (L,).
        category_weighted: (L,). Bits weighted by class, the weights from other images.
        category_attacked: (L,). Attacked RDMs, categories by what the images show.
        category_answer: (L,). Attacked RDMs, categories by what the network answers.
        share_on: (L,). Mean share of bits that are on.
    """

    rdm_labels: Ints
    rdm_clean: NDArray[np.float16]
    rdm_attacked: NDArray[np.float16]
    layer_spearman: Floats
    layer_kendall: Floats
    category_hamming: Floats
    category_jaccard: Floats
    category_weighted: Floats
    category_attacked: Floats
    category_answer: Floats
    share_on: Floats


def study_similarity(material: Material) -> SimilarityStudy:
    """Return the study.

    Raises:
        ConstantError: a layer is constant.
    """
    labels = material.row_labels
    count = len(material.taps)
    shown = balanced_order(labels, max(3, _SHOWN // len(np.unique(labels))), seed=material.seed)
    part = balanced_order(labels, max(3, 500 // len(np.unique(labels))), seed=material.seed)
    model = category_model(labels[part])
    answers = material.attacked[material.main].answers[part]
    answer_model = category_model(answers) if len(np.unique(answers)) > 1 else None
    clean_rdms = np.stack([condense(_rdm(material, i, "clean", part)) for i in range(count)])
    found = np.full((5, count), np.nan)
    for i in range(count):
        attacked = condense(_rdm(material, i, "attacked", part))
        found[0, i] = spearman(clean_rdms[i], model)
        found[1, i] = spearman(_jaccard(material, i, part), model)
        found[2, i] = _weighted(material, i, part, model)
        found[3, i] = spearman(attacked, model)
        if answer_model is not None:
            found[4, i] = spearman(attacked, answer_model)
    taus = np.eye(count)
    for i in range(count):
        for j in range(i + 1, count):
            taus[i, j] = taus[j, i] = kendall(clean_rdms[i], clean_rdms[j], seed=material.seed)
    bits = np.array([tap.bits for tap in material.taps])
    on = np.array([counts.mean() for counts in material.distances.on_clean])
    return SimilarityStudy(
        rdm_labels=labels[shown],
        rdm_clean=_stack(material, "clean", shown),
        rdm_attacked=_stack(material, "attacked", shown),
        layer_spearman=compare_rdms(clean_rdms),
        layer_kendall=taus,
        category_hamming=found[0],
        category_jaccard=found[1],
        category_weighted=found[2],
        category_attacked=found[3],
        category_answer=found[4],
        share_on=on / bits,
    )


def _rdm(material: Material, tap: int, kind: str, rows: Ints) -> NDArray[np.float32]:
    counts = getattr(material.distances, kind)[tap][np.ix_(rows, rows)]
    share: NDArray[np.float32] = (counts / np.float32(material.taps[tap].bits)).astype(np.float32)
    return share


def _stack(material: Material, kind: str, rows: Ints) -> NDArray[np.float16]:
    rdms = [_rdm(material, i, kind, rows) for i in range(len(material.taps))]
    return np.stack(rdms).astype(np.float16)


def _jaccard(material: Material, tap: int, rows: Ints) -> NDArray[np.float32]:
    counts = material.distances.clean[tap][np.ix_(rows, rows)]
    return condense(1 - jaccard_similarity(counts, material.distances.on_clean[tap][rows]))


def _weighted(material: Material, tap: int, part: Ints, model: NDArray[np.float32]) -> float:
    """Weights from the images outside the part, so that a label never weighs its own image."""
    bits = material.taps[tap].bits
    others = np.setdiff1d(np.arange(len(material.labels)), material.rows[part])
    patterns = material.clean.patterns[tap]
    if len(others) < 2 or len(np.unique(material.labels[others])) < 2:
        return float("nan")
    try:
        weights = class_weights(np.asarray(patterns[others]), bits, material.labels[others])
    except ConstantError:
        return float("nan")
    alike = weighted_similarity(np.asarray(patterns[material.rows[part]]), bits, weights)
    apart = 1 - (alike + alike.T) / 2
    np.fill_diagonal(apart, 0)
    return spearman(condense(apart), model)
