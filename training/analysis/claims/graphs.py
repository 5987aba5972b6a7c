"""What Chen et al. claim of graph-based similarity."""

from dataclasses import replace

from reluguard.training.analysis.checks import Floats
from reluguard.training.analysis.claims.claim import Aside, Claim, claim, untold
from reluguard.training.analysis.networks.seeds import SeedStudy
from reluguard.training.statistics.intervals import network_pair_mean

__all__ = ["matching", "matching_asides"]

_CHEN = "Chen et al. 2021, arXiv 2111.11165"
_FEWEST = 5  # networks that a bootstrap over networks can stand on
_SETUP = "ten networks each of ResNet-18, VGG-16 and a CNN of 10 layers, CIFAR-10, one batch"


def matching(seeds: SeedStudy | None, seed: int) -> list[Claim]:
    """Return the paper's lines."""
    title = "GBS finds the matching layer at least as well as CKA"
    if seeds is None:
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
    told = f"{title} (CKA on spatial means, as the authors reckon it; GBS "
    few = f"{seeds.networks} networks are too few to resample, {_FEWEST} are asked for"
    lines = []
    for kind, found in _kinds(seeds):
        line = claim(
            _CHEN,
            f"{told}of {kind})",
            theirs="GBS ahead",
            setup=_SETUP,
            measure=_measure(seeds, found, seeds.cka_averaged),
            ours=network_pair_mean(found - seeds.cka_averaged, seeds.pairs, seed=seed),
            level=True,
        )
        if seeds.networks < _FEWEST:
            line = replace(line, holds="can't be told here", why=few)
        lines.append(line)
    return lines


def matching_asides(seeds: SeedStudy | None, seed: int) -> list[Aside]:
    """Return the same beside CKA on all features, which the authors don't compare with."""
    if seeds is None:
        return []
    return [
        Aside(
            near=_CHEN,
            measure=f"GBS of {kind} beside CKA on all features: "
            + _measure(seeds, found, seeds.cka),
            ours=network_pair_mean(found - seeds.cka, seeds.pairs, seed=seed),
        )
        for kind, found in _kinds(seeds)
    ]


def _kinds(seeds: SeedStudy) -> tuple[tuple[str, Floats], ...]:
    return (("all edges", seeds.gbs), ("five nearest neighbours", seeds.gbs_near))


def _measure(seeds: SeedStudy, gbs: Floats, cka: Floats) -> str:
    return (
        f"share of layers matched by GBS ({gbs.mean():.3f}) minus by linear CKA "
        f"({cka.mean():.3f}), {seeds.networks} networks of one small architecture, "
        f"{seeds.layers} layers, accuracy {seeds.accuracy.min():.2f} to "
        f"{seeds.accuracy.max():.2f}; {len(seeds.pairs)} unordered pairs, networks resampled"
    )
