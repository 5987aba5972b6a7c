"""What Chen et al. claim of graph-based similarity."""

from reluguard.training.analysis.claims.claim import Claim, claim, untold
from reluguard.training.analysis.seeds import SeedStudy
from reluguard.training.statistics.intervals import mean_of

__all__ = ["matching"]

_CHEN = "Chen et al. 2021, arXiv 2111.11165"
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
    claims = []
    for kind, found in (("all edges", seeds.gbs), ("five nearest neighbours", seeds.gbs_near)):
        measure = (
            f"layers matched by GBS minus by linear CKA, {seeds.networks} networks of "
            f"{seeds.layers} layers, {len(found)} ordered pairs; "
            f"GBS {found.mean():.3f}, CKA {seeds.cka.mean():.3f}"
        )
        claims.append(
            claim(
                _CHEN,
                f"{title} ({kind})",
                theirs="GBS ahead",
                setup=_SETUP,
                measure=measure,
                ours=mean_of(found - seeds.cka, seed=seed),
                level=True,
            )
        )
    return claims
