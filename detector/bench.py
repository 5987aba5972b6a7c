"""What the guard costs: the guarded model against the plain one, in turn, in one process."""

import json
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter, thread_time
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto

from reluguard.detector.artifact import read_guard
from reluguard.detector.compile.graph import OURS, Graph
from reluguard.detector.compile.guarded import (
    CHALLENGER_SCORE,
    EVIDENCE,
    LIKELIHOOD,
    LOGITS,
    RATES,
    SCORE,
    compile_guard,
)
from reluguard.detector.compile.reading import add_rates
from reluguard.detector.head import Head
from reluguard.detector.images import InputSpec
from reluguard.detector.looks.again import LookAgain
from reluguard.detector.looks.judging import Looks
from reluguard.detector.model import Production, load_production
from reluguard.detector.onnx_file.beside import model_file
from reluguard.detector.runtime import Guard
from reluguard.detector.session import open_session
from reluguard.detector.taps import Tap

__all__ = ["ReadingTime", "bench_guard", "pair_ratio", "plain_seconds", "reading_seconds"]

Sides = tuple[tuple[ort.InferenceSession, list[str]], ...]

WARM_UP = 5
_OURS = re.compile(rf"{re.escape(OURS)}[A-Za-z]+_\d+")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadingTime:
    """Seconds that reading a tap takes: bringing it to its size, and then each of its levels."""

    sample: float
    levels: tuple[float, ...]

    def of(self, levels: Sequence[int]) -> float:
        """Return the seconds for some of its levels, by their place."""
        return self.sample + sum(self.levels[j] for j in levels) if levels else 0.0


def bench_guard(
    model: Path | str | None,
    guard: Path | str,
    *,
    batches: Sequence[int],
    rounds: int,
    threads: int = 1,
    seed: int = 0,
    providers: Sequence[str] | None = None,
    challenger: Path | str | None = None,
    looks: Looks | None = None,
    second_model: Path | str | None = None,
) -> dict[str, Any]:
    """Return `overhead_p50` per batch size: the median ratio of guarded to plain, pair by pair.

    Both sessions run in turn on the same input, which one first changing from pair to pair, so that
    a drift of the machine's speed cancels.

    Args:
        model: the production ONNX file; None for the export that `fit` put beside the guard.
        guard: the guard's folder.
        batches: batch sizes; a model of fixed batch is timed at that one alone.
        rounds: pairs per batch size.
        threads: per run.
        seed: of the input.
        providers: ONNX Runtime's names in order of preference; CPU by default.
        challenger: a second guard: also `challenger_overhead_p50`, the median ratio of the guarded
            model with it in shadow to the one without.
        looks: as `Guard.open`. Of a guard that looks again also what both looks cost over clean
            traffic, of which as many rows are looked at again as of the calibration images.
        second_model: the network that looks again, of a guard that was fitted with one.

    Raises:
        SettingsError: a provider is not available.
    """
    file = model_file(model, guard)
    guarded = Guard.open(
        file, guard, threads=threads, providers=providers, looks=looks, second_model=second_model
    )
    artifact = guarded.artifact
    production = load_production(file, output=artifact.manifest.answer)
    sides = _sides(production, guarded.compiled, threads, providers)
    if guarded.again is not None:  # which reads what the first look gives out for it
        sides = (sides[0], (sides[1][0], [*sides[1][1], RATES, LOGITS]))
    if challenger is not None:
        both = Guard(
            production,
            artifact,
            threads=threads,
            providers=providers,
            challenger=read_guard(challenger),
            looks="first",
        )
        sides = (*sides, (both.session, [*sides[1][1], CHALLENGER_SCORE]))
    spec = artifact.manifest.input
    rows = []
    for batch in [spec.batch] if spec.batch else batches:
        seconds = _time_in_turn(sides, _feeds(spec, batch, seed), rounds)
        ratio = seconds[:, 1] / seconds[:, 0]
        plain, with_guard, *_ = np.median(seconds, axis=0)
        low, high = np.quantile(ratio, [0.25, 0.75])
        rows.append(
            {
                "batch": int(batch),
                "plain_p50_s": float(plain),
                "guarded_p50_s": float(with_guard),
                "overhead_p50": float(np.median(ratio)),
                "overhead_quartiles": [float(low), float(high)],
            }
        )
        if challenger is not None:
            shadowed = np.median(seconds[:, 2] / seconds[:, 1])
            rows[-1]["challenger_overhead_p50"] = float(shadowed)
        if guarded.again is not None:
            timed = _time_looks(sides, guarded, guarded.again, int(batch), rounds, seed)
            rows[-1]["looks"] = _looks_cost(timed)
    added = len(guarded.compiled.graph.node) - len(production.proto.graph.node)
    return {
        "threads": threads,
        "providers": list(providers or ["CPUExecutionProvider"]),
        "rounds": rounds,
        "taps": len(artifact.manifest.taps),
        "nodes_added": added,
        "overhead_p50": {str(row["batch"]): row["overhead_p50"] for row in rows},
        "batches": rows,
        **({} if guarded.again is None else {"looks": _looks_told(guarded.again)}),
    }


