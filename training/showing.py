"""What reports show when they are asked for a plot or a data frame in Python."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from reluguard.detector.errors import SettingsError
from reluguard.detector.metrics import Interval, Rates
from reluguard.detector.showing.axes import BLUE, GREY, RED, axes_for
from reluguard.detector.showing.frames import data_frame
from reluguard.training.composed import composed_name

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Flagged", "Shown", "groups_shown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Flagged:
    """One kind of images and what share of them is flagged.

    Attributes:
        kind: "clean", "benign" or "attack"; of attacks also "composed".
        name: of the attack or the change.
        images: how many there were; of attacks those that succeeded.
        rates: shares by the false-positive rate of the threshold; empty where there are none.
        auroc: against clean images, of attacks.
    """

    kind: str
    name: str
    images: int
    rates: Rates
    auroc: Interval | None = None


class _Attacked(Protocol):
    """The figures of one attack."""

    @property
    def succeeded(self) -> int: ...
    @property
    def detected(self) -> Rates: ...
    @property
    def auroc(self) -> Interval | None: ...


class _Composed(Protocol):
    """The figures of attacks that one change came after."""

    @property
    def attacks(self) -> Mapping[str, _Attacked]: ...


def groups_shown(
    clean: tuple[int, Rates],
    benign: Mapping[str, tuple[int, Rates]],
    attacks: Mapping[str, _Attacked],
    composed: Mapping[str, _Composed],
) -> Sequence[Flagged]:
    """Return all kinds of images, clean first, attacks after a harmless change last.

    Args:
        clean: how many images as they came, and what is flagged of them.
        benign: the same of harmless changes, by name.
        attacks: by name.
        composed: attacks and what came afterwards, by the change.
    """
    named = [("attack", name, one) for name, one in attacks.items()]
    for change, group in composed.items():
        for name, one in group.attacks.items():
            named.append(("composed", composed_name(name, change), one))
    return [
        Flagged(kind="clean", name="clean", images=clean[0], rates=clean[1]),
        *(
            Flagged(kind="benign", name=name, images=images, rates=flagged)
            for name, (images, flagged) in benign.items()
        ),
        *(
            Flagged(kind=kind, name=name, images=one.succeeded, rates=one.detected, auroc=one.auroc)
            for kind, name, one in named
        ),
    ]


class Shown:
    """Figures of several kinds of images, as a data frame and as a plot."""

    __slots__ = ()

    def to_pandas(self) -> "pd.DataFrame":
        """Return a pandas data frame, one row for each kind of images and threshold.

        `kind` ("clean", "benign", "attack" or "composed"), `name`, `images` (of attacks those that
        succeeded), `auroc` with `auroc_low` and `auroc_high`, `rate`, the false-positive rate of
        the threshold, and `flagged` with `low` and `high`; intervals are of 95 %.

        Raises:
            SettingsError: pandas is not installed: `pip install 'reluguard[tables]'`.
        """
        return data_frame([*_rows(self._shown())])

    def plot(self, rate: float | None = None, axes: Any = None) -> Any:
        """Draw what share of attacks, of harmless changes and of clean images is flagged.

        Attacks should lie on the right, clean and harmless images on the left.

        Args:
            rate: the false-positive rate whose threshold it is; by default the largest.
            axes: matplotlib's, to draw on; new ones by default.

        Returns:
            The axes.

        Raises:
            SettingsError: no figures are of this rate, or matplotlib is not installed.
        """
        return _draw(self._shown(), rate, axes)

    def _shown(self) -> Sequence[Flagged]:
        """Return the kinds of images and what is flagged of them."""
        raise NotImplementedError


def _rows(groups: Sequence[Flagged]) -> Iterator[dict[str, Any]]:
    for one in groups:
        auroc = one.auroc
        for rate, share in one.rates.items():
            yield {
                "kind": one.kind,
                "name": one.name,
                "images": one.images,
                "auroc": None if auroc is None else auroc.value,
                "auroc_low": None if auroc is None else auroc.low,
                "auroc_high": None if auroc is None else auroc.high,
                "rate": float(rate),
                "flagged": share.value,
                "low": share.low,
                "high": share.high,
            }


def _draw(groups: Sequence[Flagged], rate: float | None, axes: Any) -> Any:
    """Draw all but attacks after a harmless change, which are many."""
    known = sorted({float(one) for group in groups for one in group.rates})
    chosen = max(known, default=0.0) if rate is None else rate
    if chosen not in known:
        text = ", ".join(f"{one:g}" for one in known) or "none"
        raise SettingsError(f"expected a false-positive rate among {text}, got {chosen:g}")
    shown = [
        (one, share)
        for one in groups
        if one.kind != "composed"
        for key, share in one.rates.items()
        if float(key) == chosen
    ]
    axes = axes_for(axes, height=1.4 + 0.26 * len(shown))
    seen = set()
    for place, (one, share) in enumerate(shown):
        attack = one.kind == "attack"
        label = "attacks that succeeded" if attack else "clean or harmless"
        axes.errorbar(
            share.value,
            place,
            xerr=[[max(0.0, share.value - share.low)], [max(0.0, share.high - share.value)]],
            fmt="o" if attack else "s",
            color=RED if attack else BLUE,
            markersize=5,
            capsize=2,
            linewidth=1.2,
            label=None if label in seen else label,
        )
        seen.add(label)
    axes.axvline(chosen, color=GREY, linestyle=":", label=f"promised: {chosen:g}")
    axes.set_yticks(range(len(shown)), [f"{one.name} ({share.n})" for one, share in shown])
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("share flagged, with a 95 % interval")
    axes.grid(visible=False, axis="y")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), frameon=False, fontsize=8.5, ncols=3)
    return axes
