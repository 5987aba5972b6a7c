"""A guard beside its baselines, on the same images. N images."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from reluguard.detector.artifact import Manifest
from reluguard.detector.images import Images
from reluguard.detector.metrics import Interval
from reluguard.detector.model import Production
from reluguard.detector.plain import UNSAID, Plain
from reluguard.detector.runtime import Guard, Reader, in_batches
from reluguard.detector.session import open_session
from reluguard.training.analysis.recording import Recorder
from reluguard.training.composed import change_of, composed_name, is_composed
from reluguard.training.data.case import chunk_of, predict
from reluguard.training.errors import AttackError
from reluguard.training.evaluation.baselines import Baseline, Context, Material
from reluguard.training.evaluation.leave_out import shards_of
from reluguard.training.harvest.orders import Job
from reluguard.training.harvest.readings import Kind, Readings
from reluguard.training.harvest.workspace import Shard, Workspace
from reluguard.training.head.fit import HeadSettings
from reluguard.training.progress import Progress
from reluguard.training.provenance import provenance_of
from reluguard.training.statistics.bootstrap import Drawn, Resampling, Word, interval, word
from reluguard.training.statistics.metrics import auroc, detected_below

__all__ = ["GUARD", "DetectorFigures", "Group", "Lead", "Leads", "compare", "mean"]

MATCHED_RATE = 0.05
POOLED = 1000  # composed attacks that baselines are judged on, for each change
EARLY = 0.01  # the highest rate of false alarms that many would act on
GUARD = "reluguard"

Scores = NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Images of one kind, failed attacks too, with the guard's scores.

    Attributes:
        name: "clean", or the attack's or change's.
        shard: images, sources, labels, rates and logits.
        kind: on which side it is.
        score: float32, (N,).
        evidence: float32, (N, taps). Each tap's own log-odds.
        wrong: bool, (N,). Whether the model's answer is not the true class.
    """

    name: str
    shard: Shard
    kind: Kind
    score: NDArray[np.float32]
    evidence: NDArray[np.float32]
    wrong: NDArray[np.bool_]

    @classmethod
    def of(cls, guard: Guard, workspace: Workspace, jobs: Sequence[Job]) -> "Group":
        """Return what the shards of one slug hold, scored by the guard's first look."""
        shards = [workspace.read(job) for job in jobs]
        joined: dict[str, Any] = {
            name: np.concatenate([getattr(shard, name) for shard in shards])
            for name in ("sources", "labels", "success", "rates", "logits")
        }
        images = [shard.images for shard in shards if shard.images is not None]
        shard = Shard(
            images=np.concatenate(images) if len(images) == len(shards) else None, **joined
        )
        head, rates = guard.artifact.head, map(float, guard.artifact.manifest.thresholds)
        answers, scores = shard.logits.argmax(axis=1), head.score(shard.rates, shard.logits)
        return cls(
            name=jobs[0].slug,
            shard=shard,
            kind=jobs[0].kind,
            score=head.levelled(scores.score, answers, rates),
            evidence=scores.evidence,
            wrong=answers != shard.labels,
        )

    @property
    def hits(self) -> NDArray[np.bool_]:
        """bool, (N,). Whether the attack changed the model's right answer to a wrong one."""
        return self.shard.success & self.wrong


