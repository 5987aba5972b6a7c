"""How fast the server is, beside the bare ONNX Runtime loop that it cannot beat.

    python -m benchmarks.serve_load [--network resnet20 --network resnet50] [--json OUT]
    python -m benchmarks.serve_load --model M.onnx --guard G

The server, with one ONNX Runtime thread, and the bare loop over the same guarded graph have one
core, the callers another. Per round and network: the bare loop at batches of 1, 8 and 32; closed
loops of 1, 8 and 64 callers with one image each, by the Open Inference Protocol and by our own
Inspect; then an open loop at 80 % of what the closed loops reached, calls at random moments
(Poisson), latency counted from when a call was due. Beside it stands what a server without any cost
of its own would do, by computing: the same moments, batches of all that waits, each run as long as
the bare loop takes, slowed down to the same capacity. Figures are medians over rounds with the
least and largest; ratios and differences are taken within a round. The goal for added time is one
for small requests and not held against others.

Where something else works on either core, no goal is said to be met or missed: the share of its
time that a busy thread gets there is measured in each round, and must be 0.95 at least.

Overload, refusals and recovery are `python -m benchmarks.faults overload`.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.calls import (
    bare,
    export,
    inspect_request,
    open_inference_request,
    share_of,
    tensor_of,
)
from benchmarks.load import Load, arrivals, measure, spread
from benchmarks.networks import NETWORKS, Network, make
from benchmarks.peers.servers import INFER, OUTPUTS, Served, start

Report = dict[str, Any]
DEFAULT = ("resnet20", "resnet50")
_BATCHES = (1, 8, 32)
_SECONDS = {"resnet50": 10.0}  # what takes 40 ms per image needs longer
_LOAD = 0.8
_SMALL_BYTES = 64 * 1024
_MAX_BATCH = 32  # the server's default
_IDLE = 0.95  # of a core that nobody else works on
_METHODS = {"open inference": INFER, "inspect": "/reluguard.v1.Guard/Inspect"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What a figure should be: at least or at most a limit."""

    what: str
    limit: float
    at_least: bool = False

    def met(self, value: float) -> bool:
        """Return whether this value reaches it."""
        return value >= self.limit if self.at_least else value <= self.limit


GOALS = {
    "throughput_ratio": Goal(what="throughput / bare", limit=0.8, at_least=True),
    "added_p50_ms": Goal(what="p50 added to one small call, ms", limit=0.6),
    "loaded_p99_over_p50": Goal(what="p99 / p50 at 80 % load", limit=3.0),
}


