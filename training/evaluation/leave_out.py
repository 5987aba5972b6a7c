"""Seen and unseen: heads fitted without one family of attacks, judged on it.

All from the shards of a fit: heads on its fitting split, figures on its test split.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from reluguard.detector.artifact import Manifest
from reluguard.detector.head import Head
from reluguard.detector.looks.second import SecondLook
from reluguard.detector.metrics import Interval
from reluguard.detector.plain import UNSAID, Plain
from reluguard.training.composed import attack_of, is_composed
from reluguard.training.errors import DataError
from reluguard.training.harvest.orders import Job
from reluguard.training.harvest.readings import Readings
from reluguard.training.harvest.workspace import PLAN, Workspace, read_plan
from reluguard.training.head.alarms import scores_of
from reluguard.training.head.fit import HeadSettings, fit_head
from reluguard.training.head.second import fit_second, joint_readings
from reluguard.training.progress import Progress
from reluguard.training.provenance import FittedWith, provenance_of
from reluguard.training.statistics.bootstrap import Drawn, Resampling, interval
from reluguard.training.statistics.metrics import auroc

__all__ = [
    "LeftOut",
    "Matrix",
    "family",
    "leave_one_out",
    "left_out_named",
    "matrix_step",
    "open_fit",
    "shards_of",
]

LeftOut = Literal["family", "attack"]

_FAMILIES: Mapping[str, str] = {
    "fgsm": "one step",
    "bim": "PGD Linf",
    "mifgsm": "PGD Linf",
    "pgd-linf": "PGD Linf",
    "apgd": "PGD Linf",
    "pgd-l2": "PGD L2 and L1",
    "pgd-l1": "PGD L2 and L1",
    "deepfool": "minimal",
    "fmn": "minimal",
    "fab": "minimal",
    "cw": "minimal",
    "hopskipjump": "minimal",
    "art-newtonfool": "minimal",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix(Plain):
    """Seen and unseen: AUROC on every attack of heads fitted without some.

    Attributes:
        by: what was left out at a time.
        rows_per_group: that heads were fitted on at most, None for all.
        families: of each attack, or itself.
        auroc: by what was left out, "nothing" too, and by attack.
        unseen: of each attack where it was left out.
        unseen_intervals: the same with intervals.
        mean_unseen, worst_unseen: over those, None where there are none.
        mean_interval, worst_interval: the same with intervals.
        composed: what `unseen` is, of attacks whose images were changed afterwards.
        composed_mean, composed_worst: over those.
    """

    by: LeftOut
    rows_per_group: int | None
    families: Mapping[str, str]
    auroc: Mapping[str, Mapping[str, float]]
    unseen: Mapping[str, float]
    unseen_intervals: Mapping[str, Interval]
    mean_unseen: float | None
    worst_unseen: float | None
    mean_interval: Interval | None = field(default=None, metadata=UNSAID)
    worst_interval: Interval | None = field(default=None, metadata=UNSAID)
    composed: Mapping[str, Interval] = field(default_factory=dict, metadata=UNSAID)
    composed_mean: Interval | None = field(default=None, metadata=UNSAID)
    composed_worst: Interval | None = field(default=None, metadata=UNSAID)


def family(slug: str) -> str:
    """Return the family of an attack, composed or led by both looks or not.

    It is one of its own where it is like no other.
    """
    attack = attack_of(slug).removeprefix("both-")
    known = (name for prefix, name in _FAMILIES.items() if attack.startswith(prefix))
    return next(known, attack.split("-", maxsplit=1)[0])


def left_out_named(text: str) -> LeftOut:
    """Return what to leave out at a time.

    Raises:
        DataError: neither a family nor an attack.
    """
    known: Mapping[str, LeftOut] = {"family": "family", "attack": "attack"}
    if text not in known:
        raise DataError(f"expected family or attack to be left out of the fit, got {text!r}")
    return known[text]


def open_fit(folder: Path, manifest: Manifest) -> Workspace:
    """Return the workspace a guard was fitted in, which gives the rates that the guard reads.

    Raises:
        DataError: there is none, or it belongs to another guard.
    """
    plan = read_plan(folder)
    if plan is None:
        raise DataError(f"expected the work folder of a fit, {folder} has no {PLAN}")
    provenance = provenance_of(manifest)
    data = None if provenance.data is None else provenance.data.sha256
    own = (manifest.model_sha256, data, provenance.seed)
    if (plan.get("model"), plan.get("data"), plan.get("seed")) != own:
        raise DataError(f"{folder} holds the work of another model, data set or seed")
    workspace = Workspace(folder, plan)
    workspace.columns = provenance.columns_read
    return workspace


def shards_of(workspace: Workspace, manifest: Manifest, split: str) -> dict[str, list[Job]]:
    """Return the shards of a fit's split by slug, clean first."""
    kinds = _recipe(manifest).kinds
    found: dict[str, list[Job]] = {}
    for slug, kind in kinds.items():
        files = sorted((workspace.folder / slug).glob(f"{split}-*.npz"))
        if files:
            empty = np.zeros(0, np.int64)
            found[slug] = [
                Job(slug=slug, kind=kind, split=split, number=i, sources=empty)
                for i in range(len(files))
            ]
    if "clean" not in found:
        raise DataError(f"{workspace.folder} has no clean images of the {split} split")
    return found


def _recipe(manifest: Manifest) -> FittedWith:
    recipe = provenance_of(manifest).recipe
    if recipe is None:
        raise DataError("expected a guard that says what it was fitted with, it does not")
    return recipe