def _looks_told(again: LookAgain) -> dict[str, Any]:
    return {
        "second": again.second.look.name,
        "when": again.looks,
        "clean_looked_again": again.order.share,
    }


def _looks_cost(seconds: NDArray[np.float64]) -> dict[str, float]:
    """Return what the looks cost, of seconds (rounds, 3) of plain model, first and second look.

    Ratios to the plain model of means, and of 99th percentiles.
    """
    plain, first, second = seconds.T
    both = first + second
    late = float(np.quantile(plain, 0.99))
    return {
        "first_overhead_mean": float(first.mean() / plain.mean()),
        "both_overhead_mean": float(both.mean() / plain.mean()),
        "first_overhead_p99": float(np.quantile(first, 0.99) / late),
        "both_overhead_p99": float(np.quantile(both, 0.99) / late),
        "batches_looked_again": float((second > 0).mean()),
    }


def _time_looks(
    sides: Sides, guard: Guard, again: LookAgain, batch: int, rounds: int, seed: int
) -> NDArray[np.float64]:
    """Return seconds of the plain model, the first and the second look: (rounds, 3).

    In each round as many rows are looked at again as chance makes suspicious among clean ones.
    """
    feeds = _feeds(guard.spec, batch, seed)
    tensor = feeds[guard.spec.name]
    first = guard.verdicts(guard.run(tensor))
    wanted = np.random.default_rng(seed).binomial(batch, again.order.share, rounds)
    seconds = np.zeros((rounds, 3))
    for turn in range(-WARM_UP, rounds):
        rows = np.arange(batch if turn < 0 else wanted[turn])
        for side in range(2)[:: 1 if turn % 2 else -1]:
            session, fetch = sides[side]
            started = perf_counter()
            session.run(fetch, feeds)
            seconds[max(turn, 0), side] = perf_counter() - started
        started = perf_counter()
        if len(rows):
            again.scores(tensor[rows], again.read(first, rows))
            seconds[max(turn, 0), 2] = perf_counter() - started
        elif turn <= 0:
            seconds[0, 2] = 0  # what warmed up counts for nothing
    return seconds


def pair_ratio(
    production: Production,
    spec: InputSpec,
    taps: Sequence[Tap],
    head: Head,
    *,
    batch: int,
    rounds: int,
    threads: int = 1,
) -> float:
    """Return how many times longer the model takes with this guard: the median ratio of pairs.

    Of one thread its processor time is taken: other processes of a busy machine are not in it.
    """
    compiled = compile_guard(production, taps, head, fpr=0.5)
    sides = _sides(production, compiled, threads)
    seconds = _time_in_turn(sides, _feeds(spec, batch, 0), rounds, _clock(threads))
    return float(np.median(seconds[:, 1] / seconds[:, 0]))


