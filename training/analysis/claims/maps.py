"""What Lee and Vijayan claim of self-organizing maps."""

from reluguard.training.analysis.claims.claim import Claim, claim, untold
from reluguard.training.analysis.studies.maps import MapStudy, depth_trend

__all__ = ["homogeneity"]

_LEE = "Lee and Vijayan 2022, arXiv 2205.10952"
_SETUP = "stages of ResNet-18 and ResNet-50, one number per feature map; full text not read"


def homogeneity(maps: MapStudy, seed: int) -> list[Claim]:
    """Return the paper's lines."""
    names = (
        "participation ratio of the codes",
        "cosine distance of the map's codebook",
        "entropy of best-matching units",
    )
    lines = [
        claim(
            _LEE,
            "Early codes are homogeneous, late codes diverse",
            theirs="rises, no figure",
            setup=_SETUP,
            measure=f"Spearman's rho of depth and the {name}",
            ours=depth_trend(profile, seed=seed),
        )
        for name, profile in zip(names, maps.profiles, strict=True)
    ]
    lines.append(
        untold(
            _LEE,
            "Homogeneous early codes are why networks fall to attacks",
            theirs="no figure known",
            setup=_SETUP,
            measure="-",
            why="one network has one set of early codes: it would take many that differ in nothing "
            "else",
        )
    )
    return lines
