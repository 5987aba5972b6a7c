"""What the guard costs: the guarded model against the plain one, in turn, in one process."""

from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from reluguard.detector.artifact import read_guard
from reluguard.detector.compile.guarded import (
    CHALLENGER_SCORE,
    EVIDENCE,
    LIKELIHOOD,
    RATES,
    SCORE,
    compile_guard,
    compile_reader,
)
from reluguard.detector.head import Head
from reluguard.detector.images import InputSpec
from reluguard.detector.model import Production, load_production
from reluguard.detector.runtime import Guard
from reluguard.detector.session import open_session
from reluguard.detector.taps import Tap

__all__ = ["bench_guard", "pair_ratio", "plain_seconds", "reading_ratios"]

Sides = tuple[tuple[ort.InferenceSession, list[str]], ...]

WARM_UP = 5


def bench_guard(
    model: Path | str,
    guard: Path | str,
    *,
    batches: Sequence[int],
    rounds: int,
    threads: int = 1,
    seed: int = 0,
    providers: Sequence[str] | None = None,
    challenger: Path | str | None = None,
) -> dict[str, Any]:
    """Return `overhead_p50` per batch size: the median ratio of guarded to plain, pair by pair.

    Both sessions run in turn on the same input, which one first changing from pair to pair, so that
    a drift of the machine's speed cancels.

    Args:
        model: the production ONNX file.
        guard: the guard's folder.
        batches: batch sizes; a model of fixed batch is timed at that one alone.
        rounds: pairs per batch size.
        threads: per run.
        seed: of the input.
        providers: ONNX Runtime's names in order of preference; CPU by default.
        challenger: a second guard: also `challenger_overhead_p50`, the median ratio of the guarded
            model with it in shadow to the one without.

    Raises:
        SettingsError: a provider is not available.
    """
    artifact = read_guard(guard)
    production = load_production(model, output=artifact.manifest.answer)
    guarded = Guard(production, artifact, threads=threads, providers=providers)
    sides = _sides(production, guarded.compiled, threads, providers)
    if challenger is not None:
        both = Guard(
            production,
            artifact,
            threads=threads,
            providers=providers,
            challenger=read_guard(challenger),
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
    added = len(guarded.compiled.graph.node) - len(production.proto.graph.node)
    return {
        "threads": threads,
        "providers": list(providers or ["CPUExecutionProvider"]),
        "rounds": rounds,
        "taps": len(artifact.manifest.taps),
        "nodes_added": added,
        "overhead_p50": {str(row["batch"]): row["overhead_p50"] for row in rows},
        "batches": rows,
    }


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
    """Return how many times longer the model takes with this guard: the median ratio of pairs."""
    compiled = compile_guard(production, taps, head, fpr=0.5)
    seconds = _time_in_turn(_sides(production, compiled, threads), _feeds(spec, batch, 0), rounds)
    return float(np.median(seconds[:, 1] / seconds[:, 0]))


def plain_seconds(
    production: Production, spec: InputSpec, *, batch: int, rounds: int, threads: int = 1
) -> float:
    """Return how long the model takes without a guard: the median."""
    names = [info.name for info in production.outputs]
    side = (open_session(production.proto, threads=threads), names)
    return float(np.median(_time_in_turn((side,), _feeds(spec, batch, 0), rounds)))


def reading_ratios(
    production: Production,
    spec: InputSpec,
    taps: Sequence[Tap],
    *,
    batch: int,
    rounds: int,
    threads: int = 1,
) -> tuple[float, dict[str, float]]:
    """Return what reading costs, without a head: all taps together, and each alone by its name.

    Each is the median ratio to the plain model, pair by pair. Taps that are read side by side share
    operators, so all together cost less than the sum.
    """
    names = [info.name for info in production.outputs]
    plain = open_session(production.proto, threads=threads)
    feeds = _feeds(spec, batch, 0)

    def ratio(some: Sequence[Tap]) -> float:
        reader = open_session(compile_reader(production, some), threads=threads)
        seconds = _time_in_turn(((plain, names), (reader, [*names, RATES])), feeds, rounds)
        return float(np.median(seconds[:, 1] / seconds[:, 0]))

    return ratio(taps), {tap.name: ratio([tap]) for tap in taps}


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


def _time_in_turn(sides: Sides, feeds: dict[str, NDArray[Any]], rounds: int) -> NDArray[np.float64]:
    """Return seconds of each run, (rounds, sides): forwards and backwards in turn."""
    seconds = np.empty((rounds, len(sides)))
    for turn in range(-WARM_UP, rounds):
        for side in range(len(sides))[:: 1 if turn % 2 else -1]:
            session, fetch = sides[side]
            started = perf_counter()
            session.run(fetch, feeds)
            if turn >= 0:
                seconds[turn, side] = perf_counter() - started
    return seconds
