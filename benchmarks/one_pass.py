"""What a guard adds to one run: guarded against plain in one process, in turn, run by run.

    python -m benchmarks.one_pass [--network resnet20] [--batch 1] [--json OUT] [--profile]

Heads have random weights of the shapes that a fit gives: time depends on shapes alone. Readings are
`whole` (every place of every tap), `blocks` (as `reluguard fit --max-overhead 0` reads every tap)
and `chosen` (one level of each of twelve of these taps, evenly spread: about as much as a fit finds
worth its time, which a network of random weights can't tell). Per network, reading and batch size:
the median of the ratio of guarded to plain over pairs, with quartiles, threads pinned, of one
thread its processor time, which others on the machine are not in; how much more memory a process
holds at its peak that runs the guarded file; and the operators added. `--profile` says which of
them take the time, in ONNX Runtime's own profile.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from time import perf_counter, thread_time
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from benchmarks.drawn import Drawing, as_fitted, draw_head
from benchmarks.networks import NETWORKS, make
from reluguard.detector.artifact import write_file
from reluguard.detector.compile.guarded import compile_guard
from reluguard.detector.head import Head
from reluguard.detector.images import InputSpec
from reluguard.detector.model import Production, load_production
from reluguard.detector.session import open_session
from reluguard.detector.taps import Tap, find_taps
from reluguard.training.head.fit import HeadSettings

COLUMNS, CLASSES, PROBES, CODE = 1400, 128, 4, 32  # as reluguard.training.head.probes has them
READINGS_DRAWN = 100
READINGS = ("whole", "blocks", "chosen")
CHOSEN_TAPS = 12
WARM_UP = 3
_CHILD = """
import sys
import numpy as np
from reluguard.detector.session import open_session

with open(sys.argv[1], "rb") as model:
    session = open_session(model.read(), threads=1)
tensor = np.load(sys.argv[2])
for _ in range(3):
    session.run(None, {session.get_inputs()[0].name: tensor})
with open("/proc/self/status") as status:  # ru_maxrss would begin at what the parent held
    print(next(line.split()[1] for line in status if line.startswith("VmHWM")))
"""


def main() -> int:
    """Measure, print, and return 0 whatever the figures are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Plain)
    parser.add_argument("--network", action="append", choices=sorted(NETWORKS), help="one or more")
    parser.add_argument("--reading", action="append", choices=READINGS, help="one or more")
    parser.add_argument("--batch", action="append", type=int, help="one or more: 1, 8 and 32")
    parser.add_argument("--rounds", type=int, default=40, help="pairs at batch 1; fewer at larger")
    parser.add_argument("--threads", type=int, default=1, help="of ONNX Runtime")
    parser.add_argument("--provider", choices=["cpu", "cuda"], default="cpu", help="where it runs")
    parser.add_argument("--profile", action="store_true", help="list what takes the time")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in args.network or sorted(NETWORKS):
            production, spec, taps = _load(name, Path(folder))
            for reading in args.reading or READINGS:
                row = _measure(production, spec, _read(taps, reading), args, Path(folder))
                rows.append({"network": name, "reading": reading, **row})
                print(_text(rows[-1]), flush=True)
    if args.json:
        write_file(args.json, json.dumps({"threads": args.threads, "rows": rows}).encode())
    return 0


class _Plain(argparse.RawDescriptionHelpFormatter):
    pass


def _load(name: str, folder: Path) -> tuple[Production, InputSpec, tuple[Tap, ...]]:
    network = make(name, folder)
    production = load_production(network.model)
    size, _ = NETWORKS[name]
    spec = InputSpec(name=production.input.name, height=size, width=size, channels=3, layout="NCHW")
    return production, spec, find_taps(production, spec)


def _read(taps: tuple[Tap, ...], reading: str) -> tuple[Tap, ...]:
    fitted = as_fitted(taps)
    if reading == "whole":
        return tuple(replace(tap, stride=1, row_stride=0, pooled=False) for tap in fitted)
    if reading == "blocks":
        return fitted
    places = np.unique(np.linspace(0, len(fitted) - 1, CHOSEN_TAPS).round().astype(int))
    return tuple(replace(fitted[i], levels=fitted[i].levels[:1]) for i in places)