def leave_one_out(
    workspace: Workspace,
    manifest: Manifest,
    *,
    by: LeftOut = "family",
    rows: int | None = 1500,
    second: SecondLook | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Matrix:
    """Return AUROC on every attack of heads fitted without some, and of one fitted with all.

    Args:
        workspace: of the fit.
        manifest: of the guard.
        by: what is left out at a time: a family of attacks, or a single attack while its like stay.
        rows: of each group at most are fitted on, None for all: fewer are faster, a little worse.
        second: the guard's second look, for heads that read both looks at every image; without it
            heads read the first look alone.
        seed: of the rows, the heads and the intervals.
        progress: told of each head.
    """
    progress = progress or Progress()
    recipe = _recipe(manifest)
    looking = _Looking(workspace, manifest, second)
    fitted = [
        replace(_some(group, rows, seed), weight=recipe.weights.get(group.name, 1.0))
        for group in looking.groups("fit")
    ]
    judged = looking.groups("test")
    clean = next(group for group in judged if group.kind == "clean")
    attacks = [group for group in judged if group.kind == "attack" and len(group)]
    kin = {g.name: family(g.name) if by == "family" else g.name for g in (*fitted, *attacks)}
    settings = HeadSettings(**recipe.head)
    families = list(dict.fromkeys(kin[group.name] for group in attacks))
    progress.stage(matrix_step(by, both=second is not None), len(families) + 1)
    drawn = Resampling(np.concatenate([g.sources for g in (clean, *attacks)]), seed=seed)
    table: dict[str, dict[str, float]] = {}
    unseen: dict[str, tuple[float, Drawn, int]] = {}
    for left in (None, *families):
        kept = [g for g in fitted if g.kind != "attack" or kin[g.name] != left]
        if not any(g.kind == "attack" and len(g) for g in kept):
            progress.advance(1)
            continue
        head = looking.head(kept, settings, seed)
        base = scores_of(head, clean)
        table[left or "nothing"] = {}
        for g in attacks:
            if is_composed(g.name) and kin[g.name] != left:
                continue
            scores = scores_of(head, g)
            area = auroc(base, scores)
            if not is_composed(g.name):
                table[left or "nothing"][g.name] = area
            if kin[g.name] == left:
                these = drawn.auroc(base, clean.sources, scores, g.sources)
                unseen[g.name] = (area, these, len(g))
        progress.advance(1)
    found = {g.name: unseen[g.name] for g in attacks if g.name in unseen}
    plain = {name: one for name, one in found.items() if not is_composed(name)}
    changed = {name: one for name, one in found.items() if is_composed(name)}
    values = [area for area, _, _ in plain.values()]
    mean, worst = _mean_and_worst(plain)
    composed_mean, composed_worst = _mean_and_worst(changed)
    return Matrix(
        by=by,
        rows_per_group=rows,
        families={g.name: kin[g.name] for g in attacks if not is_composed(g.name)},
        auroc=table,
        unseen={slug: area for slug, (area, _, _) in plain.items()},
        unseen_intervals={slug: interval(*figures) for slug, figures in plain.items()},
        mean_unseen=float(np.mean(values)) if values else None,
        worst_unseen=float(np.min(values)) if values else None,
        mean_interval=mean,
        worst_interval=worst,
        composed={slug: interval(*figures) for slug, figures in changed.items()},
        composed_mean=composed_mean,
        composed_worst=composed_worst,
    )


def _mean_and_worst(
    found: Mapping[str, tuple[float, Drawn, int]],
) -> tuple[Interval | None, Interval | None]:
    """Return mean and worst AUROC of attacks, each with its draws and its images."""
    if not found:
        return None, None
    values = np.array([area for area, _, _ in found.values()])
    draws = np.array([one for _, one, _ in found.values()])
    return (
        interval(values.mean(), draws.mean(axis=0), len(found)),
        interval(values.min(), draws.min(axis=0), len(found)),
    )


def matrix_step(by: LeftOut, *, both: bool) -> str:
    """Return what progress calls the fitting of these heads, of one look or of both."""
    return f"leave one {by} out" + (", both looks" if both else "")


@dataclass(frozen=True, slots=True)
class _Looking:
    """How often heads look: once, or twice at every image."""

    workspace: Workspace
    manifest: Manifest
    second: SecondLook | None

    def groups(self, split: str) -> list[Readings]:
        """Return what a split's images read; of attacks, the successes."""
        found = shards_of(self.workspace, self.manifest, split)
        return [group for jobs in found.values() if len(group := self._readings(jobs))]

    def _readings(self, jobs: Sequence[Job]) -> Readings:
        if self.second is None:
            return self.workspace.readings(jobs)
        columns = None if self.second.look.is_other else self.workspace.columns
        joint = self.second.joint(self.manifest.taps)
        return joint_readings(self.workspace, jobs, joint, columns)

    def head(self, groups: Sequence[Readings], settings: HeadSettings, seed: int) -> Head:
        """Return a head fitted on these groups."""
        if self.second is None:
            return fit_head(groups, taps=self.manifest.taps, settings=settings, seed=seed)
        joint = self.second.joint(self.manifest.taps)
        return fit_second(groups, joint, settings=settings, seed=seed).head


def _some(group: Readings, rows: int | None, seed: int) -> Readings:
    if rows is None or len(group) <= rows:
        return group
    limit = 3 * rows if group.kind == "clean" else rows
    chosen = np.random.default_rng(seed).permutation(len(group))[:limit]
    return group.rows(np.sort(chosen))