def main() -> int:
    """Measure, print, and return 0 whatever the figures are."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serve_load",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--network", action="append", choices=sorted(NETWORKS), help="[the ResNets]"
    )
    parser.add_argument("--model", type=Path, help="an ONNX file instead; goes with --guard")
    parser.add_argument("--guard", type=Path, help="its guard's folder")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, help="of each loop [4; ResNet-50: 10]")
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--core", type=int, default=0, help="of the server; callers get another")
    parser.add_argument("--work", type=Path, help="keeps the networks between runs")
    parser.add_argument("--json", type=Path, help="write the report here; - for stdout alone")
    options = parser.parse_args()
    if (options.model is None) != (options.guard is None):
        parser.error("expected --model and --guard together: got only one of them")
    others = sorted(os.sched_getaffinity(0) - {options.core})
    if options.core not in os.sched_getaffinity(0) or not others:
        parser.error(f"expected two cores, one of them {options.core}")
    report: Report = {
        "cores": {"server": [options.core], "callers": others[:1]},
        "threads": 1,
        "rounds": options.rounds,
        "networks": [],
    }
    with tempfile.TemporaryDirectory(prefix="reluguard-load-") as place:
        for network in _networks(options, options.work or Path(place)):
            seconds = options.seconds or _SECONDS.get(network.name, 4.0)
            found = _measure(network, Path(place), options, seconds, {options.core}, {others[0]})
            report["networks"].append(found)
    text = json.dumps(report, indent=2)
    if options.json and str(options.json) != "-":
        options.json.write_text(text + "\n", encoding="utf-8")
    print(text if str(options.json) == "-" else table(report))
    return 0


def _networks(options: argparse.Namespace, folder: Path) -> list[Network]:
    if options.model is not None:
        return [Network(name=options.model.stem, model=options.model, guard=options.guard)]
    return [make(name, folder) for name in options.network or DEFAULT]


def _measure(
    network: Network,
    folder: Path,
    options: argparse.Namespace,
    seconds: float,
    cores: set[int],
    caller_cores: set[int],
) -> Report:
    guarded, name, shape = export(network, folder)
    outputs = ("logits", *OUTPUTS[1:]) if options.model is None else OUTPUTS[1:]
    one = tensor_of(1, shape)
    requests = {
        "open inference": open_inference_request(one, name=name, outputs=outputs),
        "inspect": inspect_request(one, name=name),
    }
    for kind, data in requests.items():
        (folder / kind).write_bytes(data)
    served = Served(network=network, guarded=guarded, name=name, folder=folder, venvs=folder)
    rounds = []
    with start("reluguard", served, cores=cores, probe=requests["open inference"]) as address:
        for _ in range(options.rounds):
            found: Report = {
                "callers_share": share_of(caller_cores),
                "bare": {
                    str(rows): bare(
                        guarded, tensor_of(rows, shape), name=name, outputs=outputs,
                        seconds=seconds / 2, cores=cores,
                    )
                    for rows in _BATCHES
                }
            }  # fmt: skip
            for kind, method in _METHODS.items():
                found[kind] = {
                    str(callers): measure(
                        Load(address=address, method=method, request=str(folder / kind),
                             seconds=seconds, callers=callers),
                        cores=caller_cores,
                    )
                    for callers in options.callers
                }  # fmt: skip
            rounds.append(found)
        capacity = {
            kind: statistics.median(_best(found[kind]) for found in rounds) for kind in _METHODS
        }
        for turn, found in enumerate(rounds):
            for kind, method in _METHODS.items():
                load = Load(
                    address=address, method=method, request=str(folder / kind),
                    seconds=3 * seconds, rate=_LOAD * capacity[kind], seed=turn,
                )  # fmt: skip
                found[f"{kind}, loaded"] = measure(load, cores=caller_cores)
                found[f"{kind}, loaded, ideal"] = ideal(load, found["bare"], capacity[kind])
    return {
        "network": network.name,
        "seconds": seconds,
        "request_bytes": {kind: len(data) for kind, data in requests.items()},
        **summary(rounds, small=max(map(len, requests.values())) <= _SMALL_BYTES),
    }


def ideal(load: Load, bare_runs: Report, capacity: float) -> Report:
    """Return p50 and p99 of a queue that nothing but runs of the model takes time in.

    Args:
        load: the open loop whose arrivals are taken.
        bare_runs: the bare loop's figures by batch size.
        capacity: images per second at full batches; runs are stretched to that.
    """
    assert load.rate is not None
    sizes = sorted(map(int, bare_runs))
    runs = np.array([bare_runs[str(size)]["p50_ms"] / 1000 for size in sizes])
    runs *= max(size / run for size, run in zip(sizes, runs, strict=True)) / capacity
    due = arrivals(load.rate, load.seconds, load.seed)
    latencies = np.empty(len(due))
    first, free = 0, 0.0
    while first < len(due):
        start = max(free, due[first])
        waiting = int(np.searchsorted(due, start, side="right")) - first
        last = first + min(waiting, _MAX_BATCH)
        free = start + float(np.interp(last - first, sizes, runs))
        latencies[first:last] = free - due[first:last]
        first = last
    return spread(latencies.tolist())


def _best(by: Report) -> float:
    return max(float(row["images_per_s"]) for row in by.values())


def summary(rounds: list[Report], *, small: bool) -> Report:
    """Return each figure's median, least and largest, and the rounds that they come from."""
    figures: Report = {}
    share = least_share(rounds)
    for kind in _METHODS:
        ratios = [_best(found[kind]) / _best(found["bare"]) for found in rounds]
        added = [
            found[kind]["1"]["p50_ms"] - found["bare"]["1"]["p50_ms"]
            for found in rounds
            if "1" in found[kind]
        ]
        tails = [
            loaded["p99_ms"] / loaded["p50_ms"]
            for found in rounds
            if (loaded := found[f"{kind}, loaded"])["accepted"]
        ]
        alone = [
            row["p99_ms"] / row["p50_ms"]
            for found in rounds
            if (row := found[f"{kind}, loaded, ideal"])["p50_ms"]
        ]
        for key, values in zip((*GOALS, "ideal"), (ratios, added, tails, alone), strict=True):
            if values:
                middle = statistics.median(values)
                figures.setdefault(kind, {})[key] = {
                    "median": round(middle, 3),
                    "least": round(min(values), 3),
                    "largest": round(max(values), 3),
                }
                if key in GOALS and (small or key != "added_p50_ms"):
                    met = GOALS[key].met(middle) if share >= _IDLE else None
                    figures[kind][key] |= {"goal": GOALS[key].limit, "met": met}
    return {"figures": figures, "share": share, "rounds": rounds}


