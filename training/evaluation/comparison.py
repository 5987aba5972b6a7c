"""A guard beside its baselines, on the same images. N images."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from reluguard.detector.artifact import Manifest
from reluguard.detector.images import Images
from reluguard.detector.model import Production
from reluguard.detector.runtime import Guard, Reader, in_batches
from reluguard.detector.session import open_session
from reluguard.training.analysis.recording import Recorder
from reluguard.training.data.case import predict
from reluguard.training.errors import AttackError
from reluguard.training.evaluation.baselines import Baseline, Context, Material
from reluguard.training.evaluation.leave_out import shards_of
from reluguard.training.harvest.readings import Kind, Readings
from reluguard.training.harvest.workspace import Shard, Workspace
from reluguard.training.head.fit import HeadSettings
from reluguard.training.progress import Progress
from reluguard.training.statistics.bootstrap import Drawn, Resampling, interval, word
from reluguard.training.statistics.metrics import auroc

__all__ = ["Group", "compare", "mean"]

MATCHED_RATE = 0.05
CHUNK = 256
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

    @property
    def hits(self) -> NDArray[np.bool_]:
        """bool, (N,). Whether the attack changed the model's right answer to a wrong one."""
        return self.shard.success & self.wrong


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
) -> dict[str, Any]:
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
    """
    manifest = guard.artifact.manifest
    sides = _Sides(groups, seed)
    own = {slug: g.score for slug, g in groups.items()}
    result = {GUARD: _comparison(own, groups, sides)}
    if any(group.shard.images is None for group in groups.values()):
        return result | {"left out": {"note": "images too large to keep in shards"}}
    recorder = Recorder(production, guard.spec, manifest.taps)
    late = max(
        (i for i, tap in enumerate(manifest.taps) if len(tap.shape) == 3),
        default=len(manifest.taps) - 1,
    )
    context = Context(
        taps=manifest.taps,
        settings=HeadSettings(**manifest.provenance.get("recipe", {}).get("head", {})),
        predict=lambda images: predict(reader, images),
        activations=_tap_reader(production, guard, manifest.taps[late].name),
        seed=seed,
    )
    chosen = [kind for kind in kinds if fit is not None or not kind.needs_fit]
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
            result[kind.name] = {"note": f"failed: {error}"}
        else:
            ahead = sides.difference(own, scores) if sides.attacks else {}
            result[kind.name] = _comparison(scores, groups, sides) | ahead | {"note": kind.note}
        progress.advance(1)
    return result


def mean(values: Sequence[float]) -> float | None:
    """Return the mean, None of nothing."""
    return float(np.mean(values)) if values else None


class _Sides:
    """Clean images and each attack's successes, drawn again as often as the intervals need."""

    def __init__(self, groups: Mapping[str, Group], seed: int) -> None:
        self._groups = groups
        self.attacks = [slug for slug, g in groups.items() if g.kind == "attack" and g.hits.any()]
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

    def difference(self, ours: Mapping[str, Scores], theirs: Mapping[str, Scores]) -> Any:
        """Return how far the guard is ahead, in AUROC, by attack, on the mean and on the worst."""
        (a, drawn_a), (b, drawn_b) = self.areas(ours), self.areas(theirs)
        n = len(self._groups["clean"].shard.sources)
        by_attack = {
            slug: interval(a[i] - b[i], drawn_a[i] - drawn_b[i], n).to_json()
            for i, slug in enumerate(self.attacks)
        }
        middle = interval(a.mean() - b.mean(), drawn_a.mean(axis=0) - drawn_b.mean(axis=0), n)
        worst = interval(a.min() - b.min(), drawn_a.min(axis=0) - drawn_b.min(axis=0), n)
        return {
            "lead": {
                "mean": middle.to_json() | {"word": word(middle.to_json())},
                "worst": worst.to_json() | {"word": word(worst.to_json())},
                "attacks": by_attack,
            }
        }


def _comparison(
    scores: Mapping[str, Scores], groups: Mapping[str, Group], sides: _Sides
) -> dict[str, Any]:
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
    return {
        "auroc": areas,
        "mean_auroc": mean([*areas.values()]),
        "worst_auroc": min(areas.values(), default=None),
        "detected": {slug: float((attacked > limit).mean()) for slug, attacked in hits.items()},
        "benign_flagged": harmless,
        "mean_benign_flagged": mean([*harmless.values()]),
    }


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
    parts = [
        np.concatenate(recorder.record(images[i : i + CHUNK]).means, axis=1)
        for i in range(0, len(images), CHUNK)
    ]
    return Material(readings=readings, images=images, means=np.concatenate(parts))


def _fit_material(
    fit: Workspace, manifest: Manifest, recorder: Recorder, rows: int, seed: int
) -> list[Material]:
    """Return some rows of each group the guard was fitted on; of attacks, successes."""
    weights = manifest.provenance["recipe"].get("weights", {})
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