@dataclass(frozen=True, slots=True, kw_only=True)
class Lead(Plain):
    """How far the guard is ahead of another detector, in AUROC, and whether chance explains it."""

    value: float
    low: float
    high: float
    n: int
    word: Word

    def __format__(self, digits: str) -> str:
        """Return the figure with its interval in brackets, and the word."""
        return f"{Interval(self.value, self.low, self.high, self.n):{digits}} {self.word}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Leads(Plain):
    """How far the guard is ahead, on the mean of all attacks, on the worst and on each."""

    mean: Lead
    worst: Lead
    attacks: Mapping[str, Interval]


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorFigures(Plain):
    """A detector at a threshold that flags 5 % of these clean images: the guard or a baseline.

    Attributes:
        auroc: by attack.
        mean_auroc: over the attacks.
        worst_auroc: of them.
        detected: share of each attack's successes that is flagged.
        mean_early: the mean share detected over false-positive rates from 0 to 1 %, over the
            attacks: partial AUROC by its width.
        benign_flagged: share of each harmless change that is flagged.
        mean_benign_flagged: over them.
        composed: AUROC of attacked images that were changed afterwards, some of every attack's, by
            the change.
        lead: how far the guard is ahead of it.
        note: what it is, or why it has no figures.
    """

    auroc: Mapping[str, float] = field(default_factory=dict, metadata=UNSAID)
    mean_auroc: float | None = field(default=None, metadata=UNSAID)
    worst_auroc: float | None = field(default=None, metadata=UNSAID)
    detected: Mapping[str, float] = field(default_factory=dict, metadata=UNSAID)
    mean_early: float | None = field(default=None, metadata=UNSAID)
    benign_flagged: Mapping[str, float] = field(default_factory=dict, metadata=UNSAID)
    mean_benign_flagged: float | None = field(default=None, metadata=UNSAID)
    composed: Mapping[str, float] = field(default_factory=dict, metadata=UNSAID)
    lead: Leads | None = field(default=None, metadata=UNSAID)
    note: str | None = field(default=None, metadata=UNSAID)


def compare(
    groups: Mapping[str, Group],
    guard: Guard,
    production: Production,
    reader: Reader,
    fit: Workspace | None,
    kinds: Sequence[type[Baseline]],
    rows: int,
    seed: int,
    progress: Progress,
    others: Sequence[Callable[[Images], NDArray[np.float32]]] = (),
) -> dict[str, DetectorFigures]:
    """Return each baseline's figures beside the guard's, at a threshold matched on clean images.

    Args:
        groups: what is judged, by name, "clean" among them.
        guard: the guard.
        production: its model.
        reader: of that model's firing rates.
        fit: the work folder of the guard's fit, without which what needs fitting is left out.
        kinds: the baselines.
        rows: of each fitting group at most.
        seed: of every random choice.
        progress: told of each baseline.
        others: other networks of the same classes, images to logits.
    """
    manifest = guard.artifact.manifest
    recipe = provenance_of(manifest).recipe
    groups = _with_pools(groups, seed)
    sides = _Sides(groups, seed)
    own = {slug: g.score for slug, g in groups.items()}
    result = {GUARD: _figures(own, groups, sides)}
    if any(group.shard.images is None for group in groups.values()):
        progress.stage("baselines", 0)
        return result | {"left out": DetectorFigures(note="images too large to keep in shards")}
    recorder = Recorder(production, guard.spec, manifest.taps)
    late = max(
        (i for i, tap in enumerate(manifest.taps) if len(tap.shape) == 3),
        default=len(manifest.taps) - 1,
    )
    context = Context(
        taps=manifest.taps,
        settings=HeadSettings(**(recipe.head if recipe else {})),
        predict=lambda images: predict(reader, images),
        activations=_tap_reader(production, guard, manifest.taps[late].name),
        seed=seed,
        first=_tap_reader(production, guard, _first_map(production, manifest)),
        record=lambda images: _recorded(recorder, images),
        others=others,
    )
    chosen = [kind for kind in kinds if fit is not None or not kind.needs_fit]
    for kind in chosen:
        if kind.needs_other and not others:
            result[kind.name] = DetectorFigures(
                note="needs another network of the same classes (surrogates)"
            )
    chosen = [kind for kind in chosen if kind.name not in result]
    progress.stage("baselines", len(chosen) + 2)
    fitted = _fit_material(fit, manifest, recorder, rows, seed) if fit is not None else []
    progress.advance(1)
    judged = {slug: _material(_readings(g), g.shard.images, recorder) for slug, g in groups.items()}
    progress.advance(1)
    for kind in chosen:
        baseline = kind()
        try:
            baseline.fit(fitted, context)
            scores = {slug: baseline.score(material) for slug, material in judged.items()}
        except (ValueError, RuntimeError, NotImplementedError) as error:
            result[kind.name] = DetectorFigures(note=f"failed: {error}")
        else:
            result[kind.name] = replace(
                _figures(scores, groups, sides),
                lead=sides.leads(own, scores) if sides.attacks else None,
                note=kind.note,
            )
        progress.advance(1)
    return result


