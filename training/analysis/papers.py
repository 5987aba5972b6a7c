"""The source papers' headline claims against what was measured here. L taps.

Every figure in the table comes out of a study; a claim that fails is shown as failing. A claim
holds if its whole interval lies on the claimed side, fails if none of it does, and is unclear
otherwise.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from reluguard.training.analysis.fiedler import GRAPHS
from reluguard.training.analysis.hardening import HardenReport
from reluguard.training.analysis.seeds import SeedStudy
from reluguard.training.analysis.studies.consistency import ConsistencyStudy
from reluguard.training.analysis.studies.maps import MapStudy, depth_trend
from reluguard.training.analysis.studies.splits import SplitStudy
from reluguard.training.analysis.studies.votes import CLASSIFIERS, VoteStudy
from reluguard.training.statistics.intervals import class_pair_mean, mean_of, rank_trend
from reluguard.training.statistics.metrics import Interval, rate_interval

__all__ = ["Claim", "Holds", "claims_rows", "judge", "paper_claims"]

Holds = Literal["yes", "no", "unclear", "not measured"]

_JAMIL23 = "Jamil et al. 2023, arXiv 2305.01808"
_LEE = "Lee and Vijayan 2022, arXiv 2205.10952"
_CHEN = "Chen et al. 2021, arXiv 2111.11165"
_DONG = "Dong et al. 2017, arXiv 1708.05493"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One line of the table.

    Attributes:
        paper: who says so.
        claim: what they say, in our words.
        theirs: their figure, or what is known of it.
        measure: what was measured here to test it.
        ours: the figure with its interval; None where it was not measured.
        target: the claim holds above this.
        holds: see the module.
    """

    paper: str
    claim: str
    theirs: str
    measure: str
    ours: Interval | None
    target: float
    holds: Holds

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def judge(ours: Interval | None, target: float) -> Holds:
    """Return whether a figure lies above the target, with its whole interval."""
    if ours is None or not np.isfinite(ours.value):
        return "not measured"
    if ours.low > target:
        return "yes"
    return "no" if ours.high <= target else "unclear"


def _claim(
    paper: str, claim: str, theirs: str, measure: str, ours: Interval | None, target: float
) -> Claim:
    return Claim(
        paper=paper,
        claim=claim,
        theirs=theirs,
        measure=measure,
        ours=ours,
        target=target,
        holds=judge(ours, target),
    )


def paper_claims(
    *,
    splits: SplitStudy,
    votes: VoteStudy,
    maps: MapStudy,
    consistency: ConsistencyStudy,
    seeds: SeedStudy | None = None,
    hardening: HardenReport | None = None,
    seed: int = 0,
) -> list[Claim]:
    """Return the table's lines, in the order of the papers.

    Args:
        splits: study 2.
        votes: study 3.
        maps: study 4.
        consistency: study 6.
        seeds: networks of one architecture and several seeds, for the layer matching.
        hardening: what consistent-loss training did.
        seed: of the bootstraps.
    """
    return [
        *_separation(splits, seed),
        *_detection(votes),
        *_homogeneity(maps, seed),
        *_matching(seeds, seed),
        *_inconsistency(consistency, seed),
        *_hardening(hardening),
    ]


def _separation(splits: SplitStudy, seed: int) -> list[Claim]:
    normalised = splits.pairs[GRAPHS.index("normalised")]
    pairs = [(i, j) for i in range(len(splits.classes)) for j in range(i)]
    per_pair = np.stack([normalised[:, i, j] for i, j in pairs])
    count = f"{len(pairs)} class pair{'s' if len(pairs) != 1 else ''}"
    return [
        _claim(
            _JAMIL23,
            "The last ReLU separates two classes by the Fiedler vector",
            "> .95 accuracy",
            f"mean split accuracy over {count}, normalised Laplacian, last tap",
            class_pair_mean(normalised[-1], seed=seed),
            0.95,
        ),
        _claim(
            _JAMIL23,
            "Separation rises with depth",
            "rises, no figure",
            "Spearman's rho of depth and mean split accuracy",
            rank_trend(per_pair, seed=seed) if len(normalised) > 2 else None,
            0.0,
        ),
    ]


