"""Fitting and calibrating a head on harvested readings. N images, X features, L taps.

The head is a small ensemble of one-hidden-layer networks. Averaging their scores is one wider
network, so an ensemble costs the graph two products like a single net does.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from reluguard.detector.features import FeatureMap
from reluguard.detector.head import NO_GROUPS, Head, images_needed
from reluguard.training.errors import DataError
from reluguard.training.harvest.rates import StoredRates
from reluguard.training.harvest.readings import Readings
from reluguard.training.head.alarms import false_alarms, scores_of, weighed
from reluguard.training.head.probes import (
    MAX_CLASSES,
    Probes,
    Read,
    Task,
    class_task,
    code_task,
    fit_probes,
    most_columns,
    select_columns,
    source_folds,
)
from reluguard.training.head.table import KEPT_BYTES, Table
from reluguard.training.statistics.metrics import auroc

__all__ = [
    "Fitted",
    "HeadSettings",
    "Reading",
    "calibrate",
    "fit_head",
    "fit_judged",
    "held_out_auroc",
    "logistic",
]

Floats = NDArray[np.float32]
MIN_FOLDS = 6
LEAST_JUDGED = 5
SCORED_ROWS = 1024  # at a time: what they are read from may lie on disk


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadSettings:
    """How the head is fitted."""

    members: int = 2
    units: int = 64
    dropout: float = 0.2
    weight_decay: float = 1.0
    learning_rate: float = 2e-3
    batch: int = 256
    epochs: int = 12
    benign_share: float = 0.65  # of the weight of all negatives, before alarms are counted
    alarms: float = 0.07  # of each harmless change that may be flagged at 5 %; 0 counts none
    accident_share: float = 0.02  # of the weight of all positives, at most
    accident_kept: float = 0.5  # of what they would weigh as harmless


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How rates are read: the taps, and what more is known of them.

    Attributes:
        taps: the taps the rates were read at, or the runs of joint readings.
        always: columns that are chosen whatever they show.
        blocks: the taps that each probe beside the first reads; runs of neighbours by default.
        evidence: whether each tap's own log-odds are fitted.
    """

    taps: Sequence[Read]
    always: NDArray[np.int64] | None = None
    blocks: Sequence[Sequence[int]] | None = None
    evidence: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """A head, and what its members said of rows that they were not fitted on. N rows.

    Attributes:
        head: uncalibrated.
        scores: float32, (N,). Scores by a member that did not see the source; NaN of other rows.
        attacked: bool, (N,).
        clean: bool, (N,). Images as they came.
        weights: float32, (N,).
        beside: float32, (N,). Scores of the same rows by another head; empty unless asked for.
    """

    head: Head
    scores: Floats
    attacked: NDArray[np.bool_]
    clean: NDArray[np.bool_]
    weights: Floats
    beside: Floats


def fit_head(
    groups: Sequence[Readings],
    *,
    taps: Sequence[Read],
    settings: HeadSettings,
    seed: int,
    progress: Callable[[float], None] = lambda _: None,
    kept_bytes: int = KEPT_BYTES,
) -> Head:
    """Return a head alone; for arguments and errors see `fit_judged`."""
    return fit_judged(
        groups,
        reading=Reading(taps=taps),
        settings=settings,
        seed=seed,
        progress=progress,
        kept_bytes=kept_bytes,
    ).head