def mean(values: Sequence[float]) -> float | None:
    """Return the mean, None of nothing."""
    return float(np.mean(values)) if values else None


class _Sides:
    """Clean images and each attack's successes, drawn again as often as the intervals need."""

    def __init__(self, groups: Mapping[str, Group], seed: int) -> None:
        self._groups = groups
        hit = [slug for slug, g in groups.items() if g.kind == "attack" and g.hits.any()]
        self.attacks = [slug for slug in hit if not is_composed(slug)]
        self.composed = [slug for slug in hit if is_composed(slug)]
        self._drawn = Resampling(
            np.concatenate([group.shard.sources for group in groups.values()]), seed=seed
        )

    def areas(self, scores: Mapping[str, Scores]) -> tuple[NDArray[np.float64], Drawn]:
        """Return AUROC of each attack, (A,), and in each draw, (A, B)."""
        clean, sources = scores["clean"], self._groups["clean"].shard.sources
        found, drawn = [], []
        for slug in self.attacks:
            group = self._groups[slug]
            attacked = scores[slug][group.hits]
            found.append(auroc(clean, attacked))
            drawn.append(
                self._drawn.auroc(clean, sources, attacked, group.shard.sources[group.hits])
            )
        return np.array(found), np.array(drawn)

    def leads(self, ours: Mapping[str, Scores], theirs: Mapping[str, Scores]) -> Leads:
        """Return how far the guard is ahead, in AUROC, by attack, on the mean and on the worst."""
        (a, drawn_a), (b, drawn_b) = self.areas(ours), self.areas(theirs)
        n = len(self._groups["clean"].shard.sources)
        return Leads(
            mean=_lead(a.mean() - b.mean(), drawn_a.mean(axis=0) - drawn_b.mean(axis=0), n),
            worst=_lead(a.min() - b.min(), drawn_a.min(axis=0) - drawn_b.min(axis=0), n),
            attacks={
                slug: interval(a[i] - b[i], drawn_a[i] - drawn_b[i], n)
                for i, slug in enumerate(self.attacks)
            },
        )


def _lead(value: float, drawn: Drawn, n: int) -> Lead:
    found = interval(value, drawn, n)
    return Lead(value=found.value, low=found.low, high=found.high, n=n, word=word(found))


def _figures(
    scores: Mapping[str, Scores], groups: Mapping[str, Group], sides: _Sides
) -> DetectorFigures:
    """Return AUROC by attack, and what is flagged where 5 % of these clean images are."""
    clean = scores["clean"]
    limit = float(np.quantile(clean, 1 - MATCHED_RATE, method="higher"))
    hits = {slug: scores[slug][groups[slug].hits] for slug in sides.attacks}
    areas = {slug: auroc(clean, attacked) for slug, attacked in hits.items()}
    harmless = {
        slug: float((scores[slug] > limit).mean())
        for slug, g in groups.items()
        if g.kind == "benign"
    }
    return DetectorFigures(
        auroc=areas,
        mean_auroc=mean([*areas.values()]),
        worst_auroc=min(areas.values(), default=None),
        detected={slug: float((attacked > limit).mean()) for slug, attacked in hits.items()},
        mean_early=mean([detected_below(clean, one, rate=EARLY) for one in hits.values()]),
        benign_flagged=harmless,
        mean_benign_flagged=mean([*harmless.values()]),
        composed={
            change_of(slug): auroc(clean, scores[slug][groups[slug].hits])
            for slug in sides.composed
        },
    )


