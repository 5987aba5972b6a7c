"""What Chen et al. claim of graph-based similarity."""

from collections.abc import Sequence
from dataclasses import replace

from reluguard.training.analysis.checks import Floats
from reluguard.training.analysis.claims.claim import Aside, Claim, claim, untold
from reluguard.training.analysis.networks.seeds import SeedStudy
from reluguard.training.statistics.intervals import network_pair_mean

__all__ = ["matching", "matching_asides"]

_CHEN = "Chen et al. 2021, arXiv 2111.11165"
_AVERAGED = "on spatial means, as the authors reckon theirs, "
_FEWEST = 5  # networks that a bootstrap over networks can stand on
_SETUP = "ten networks each of ResNet-18, VGG-16 and a CNN of 10 layers, CIFAR-10, one batch"


def matching(seeds: Sequence[SeedStudy], seed: int) -> list[Claim]:
    """Return the paper's lines: two for each architecture of which networks were trained."""
    title = "GBS finds the matching layer at least as well as CKA"
    if not seeds:
        return [
            untold(
                _CHEN,
                title,
                theirs="GBS ahead",
                setup=_SETUP,
                measure="-",
                why="no other network was trained: give --papers",
            )
        ]
    lines = []
    for study in seeds:
        few = f"{study.networks} networks are too few to resample, {_FEWEST} are asked for"
        for kind, found in _kinds(study):
            line = claim(
                _CHEN,
                f"{title} ({study.architecture} networks, {kind})",
                theirs="GBS ahead",
                setup=_SETUP,
                measure=_measure(study, found, study.cka_averaged, _AVERAGED),
                ours=network_pair_mean(found - study.cka_averaged, study.pairs, seed=seed),
                level=True,
            )
            if study.networks < _FEWEST:
                line = replace(line, holds="can't be told here", why=few)
            lines.append(line)
    return lines


def matching_asides(seeds: Sequence[SeedStudy], seed: int) -> list[Aside]:
    """Return the same beside CKA on all features, which the authors don't compare with."""
    return [
        Aside(
            near=_CHEN,
            measure=f"GBS of {kind} beside CKA on all features: "
            + _measure(study, found, study.cka),
            ours=network_pair_mean(found - study.cka, study.pairs, seed=seed),
        )
        for study in seeds
        for kind, found in _kinds(study)
    ]


def _kinds(study: SeedStudy) -> tuple[tuple[str, Floats], ...]:
    return (("all edges", study.gbs), ("five nearest neighbours", study.gbs_near))


def _measure(study: SeedStudy, gbs: Floats, cka: Floats, of: str = "") -> str:
    return (
        f"share of layers matched by GBS ({gbs.mean():.3f}) minus by linear CKA {of}"
        f"({cka.mean():.3f}), {study.networks} small {study.architecture} networks, "
        f"{study.layers} layers, accuracy {study.accuracy.min():.2f} to "
        f"{study.accuracy.max():.2f}; {len(study.pairs)} unordered pairs, networks resampled"
    )
