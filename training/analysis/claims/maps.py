"""What Lee and Vijayan claim of self-organizing maps. F parts, G stages."""

from collections.abc import Sequence

from reluguard.training.analysis.claims.claim import Aside, Claim, claim, untold
from reluguard.training.analysis.networks.seeds import SeedStudy
from reluguard.training.analysis.studies.maps import MapStudy, depth_trend, last_minus_first

__all__ = ["homogeneity", "homogeneity_asides"]

_LEE = "Lee and Vijayan 2022, arXiv 2205.10952"
_SETUP = "stages of ResNet-18 and ResNet-50, one number per feature map; full text not read"
_FIGURES = (
    "participation ratio of the codes",
    "cosine distance of the map's codebook",
    "entropy of best-matching units",
)


def homogeneity(maps: MapStudy, seeds: Sequence[SeedStudy]) -> list[Claim]:
    """Return the paper's lines, of this network and of the residual ones that were trained."""
    parts, stages = maps.stage_profiles.shape[1:]
    note = "of this one network" if stages > 1 else f"{stages} stages, two are needed"
    lines = [
        claim(
            _LEE,
            f"Early codes are homogeneous, late codes diverse ({name})",
            theirs="rises, no figure",
            setup=_SETUP,
            measure=f"{name}, last of {stages} stages minus first, codes of as many columns; mean "
            f"of {parts} parts of the images that share none",
            ours=last_minus_first(profile),
            note=note,
        )
        for name, profile in zip(_FIGURES, maps.stage_profiles, strict=True)
    ]
    lines += [
        claim(
            _LEE,
            f"… and in small residual networks ({name})",
            theirs="rises, no figure",
            setup=_SETUP,
            measure=f"{name}, last of {profile.shape[1]} stages minus first, codes of as many "
            f"columns; mean of {study.networks} small {study.architecture} networks",
            ours=last_minus_first(profile),
            note=f"over networks of accuracy {study.accuracy.min():.2f} to "
            f"{study.accuracy.max():.2f}",
        )
        for study in seeds
        if study.architecture == "residual"
        for name, profile in zip(_FIGURES, study.homogeneity, strict=True)
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


def homogeneity_asides(maps: MapStudy, seed: int) -> list[Aside]:
    """Return the same with every stage as wide as it is, and over every ReLU."""
    lines = [
        Aside(
            near=_LEE,
            measure=f"{name}, last stage minus first, each as wide as it is",
            ours=last_minus_first(profile),
        )
        for name, profile in zip(_FIGURES, maps.stage_profiles_own, strict=True)
    ]
    return lines + [
        Aside(
            near=_LEE,
            measure=f"Spearman's rho of depth and the {name} over every tap; halves of the images "
            "that overlap, so the interval is too narrow",
            ours=depth_trend(profile, seed=seed),
        )
        for name, profile in zip(_FIGURES, maps.profiles, strict=True)
    ]