def _with_pools(groups: Mapping[str, Group], seed: int) -> dict[str, Group]:
    """Return the groups, composed attacks drawn from into one group for each change.

    Baselines read images anew, and each attack once more for each change would be too many.
    """
    alone = {slug: group for slug, group in groups.items() if not is_composed(slug)}
    by_change: dict[str, list[Group]] = {}
    for slug, group in groups.items():
        if is_composed(slug) and group.hits.any():
            by_change.setdefault(change_of(slug), []).append(group)
    rng = np.random.default_rng(seed)
    pools = {}
    for change, parts in by_change.items():
        room = max(1, POOLED // len(parts))
        some = [_rows(g, np.sort(rng.permutation(np.flatnonzero(g.hits))[:room])) for g in parts]
        name = composed_name("", change)
        pools[name] = _joined(some, name)
    return alone | pools


def _rows(group: Group, rows: NDArray[np.int64]) -> Group:
    shard = group.shard
    return replace(
        group,
        shard=Shard(
            images=None if shard.images is None else shard.images[rows],
            sources=shard.sources[rows],
            labels=shard.labels[rows],
            success=shard.success[rows],
            rates=shard.rates[rows],
            logits=shard.logits[rows],
        ),
        score=group.score[rows],
        evidence=group.evidence[rows],
        wrong=group.wrong[rows],
    )


def _joined(groups: Sequence[Group], name: str) -> Group:
    shards = [group.shard for group in groups]
    images = [shard.images for shard in shards if shard.images is not None]
    return Group(
        name=name,
        shard=Shard(
            images=np.concatenate(images) if len(images) == len(shards) else None,
            sources=np.concatenate([shard.sources for shard in shards]),
            labels=np.concatenate([shard.labels for shard in shards]),
            success=np.concatenate([shard.success for shard in shards]),
            rates=np.concatenate([shard.rates for shard in shards]),
            logits=np.concatenate([shard.logits for shard in shards]),
        ),
        kind="attack",
        score=np.concatenate([group.score for group in groups]),
        evidence=np.concatenate([group.evidence for group in groups]),
        wrong=np.concatenate([group.wrong for group in groups]),
    )


def _tap_reader(production: Production, guard: Guard, name: str) -> Callable[[Any], NDArray[Any]]:
    probe = onnx.ModelProto()
    probe.CopyFrom(production.proto)
    if name not in {value.name for value in probe.graph.output}:
        probe.graph.output.append(onnx.ValueInfoProto(name=name))
    session = open_session(probe, threads=1)

    def read(images: Images) -> NDArray[Any]:
        values = in_batches(session, guard.spec, guard.spec.to_tensor(images), [name])
        return values[0].astype(np.float32)

    return read


def _readings(group: Group) -> Readings:
    shard = group.shard
    return Readings(
        name=group.name,
        kind=group.kind,
        rates=shard.rates,
        logits=shard.logits,
        sources=shard.sources,
        labels=shard.labels,
    )


def _material(readings: Readings, images: Any, recorder: Recorder) -> Material:
    return Material(readings=readings, images=images, means=_recorded(recorder, images)[0])


def _recorded(recorder: Recorder, images: Images) -> tuple[Any, Any]:
    """Return each channel's mean output, (N, M), and logits, (N, K)."""
    step = chunk_of(images) if len(images) else 1
    found = [recorder.record(images[i : i + step]) for i in range(0, len(images), step)]
    means = [np.concatenate(one.means, axis=1) for one in found]
    return np.concatenate(means), np.concatenate([one.logits for one in found])


def _first_map(production: Production, manifest: Manifest) -> str:
    """Return the tensor with the first convolution's output, or the first tap's."""
    nodes = (node for node in production.proto.graph.node if node.op_type == "Conv")
    return next((node.output[0] for node in nodes), manifest.taps[0].name)


def _fit_material(
    fit: Workspace, manifest: Manifest, recorder: Recorder, rows: int, seed: int
) -> list[Material]:
    """Return some rows of each group the guard was fitted on; of attacks, successes."""
    recipe = provenance_of(manifest).recipe
    weights = recipe.weights if recipe else {}
    rng = np.random.default_rng(seed)
    found = []
    for slug, jobs in shards_of(fit, manifest, "fit").items():
        shards = [fit.read(job) for job in jobs]
        images = [shard.images for shard in shards if shard.images is not None]
        if len(images) < len(shards):
            raise AttackError("the fit's images were too large to keep in its shards")
        kept = np.concatenate([shard.success for shard in shards])
        limit = 4 * rows if slug == "clean" else rows
        chosen = np.sort(rng.permutation(np.flatnonzero(kept))[:limit])
        if len(chosen) == 0:
            continue
        readings = fit.readings([replace(job, kind="clean") for job in jobs]).rows(chosen)
        readings = replace(readings, kind=jobs[0].kind, weight=weights.get(slug, 1.0))
        found.append(_material(readings, np.concatenate(images)[chosen], recorder))
    return found