def _measure(
    production: Production,
    spec: InputSpec,
    taps: tuple[Tap, ...],
    args: argparse.Namespace,
    folder: Path,
) -> dict[str, Any]:
    """Return a row of figures."""
    classes = production.outputs[0].shape[-1] or 0
    fitted = HeadSettings()
    head = _head(taps, classes, fitted.members * fitted.units)
    guarded = compile_guard(production, taps, head, fpr=0.5)
    providers = ["CUDAExecutionProvider"] if args.provider == "cuda" else None
    sides = [
        open_session(proto, threads=args.threads, providers=providers)
        for proto in (production.proto, guarded)
    ]
    found = {}
    for batch in args.batch or (1, 8, 32):
        clock = thread_time if args.threads == 1 and args.provider == "cpu" else perf_counter
        seconds = _in_turn(sides, _feeds(spec, batch), max(3, args.rounds // batch), clock)
        ratio = seconds[:, 1] / seconds[:, 0]
        low, middle, high = np.quantile(ratio, [0.25, 0.5, 0.75]).tolist()
        plain = float(np.median(seconds[:, 0]))
        found[str(batch)] = {"ratio_p50": middle, "quartiles": [low, high], "plain_p50_s": plain}
    row: dict[str, Any] = {
        "taps": len(taps),
        "rates": sum(tap.rates for tap in taps),
        "nodes_added": len(guarded.graph.node) - len(production.proto.graph.node),
        "batches": found,
        "memory_ratio": _memory(guarded, spec, folder) / _memory(production.proto, spec, folder),
    }
    if args.profile:
        row["added_us"] = _added(guarded, _feeds(spec, 1), folder)
    return row


def _head(taps: tuple[Tap, ...], classes: int, units: int) -> Head:
    """Return a head of random weights over evenly chosen rates."""
    rng = np.random.default_rng(0)
    rates = rng.random((READINGS_DRAWN, sum(tap.rates for tap in taps)), np.float32)
    logits = rng.normal(size=(READINGS_DRAWN, classes)).astype(np.float32)
    drawing = Drawing(
        units=(units,), most_columns=COLUMNS, most_classes=CLASSES, probes=PROBES, code=CODE
    )
    return draw_head(taps, rates, logits, drawing)


def _feeds(spec: InputSpec, batch: int) -> dict[str, NDArray[Any]]:
    shape = (batch, spec.height, spec.width, spec.channels)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return {spec.name: spec.to_tensor(images)}


def _in_turn(
    sides: list[ort.InferenceSession],
    feeds: Mapping[str, NDArray[Any]],
    rounds: int,
    clock: Callable[[], float],
) -> NDArray[np.float64]:
    """Return seconds of each run, (rounds, 2): plain and guarded, first one first in turn."""
    seconds = np.empty((rounds, 2))
    for turn in range(-WARM_UP, rounds):
        for side in (0, 1) if turn % 2 else (1, 0):
            started = clock()
            sides[side].run(None, feeds)
            if turn >= 0:
                seconds[turn, side] = clock() - started
    return seconds


def _memory(proto: onnx.ModelProto, spec: InputSpec, folder: Path) -> int:
    """Return the peak resident bytes of a process of its own that runs the model at batch 8."""
    model, images = folder / "memory.onnx", folder / "memory.npy"
    onnx.save(proto, model)
    np.save(images, _feeds(spec, 8)[spec.name])
    command = [sys.executable, "-c", _CHILD, str(model), str(images)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return 1024 * int(done.stdout)


def _added(proto: onnx.ModelProto, feeds: Mapping[str, NDArray[Any]], folder: Path) -> Any:
    """Return microseconds per run by kind of operator of ours, the profiler's share included."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.enable_profiling = 1, True
    options.log_severity_level = 3
    options.profile_file_prefix = str(folder / "profile")
    session = ort.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    runs = 30
    for _ in range(runs):
        session.run(None, dict(feeds))
    spent: Counter[str] = Counter()
    for event in json.loads(Path(session.end_profiling()).read_text()):
        if event["name"].endswith("_kernel_time") and "reluguard/" in event["name"]:
            spent[event["args"]["op_name"]] += event["dur"] / runs
    return {op: round(us, 1) for op, us in spent.most_common()}


def _text(row: Mapping[str, Any]) -> str:
    ratios = "  ".join(
        f"{batch}: {v['ratio_p50']:.3f} [{v['quartiles'][0]:.3f}, {v['quartiles'][1]:.3f}]"
        for batch, v in row["batches"].items()
    )
    line = (
        f"{row['network']:13} {row['reading']:7} {row['taps']:3} taps "
        f"{row['nodes_added']:4} nodes  "
        f"{ratios}  memory {row['memory_ratio']:.3f}"
    )
    spent = row.get("added_us", {})
    return "\n".join([line, *(f"    {op:20} {us:8.1f} us" for op, us in spent.items())])


if __name__ == "__main__":
    sys.exit(main())