def least_share(rounds: list[Report]) -> float:
    """Return the least share of a core's time that a busy thread got in any round."""
    shares = [found["callers_share"] for found in rounds]
    shares += [row["share"] for found in rounds for row in found["bare"].values()]
    return float(min(shares))


def table(report: Report) -> str:
    """Return the report as text."""
    title = "server and bare loop on one core with one thread, callers on another"
    lines = [f"{title}; medians of {report['rounds']} rounds [least, largest]"]
    for network in report["networks"]:
        rounds = network["rounds"]
        lines += ["", network["network"], f"{'':<28}{'images/s':>24}{'p50 ms':>10}{'p99 ms':>10}"]
        for rows in rounds[0]["bare"]:
            lines.append(_row(f"bare loop, batch {rows}", [r["bare"][rows] for r in rounds]))
        for kind in _METHODS:
            for callers in rounds[0][kind]:
                label = f"{kind}, {callers} callers"
                lines.append(_row(label, [found[kind][callers] for found in rounds]))
            loaded = [
                found[f"{kind}, loaded"] | {"images_per_s": found[f"{kind}, loaded"]["asked_per_s"]}
                for found in rounds
            ]
            lines.append(_row(f"{kind}, 80 % load", loaded))
            alone = [
                found[f"{kind}, loaded, ideal"] | {"images_per_s": row["images_per_s"]}
                for found, row in zip(rounds, loaded, strict=True)
            ]
            lines.append(_row("  the same without any cost", alone))
        for kind, figures in network["figures"].items():
            for key, found in figures.items():
                what = GOALS[key].what if key in GOALS else "p99 / p50 without any cost"
                line = (
                    f"  {kind}: {what} {found['median']:.2f} [{found['least']:.2f}, "
                    f"{found['largest']:.2f}]"
                )
                if "goal" in found:
                    sign = ">=" if GOALS[key].at_least else "<="
                    mark = {True: "met", False: "MISSED", None: _busy(network)}[found["met"]]
                    line += f", goal {sign} {found['goal']:g}: {mark}"
                lines.append(line)
    return "\n".join(lines)


def _busy(network: Report) -> str:
    return f"not measurable here: a busy thread got {network['share']:.0%} of its core"


def _row(label: str, rows: list[Report]) -> str:
    rates = [row["images_per_s"] for row in rows]
    p50, p99 = (
        statistics.median(row[key] for row in rows if row[key] is not None)
        for key in ("p50_ms", "p99_ms")
    )
    rate = f"{statistics.median(rates):.0f} [{min(rates):.0f}, {max(rates):.0f}]"
    return f"{label:<28}{rate:>24}{p50:>10.2f}{p99:>10.2f}"


if __name__ == "__main__":
    sys.exit(main())
