import numpy as np
import pytest

from reluguard.training.analysis.claims.bits import detection, detection_asides
from reluguard.training.analysis.claims.claim import claim, judge
from reluguard.training.analysis.claims.graphs import matching, matching_asides
from reluguard.training.analysis.networks.seeds import SeedStudy
from reluguard.training.analysis.studies.classifiers import CLASSIFIERS, ClassifierStudy
from reluguard.training.statistics.metrics import Interval


@pytest.mark.parametrize(
    ("low", "value", "high", "level", "verdict"),
    [
        (0.96, 0.97, 0.98, False, "holds"),
        (0.94, 0.97, 0.98, False, "can't be told here"),
        (0.90, 0.93, 0.95, False, "fails"),
        (0.80, 0.85, 0.90, False, "fails"),
        (0.95, 0.97, 0.98, False, "can't be told here"),
        (0.95, 0.97, 0.98, True, "holds"),
        (0.90, 0.93, 0.95, True, "can't be told here"),
        (0.90, 0.93, 0.94, True, "fails"),
    ],
    ids=str,
)
def test_a_claim_holds_with_its_whole_interval(
    low: float, value: float, high: float, level: bool, verdict: str
) -> None:
    """A claim holds above its target, fails at or below it, and can't be told across it.

    Where as much as the target is enough, it holds at the target too.
    """
    holds, why = judge(Interval(value, low, high, 10), 0.95, level=level)
    assert holds == verdict
    assert "0.95" in why


@pytest.mark.parametrize("ours", [None, Interval(float("nan"), 0, 1, 3)], ids=str)
def test_what_was_not_measured_is_not_judged(ours: Interval | None) -> None:
    """No figure, or one that is not a number, neither holds nor fails, and says why."""
    line = claim(
        "A", "x", theirs="y", setup="s", measure="m", ours=ours, target=0.5, note="no second tap"
    )
    assert (line.holds, line.why) == ("can't be told here", "not measured; no second tap")


def study(networks: int) -> SeedStudy:
    """Networks whose layers GBS finds always, CKA on spatial means half, on all features never."""
    pairs = np.array([(a, b) for a in range(networks) for b in range(a + 1, networks)])
    rates = {
        name: np.full(len(pairs), rate)
        for name, rate in (
            ("gbs", 1.0), ("gbs_bits", 1.0), ("gbs_near", 0.25), ("cka_averaged", 0.5), ("cka", 0.0)
        )
    }  # fmt: skip
    table = np.eye(3)
    rising = np.tile([[1.0, 2.0]], (3, networks, 1)) + np.arange(networks)[:, None] * [[0, 0.01]]
    return SeedStudy(
        architecture="residual", networks=networks, layers=3, accuracy=np.full(networks, 0.9),
        pairs=pairs, homogeneity=rising, gbs_table=table, cka_table=table, **rates,
    )  # fmt: skip


def test_gbs_is_judged_beside_the_authors_cka_with_networks_enough() -> None:
    """CKA on spatial means decides, CKA on all features stands beside; few networks can't tell."""
    assert [line.holds for line in matching([study(5)], 0)] == ["holds", "fails"]
    assert [line.ours.value for line in matching_asides([study(5)], 0) if line.ours] == [1.0, 0.25]
    for line in matching([study(4)], 0):
        assert line.holds == "can't be told here"
        assert line.why == "4 networks are too few to resample, 5 are asked for"
    (line,) = matching((), 0)
    assert (line.holds, line.ours) == ("can't be told here", None)
    assert "--papers" in line.why


def detectors(*, right: int, noise: int) -> ClassifierStudy:
    """Classifiers of two attacks at two taps: so many of 100 attacked and noisy images called."""
    called = np.zeros((2, len(CLASSIFIERS), 3), np.int64)
    called[..., 1], called[..., 2] = right, noise
    taps = called[:, :2].copy()
    taps[:, -1, 1] = 0  # the last tap finds none
    return ClassifierStudy(
        attacks=("pgd-linf-8", "fgsm-linf-8"), too_few=("fgsm-linf-2",), tested=np.full(2, 100),
        called=called, tap_called=taps, bits_per_tap=np.full((2, 2), 1000),
    )  # fmt: skip


def test_a_simple_classifier_is_judged_by_fgsm_and_asked_of_noise() -> None:
    """Strengths and places have lines of their own, each says what it calls noise; ours are apart.

    A strength that fooled the network too seldom can't be told.
    """
    lines = detection(detectors(right=100, noise=70))
    told = {line.claim.rpartition(" classifier ")[2]: line for line in lines[:3]}
    assert told["(fgsm-linf-8, all taps)"].holds == "holds"
    assert "calls 70% of images with harmless noise" in told["(fgsm-linf-8, all taps)"].why
    assert told["(fgsm-linf-8, the last tap)"].holds == "fails"
    assert "fewer than 8 times" in told["(fgsm-linf-2)"].why
    assert not any("pgd" in line.claim for line in lines)
    asides = detection_asides(detectors(right=100, noise=70))
    noisy = [line.ours.value for line in asides if "noise" in line.measure and line.ours]
    assert noisy == [0.7] * 2 * len(CLASSIFIERS)
    assert sum("pgd-linf-8" in line.measure for line in asides) == 2 * len(CLASSIFIERS)


def test_right_is_what_is_called_by_its_kind() -> None:
    """Right are the attacked ones that are called so and the clean ones that are not."""
    study = detectors(right=60, noise=0)
    assert study.hits.tolist() == [[160] * len(CLASSIFIERS)] * 2
    assert study.tap_hits.tolist() == [[160, 100]] * 2
    assert study.trials.tolist() == [200, 200]