def _detection(votes: VoteStudy) -> list[Claim]:
    return [
        _claim(
            _JAMIL23,
            f"Bits tell attacked from clean with a simple classifier ({attack})",
            "> .95 accuracy",
            f"{name}, share of test images told right",
            rate_interval(int(votes.hits[a, m]), int(votes.trials[a])),
            0.95,
        )
        for a, attack in enumerate(votes.attacks)
        for m, name in enumerate(CLASSIFIERS)
    ]


def _homogeneity(maps: MapStudy, seed: int) -> list[Claim]:
    names = (
        "participation ratio of the codes",
        "cosine distance of the map's codebook",
        "entropy of best-matching units",
    )
    return [
        _claim(
            _LEE,
            "Early codes are homogeneous, late codes diverse",
            "rises, no figure",
            f"Spearman's rho of depth and the {name}",
            depth_trend(profile, seed=seed),
            0.0,
        )
        for name, profile in zip(names, maps.profiles, strict=True)
    ]


def _matching(seeds: SeedStudy | None, seed: int) -> list[Claim]:
    title = "GBS finds the matching layer at least as well as CKA"
    if seeds is None:
        what = "no second seed was trained: give papers=True"
        return [_claim(_CHEN, title, "GBS ahead", what, None, 0.0)]
    claims = []
    for kind, found in (("all edges", seeds.gbs), ("five nearest neighbours", seeds.gbs_near)):
        what = (
            f"layers matched by GBS ({kind}) minus by linear CKA, {seeds.networks} networks of "
            f"{seeds.layers} layers, {len(found)} ordered pairs; "
            f"GBS {found.mean():.3f}, CKA {seeds.cka.mean():.3f}"
        )
        ours = mean_of(found - seeds.cka, seed=seed)
        claim = _claim(_CHEN, f"{title} ({kind})", "GBS ahead", what, ours, 0.0)
        # "at least as well": level is enough
        claims.append(replace(claim, holds="yes") if ours.low >= 0 else claim)
    return claims


def _inconsistency(study: ConsistencyStudy, seed: int) -> list[Claim]:
    last = -1
    level = np.nan_to_num(study.level_real[last] - study.level_attacked[last], nan=0.0)
    known = np.isfinite(study.level_real[last])
    return [
        _claim(
            _DONG,
            "Attacked representations are inconsistent with real ones of the same class",
            "inconsistent, no figure",
            "cosine to the true class's prototype, real minus attacked, last tap",
            mean_of(study.real[last] - study.attacked_true[last], seed=seed),
            0.0,
        ),
        _claim(
            _DONG,
            "… also with real ones of the class that is answered",
            "inconsistent, no figure",
            "cosine to the answer's prototype, real minus attacked, last tap",
            _difference(study, last, seed),
            0.0,
        ),
        _claim(
            _DONG,
            "Neurons answer to one class on real images, not on attacked ones",
            "lower level of consistency, no figure",
            "share of favourite pairs of one label, real minus attacked, last tap's channels",
            mean_of(level[known], seed=seed) if known.any() else None,
            0.0,
        ),
    ]


def _difference(study: ConsistencyStudy, tap: int, seed: int) -> Interval | None:
    values = study.real[tap] - study.attacked_answer[tap]
    return mean_of(values, seed=seed) if np.isfinite(values).any() else None


def _hardening(report: HardenReport | None) -> list[Claim]:
    lines = (
        ("narrows that gap", "cosine of last-tap codes before and after the attack, gain", 0.0),
        ("makes the network more robust", "accuracy under PGD, gain", 0.0),
        ("costs little clean accuracy", "clean accuracy, gain; little is up to 10 points", -0.1),
    )
    gains = (
        (None, None, None)
        if report is None
        else (report.consistency_gain, report.robust_gain, report.clean_gain)
    )
    return [
        _claim(
            _DONG,
            f"Consistent-loss training {name}",
            "no figure",
            what if report else "no network was hardened: give papers=True",
            gain,
            target,
        )
        for (name, what, target), gain in zip(lines, gains, strict=True)
    ]


def claims_rows(claims: Sequence[Claim]) -> list[list[str]]:
    """Return the table's cells: claim, paper, theirs, ours, measured as, holds."""
    return [
        [
            claim.claim,
            claim.paper,
            claim.theirs,
            "-" if claim.ours is None else str(claim.ours),
            claim.measure,
            claim.holds,
        ]
        for claim in claims
    ]