def fit_judged(
    groups: Sequence[Readings],
    *,
    reading: Reading,
    settings: HeadSettings,
    seed: int,
    beside: Head | None = None,
    progress: Callable[[float], None] = lambda _: None,
    kept_bytes: int = KEPT_BYTES,
) -> Fitted:
    """Return a head that tells attacked from clean and benignly changed images, uncalibrated.

    Each member stops early on a fold of source images of its own, at the epoch of least loss. How
    much each harmless change counts goes by how often a first head flags it (`alarms`).

    Args:
        groups: of the fitting sources only; one is "clean", attacks hold successes only.
        reading: the taps the rates were read at.
        settings: of the networks and their optimiser.
        seed: of folds, initial weights and batches.
        beside: another head that reads the same columns, whose scores of the rows are wanted.
        progress: called with the share done.
        kept_bytes: features up to so many bytes are made once and kept in memory. Those of more
            rows are made anew for each pass, and memory stays bounded however many rows there are.

    Raises:
        DataError: no clean group, or no attack succeeded, or on too few source images.
    """
    clean = next((group for group in groups if group.kind == "clean"), None)
    attacks = [group for group in groups if group.kind == "attack" and len(group)]
    if clean is None or not attacks:
        raise DataError("expected clean images and at least one attack that succeeded on some")
    once = partial(_fit_weighed, reading=reading, seed=seed, kept_bytes=kept_bytes)
    if settings.alarms > 0:
        first = replace(settings, members=1, epochs=-(-settings.epochs // 2))

        def quickly(some: Sequence[Readings]) -> Head:
            return once(some, settings=first, progress=lambda _: None).head

        found = false_alarms(groups, quickly)
        groups, share = weighed(groups, found, wanted=settings.alarms, share=settings.benign_share)
        settings = replace(settings, benign_share=share)
    return once(groups, settings=settings, progress=progress, beside=beside)


def _fit_weighed(
    groups: Sequence[Readings],
    *,
    reading: Reading,
    settings: HeadSettings,
    seed: int,
    progress: Callable[[float], None],
    kept_bytes: int,
    beside: Head | None = None,
) -> Fitted:
    """Return a head fitted to groups of these very weights."""
    groups = _with_accidents(groups, settings)
    weights = _weights(groups, settings.benign_share)
    table = Table(
        rates=StoredRates.joined([g.rates for g in groups]),
        logits=np.concatenate([g.logits for g in groups]),
        sources=np.concatenate([g.sources for g in groups]),
        attacked=np.concatenate([np.full(len(g), g.kind == "attack") for g in groups]),
        weights=weights,
        kept_bytes=kept_bytes,
    )
    features = _fit_features(groups, table, reading).features
    rows = _Rows(table, table.targets, torch.from_numpy(weights))
    members = []
    out_of_fold = np.full(len(table), np.nan, np.float32)
    folds = _folds(table.sources, max(settings.members, MIN_FOLDS), seed)
    for k in range(settings.members):
        held = folds == k
        member = _fit_member(rows, held, settings, seed + k)
        out_of_fold[held] = _scores(member, rows, held)
        members.append(member)
        progress((k + 1) / (settings.members + 1))
    layers, biases = _join(members)
    slope, intercept = _fit_logistic(out_of_fold, rows)
    evidence_weights = np.zeros(features.width, np.float32)
    evidence_bias = np.zeros(features.taps, np.float32)
    if reading.evidence:
        evidence_weights, evidence_bias = _fit_evidence(features, rows, settings, seed)
    progress(1.0)
    head = Head(
        features=features,
        weights=layers,
        biases=biases,
        slope=slope,
        intercept=intercept,
        evidence_weights=evidence_weights,
        evidence_bias=evidence_bias,
        clean_scores=np.zeros(0, np.float32),
    )
    return Fitted(
        head=head,
        scores=out_of_fold,
        attacked=table.attacked,
        clean=np.concatenate([np.full(len(g), g.kind == "clean") for g in groups]),
        weights=weights,
        beside=np.zeros(0, np.float32)
        if beside is None
        else np.concatenate([scores_of(beside, g) for g in groups]),
    )


def held_out_auroc(
    groups: Sequence[Readings], *, taps: Sequence[Read], settings: HeadSettings, seed: int
) -> float:
    """Return the mean AUROC over the attacks of a small head on images that it did not see.

    A quarter of the source images is kept from it, the same whatever the taps. Attacks with fewer
    than LEAST_JUDGED rows among them don't count.

    Args:
        groups: as for `fit_head`.
        taps: the taps the rates were read at.
        settings: of the head; this one has one member, half the epochs and counts no alarms.
        seed: as for `fit_head`.
    """
    small = replace(settings, members=1, epochs=-(-settings.epochs // 2), alarms=0)
    seen = [group.rows(source_folds(group.sources) != 0) for group in groups]
    held = [group.rows(source_folds(group.sources) == 0) for group in groups]
    head = fit_head([g for g in seen if len(g)], taps=taps, settings=small, seed=seed)
    clean = scores_of(head, next(group for group in held if group.kind == "clean"))
    judged = [g for g in held if g.kind == "attack" and len(g) >= LEAST_JUDGED]
    if not len(clean) or not judged:
        return float("nan")
    return float(np.mean([auroc(clean, scores_of(head, group)) for group in judged]))


def calibrate(
    head: Head,
    clean: Readings,
    *,
    rates: Sequence[float],
    prevalence: float,
    class_groups: NDArray[np.int64] = NO_GROUPS,
) -> Head:
    """Return the head with its clean scores and its likelihood at a prevalence.

    Args:
        head: as fitted, its likelihood at even odds.
        clean: readings of clean images that no step of fitting saw.
        rates: the false-positive rates it must be able to promise.
        prevalence: the share of attacks among requests that the likelihood assumes, in (0, 1).
        class_groups: which of them an image is compared with, as `Head` has it; with all, without.

    Raises:
        DataError: too few clean images for the lowest rate; says how many are needed.
    """
    needed = images_needed(min(rates))
    if len(clean) < needed:
        raise DataError(
            f"a false-positive rate of {min(rates)} needs {needed} clean calibration images, "
            f"got {len(clean)}"
        )
    parts = (slice(start, start + SCORED_ROWS) for start in range(0, len(clean), SCORED_ROWS))
    scores = np.concatenate(
        [head.score(np.asarray(clean.rates[part]), clean.logits[part]).score for part in parts]
    )
    odds = float(np.log(prevalence / (1 - prevalence)))
    calibrated = head.calibrated(scores, clean.predictions, class_groups)
    return replace(calibrated, intercept=head.intercept + odds)


@dataclass(frozen=True, slots=True)
class _Rows:
    """The training table with its targets and weights, (N,)."""

    table: Table
    y: torch.Tensor
    weight: torch.Tensor


def _with_accidents(groups: Sequence[Readings], settings: HeadSettings) -> list[Readings]:
    """Return the groups, accidents taken from the harmless and put beside the attacks.

    Accidents are harmless changes that the model answers wrong: neither harmless nor attacks. As
    negatives alone they teach that a wrong answer is fine; as a few positives they are what attacks
    unlike all those of the fit have in common. So they are some of both, which is one soft target.
    A row of them never weighs more than an attack's.

    Measured on ResNet-20, 1,500 rows a group: as negatives alone a mean AUROC of .965, and .41 for
    FGSM 8/255 with one-step attacks left out; as 1 % of the positives .962 and .67; as 2 % and half
    as negatives .963 and .68, with fewer harmless changes flagged than the latter.
    """
    share = settings.accident_share
    attacks = [group for group in groups if group.kind == "attack" and len(group)]
    total = sum(group.weight for group in attacks)
    rows = sum(len(group) for group in attacks)
    right, wrong = [], []
    for group in groups:
        if group.kind != "benign":
            right.append(group)
            continue
        right.append(group.rows(group.answered_right))
        accident = replace(group.rows(~group.answered_right), name=f"accident-{group.name}")
        kept = group.weight * settings.accident_kept * len(accident) / max(1, len(group))
        if kept > 0:
            right.append(replace(accident, weight=kept))
        wrong.append(replace(accident, kind="attack"))
    wrong = [group for group in wrong if len(group) and share > 0]
    each = total * share / (1 - share) / max(1, len(wrong))
    accidents = [replace(g, weight=min(each, total * len(g) / rows)) for g in wrong]
    return [group for group in (*right, *accidents) if len(group)]


def _fit_features(groups: Sequence[Readings], table: Table, reading: Reading) -> Probes:
    """Return probes, and let the table describe its rows as fresh images would be."""
    clean = next(group for group in groups if group.kind == "clean")
    columns = select_columns(
        clean.rates,
        [group.rates for group in groups if group.kind == "attack"],
        limit=most_columns(clean.logits.shape[1]),
        always=reading.always,
    )
    probes = fit_probes(
        table.rates,
        _task(groups, clean, table),
        table.sources,
        table.weights,
        taps=reading.taps,
        columns=columns,
        blocks=reading.blocks,
    )
    uncut = replace(probes.features, limit=float(np.finfo(np.float32).max))
    raw = replace(
        probes, features=uncut, folds=tuple(replace(f, limit=uncut.limit) for f in probes.folds)
    )
    return table.describe(raw, limit=probes.features.limit)


def _task(groups: Sequence[Readings], clean: Readings, table: Table) -> Task:
    classes = clean.logits.shape[1]
    if classes <= MAX_CLASSES:
        return class_task(np.concatenate([group.labels for group in groups]), classes)
    return code_task(clean.logits, clean.sources, table.sources)


def _weights(groups: Sequence[Readings], benign_share: float) -> Floats:
    """Both sides weigh the same; within a side groups count by their own weight."""
    sides = {
        kind: sum(group.weight for group in groups if group.kind == kind)
        for kind in ("clean", "benign", "attack")
    }
    share = {
        "attack": 1.0,
        "clean": 1.0 - benign_share if sides["benign"] else 1.0,
        "benign": benign_share,
    }
    parts = [np.full(len(g), share[g.kind] * g.weight / sides[g.kind] / len(g)) for g in groups]
    weights = np.concatenate(parts)
    even: Floats = (weights / weights.mean()).astype(np.float32)
    return even


def _folds(sources: NDArray[np.int64], folds: int, seed: int) -> NDArray[np.int64]:
    """Return the fold of each row, all rows of one source in the same."""
    unique, index = np.unique(sources, return_inverse=True)
    dealt: NDArray[np.int64] = np.random.default_rng(seed).permutation(len(unique))[index] % folds
    return dealt


def _network(inputs: int, settings: HeadSettings, generator: torch.Generator) -> torch.nn.Module:
    linear = partial(torch.nn.utils.skip_init, torch.nn.Linear)  # it would draw from global state
    network = torch.nn.Sequential(
        linear(inputs, settings.units),
        torch.nn.ReLU(),
        torch.nn.Dropout(settings.dropout),
        linear(settings.units, 1),
    )
    for name, parameter in network.named_parameters():
        bound = 1 / np.sqrt(inputs if name.startswith("0") else settings.units)
        torch.nn.init.uniform_(parameter, -bound, bound, generator=generator)
    return network


def _fit_member(
    rows: _Rows, held: NDArray[np.bool_], settings: HeadSettings, seed: int
) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(seed)
    network = _network(rows.table.width, settings, generator)
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    train = torch.from_numpy(np.flatnonzero(~held))
    steps = settings.epochs * -(-len(train) // settings.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=settings.learning_rate, total_steps=steps
    )
    best, best_state = np.inf, network.state_dict()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # dropout draws from global state: lent and given back
        for _ in range(settings.epochs):
            network.train()
            for x, batch in rows.table.batches(train, settings.batch, generator):
                loss = _loss(network(x)[:, 0], rows, batch)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
            loss_held = _mean_loss(network, rows, held)
            if loss_held < best:
                best = loss_held
                best_state = {key: value.clone() for key, value in network.state_dict().items()}
    network.load_state_dict(best_state)
    return network


def _loss(logits: torch.Tensor, rows: _Rows, batch: torch.Tensor) -> torch.Tensor:
    target = rows.y[batch].to(logits.dtype)
    weight = rows.weight[batch]
    return torch.nn.functional.binary_cross_entropy_with_logits(logits, target, weight=weight)


def _scores(network: torch.nn.Module, rows: _Rows, held: NDArray[np.bool_]) -> Floats:
    network.eval()
    chosen = torch.from_numpy(np.flatnonzero(held))
    with torch.no_grad():
        parts = [network(x)[:, 0].numpy() for x, _ in rows.table.blocks(chosen)]
    scores: Floats = np.concatenate(parts)
    return scores


def _mean_loss(network: torch.nn.Module, rows: _Rows, held: NDArray[np.bool_]) -> float:
    chosen = torch.from_numpy(np.flatnonzero(held))
    total = 0.0
    with torch.no_grad():
        network.eval()
        for x, block in rows.table.blocks(chosen):
            total += float(_loss(network(x)[:, 0], rows, block)) * len(block)
    return total / len(chosen)


def _join(members: Sequence[torch.nn.Module]) -> tuple[tuple[Floats, ...], tuple[Floats, ...]]:
    """Return the members' mean score as one network, its large matrix in half precision."""
    states = [{k: v.numpy() for k, v in member.state_dict().items()} for member in members]
    first = np.concatenate([s["0.weight"].T for s in states], axis=1)
    last = np.concatenate([s["3.weight"].T for s in states]) / len(states)
    bias = np.concatenate([s["0.bias"] for s in states])
    last_bias = np.mean([s["3.bias"] for s in states], axis=0)
    rounded = first.astype(np.float16).astype(np.float32)
    return (rounded, last.astype(np.float32)), (bias, last_bias.astype(np.float32))


def _fit_logistic(scores: Floats, rows: _Rows) -> tuple[float, float]:
    """Return slope and intercept of the likelihood at even odds, from out-of-fold scores."""
    seen = ~np.isnan(scores)  # fewer members than folds leave some rows unscored
    if len(np.unique(rows.y.numpy()[seen])) < 2:
        attacked = len(np.unique(rows.table.sources[rows.y.numpy()]))
        raise DataError(
            f"expected attacks that succeeded on more source images, got {attacked} of "
            f"{len(np.unique(rows.table.sources))}: give more images or stronger attacks"
        )
    return logistic(scores[seen], rows.y.numpy()[seen], rows.weight.numpy()[seen])


def logistic(scores: Floats, attacked: NDArray[np.bool_], weights: Floats) -> tuple[float, float]:
    """Return slope and intercept of the log-odds that an image of such a score is attacked.

    Args:
        scores: (N,).
        attacked: bool, (N,), some of each.
        weights: (N,).

    Source: Platt 1999, Probabilistic outputs for support vector machines.
    """
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=1e6)
    model.fit(scores[:, None], attacked, sample_weight=weights)
    return float(model.coef_[0, 0]), float(model.intercept_[0])


def _fit_evidence(
    features: FeatureMap, rows: _Rows, settings: HeadSettings, seed: int
) -> tuple[Floats, Floats]:
    """Return one logistic regression per tap over that tap's features, all fitted in one pass."""
    generator = torch.Generator().manual_seed(seed)
    by_tap = torch.from_numpy(
        (features.feature_taps[:, None] == np.arange(features.taps)).astype(np.float32)
    )
    weights = torch.zeros(features.width, requires_grad=True)
    bias = torch.zeros(features.taps, requires_grad=True)
    optimiser = torch.optim.AdamW([weights, bias], lr=5e-3, weight_decay=1e-2)
    for _ in range(3):
        for x, batch in rows.table.batches(torch.arange(len(rows.y)), settings.batch, generator):
            evidence = (x * weights) @ by_tap + bias
            target = rows.y[batch].to(evidence.dtype)[:, None].expand_as(evidence)
            loss = torch.nn.functional.binary_cross_entropy_with_logits(
                evidence, target, weight=rows.weight[batch][:, None]
            )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return weights.detach().numpy().copy(), bias.detach().numpy().copy()