def plain_seconds(
    production: Production, spec: InputSpec, *, batch: int, rounds: int, threads: int = 1
) -> float:
    """Return how long the model takes without a guard: the median, as `pair_ratio` takes it."""
    names = [info.name for info in production.outputs]
    side = (open_session(production.proto, threads=threads), names)
    feeds = _feeds(spec, batch, 0)
    return float(np.median(_time_in_turn((side,), feeds, rounds, _clock(threads))))


def reading_seconds(
    production: Production,
    spec: InputSpec,
    taps: Sequence[Tap],
    *,
    batch: int,
    rounds: int,
    threads: int = 1,
) -> tuple[ReadingTime, ...]:
    """Return what it takes to read each tap alone, by ONNX Runtime's own profile of one session.

    Each is the median over the rounds, operator by operator, where the network runs as well, so
    that a map is as warm or as cold as it will be. Taps that are read side by side share operators:
    together they take less than the sum.
    """
    graph = Graph.over(production)
    owners: dict[str, tuple[int, int]] = {}
    rates = []
    for i, tap in enumerate(taps):
        for j, level in enumerate(tap.levels):
            known = len(graph.proto.graph.node)
            rates.append(add_rates(graph, [replace(tap, levels=(level,))]).tensor)
            owners.update((node.name, (i, j)) for node in graph.proto.graph.node[known:])
    graph.output(RATES, graph.concat(*rates), TensorProto.FLOAT, ["N", None])
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(graph.finish(), threads=threads, profile=f"{folder}/profile")
        for _ in range(max(1, rounds)):
            session.run([RATES], _feeds(spec, batch, 0))
        events = json.loads(Path(session.end_profiling()).read_text())
    for event in events:
        name = _OURS.match(event["name"])
        if name is not None and event["name"].endswith("_kernel_time"):
            found.setdefault(name.group(), []).append(event["dur"] / 1e6)
    first = np.zeros(len(taps))
    each = [np.zeros(len(tap.levels)) for tap in taps]
    for operator, seconds in found.items():
        if operator in owners:
            i, j = owners[operator]
            each[i][j] += float(np.median(seconds))
    for i, own in enumerate(each):
        if len(own) > 1:  # operators that all levels share were added with the first
            first[i] = max(0.0, own[0] - float(np.median(own[1:])))
            own[0] -= first[i]
    return tuple(
        ReadingTime(sample=float(first[i]), levels=tuple(map(float, own)))
        for i, own in enumerate(each)
    )


def _sides(
    production: Production,
    guarded: onnx.ModelProto,
    threads: int,
    providers: Sequence[str] | None = None,
) -> Sides:
    names = [info.name for info in production.outputs]
    return (
        (open_session(production.proto, threads=threads, providers=providers), names),
        (
            open_session(guarded, threads=threads, providers=providers),
            [*names, SCORE, LIKELIHOOD, EVIDENCE],
        ),
    )


def _feeds(spec: InputSpec, batch: int, seed: int) -> dict[str, NDArray[Any]]:
    shape = (batch, spec.height, spec.width, spec.channels)
    images = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return {spec.name: spec.to_tensor(images)}


def _clock(threads: int) -> Callable[[], float]:
    return thread_time if threads == 1 else perf_counter


def _time_in_turn(
    sides: Sides,
    feeds: dict[str, NDArray[Any]],
    rounds: int,
    clock: Callable[[], float] | None = None,
) -> NDArray[np.float64]:
    """Return seconds of each run, (rounds, sides): forwards and backwards in turn."""
    clock = clock or perf_counter
    seconds = np.empty((rounds, len(sides)))
    for turn in range(-min(WARM_UP, rounds), rounds):
        for side in range(len(sides))[:: 1 if turn % 2 else -1]:
            session, fetch = sides[side]
            started = clock()
            session.run(fetch, feeds)
            if turn >= 0:
                seconds[turn, side] = clock() - started
    return seconds
