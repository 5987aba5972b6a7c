"""The source papers' claims against what was measured here, and what nobody claimed beside them.

Every figure in both tables comes out of a study; a claim that fails is shown as failing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from reluguard.training.analysis.claims.bits import detection, detection_asides, separation
from reluguard.training.analysis.claims.claim import Aside, Claim
from reluguard.training.analysis.claims.consistency import (
    inconsistency,
    inconsistency_asides,
    training,
    training_asides,
)
from reluguard.training.analysis.claims.graphs import matching, matching_asides
from reluguard.training.analysis.claims.maps import homogeneity, homogeneity_asides
from reluguard.training.analysis.findings import Findings
from reluguard.training.analysis.hardening import ConsistentTraining
from reluguard.training.analysis.networks.seeds import SeedStudy

__all__ = ["Papers", "aside_rows", "claim_rows", "paper_tables"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Papers:
    """Both tables: what the papers claim, in their order, and what nobody claimed."""

    claims: tuple[Claim, ...]
    beside: tuple[Aside, ...]


def paper_tables(
    findings: Findings,
    *,
    seeds: Sequence[SeedStudy] = (),
    hardening: ConsistentTraining | None = None,
    seed: int = 0,
) -> Papers:
    """Return both tables.

    Args:
        findings: of all studies.
        seeds: per architecture networks of several seeds.
        hardening: what consistent-loss training did.
        seed: of the bootstraps.
    """
    return Papers(
        claims=(
            *separation(findings.splits, seed),
            *detection(findings.classifiers),
            *homogeneity(findings.maps, seeds),
            *matching(seeds, seed),
            *inconsistency(findings.consistency, seed),
            *training(hardening),
        ),
        beside=(
            *detection_asides(findings.classifiers),
            *homogeneity_asides(findings.maps, seed),
            *matching_asides(seeds, seed),
            *inconsistency_asides(findings.consistency, seed),
            *training_asides(hardening),
        ),
    )


def claim_rows(claims: Sequence[Claim]) -> list[list[str]]:
    """Return the cells: claim, the paper, done here and why so, ours, verdict."""
    return [
        [
            one.claim,
            f"{one.setup}. Found: {one.theirs}",
            f"{one.measure}. Verdict: {one.why}" if one.measure != "-" else one.why,
            "-" if one.ours is None else str(one.ours),
            one.holds,
        ]
        for one in claims
    ]


def aside_rows(asides: Sequence[Aside]) -> list[list[str]]:
    """Return the cells: what was measured, ours, the paper it stands beside."""
    return [[one.measure, "-" if one.ours is None else str(one.ours), one.near] for one in asides]
