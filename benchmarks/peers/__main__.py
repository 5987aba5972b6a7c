"""Our server beside others: the same guarded ONNX file, the same callers, one thread each.

    python -m benchmarks.peers [--network resnet20] [--rounds 3] [--seconds 4] [--json OUT]

Servers: ours; an ordinary grpc.aio server without batching; MLServer with a custom ONNX Runtime
runtime, with and without its batching; Triton from nvidia-pytriton with a Python model. Each gets
one core and one ONNX Runtime thread, the callers another core; the bare loop runs on the server's
core. Virtual environments of the peers are made on first use, from the package index that pip is
set to. Each round runs every server in turn, a fresh process each time; the table has medians over
rounds and, in brackets, the least and largest.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from benchmarks.calls import bare, export, open_inference_request, tensor_of
from benchmarks.load import Load, measure
from benchmarks.networks import NETWORKS, make
from benchmarks.peers.servers import INFER, OUTPUTS, PEERS, Served, start
from reluguard.service.protocols.pb import open_inference as oip

Report = dict[str, Any]
_TOLERANCE = 1e-3


def main() -> int:
    """Measure, print, and return 0 if every server that was asked for could be measured."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--network", choices=sorted(NETWORKS), default="resnet20")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--peer", action="append", choices=sorted(PEERS), help="[all]")
    parser.add_argument("--core", type=int, default=0, help="of the server; callers get another")
    parser.add_argument("--venvs", type=Path, default=Path(tempfile.gettempdir()) / "peer-venvs")
    parser.add_argument("--work", type=Path, help="keeps the network between runs")
    parser.add_argument("--json", type=Path, help="write the report here; - for stdout alone")
    options = parser.parse_args()
    others = sorted(os.sched_getaffinity(0) - {options.core})
    if options.core not in os.sched_getaffinity(0) or not others:
        parser.error(f"expected two cores, one of them {options.core}")
    with tempfile.TemporaryDirectory(prefix="reluguard-peers-") as place:
        report = _compare(options, Path(place), {options.core}, {others[0]})
    text = json.dumps(report, indent=2)
    if options.json and str(options.json) != "-":
        options.json.write_text(text + "\n", encoding="utf-8")
    print(text if str(options.json) == "-" else table(report))
    return 1 if report["failed"] else 0


def _compare(
    options: argparse.Namespace, folder: Path, cores: set[int], caller_cores: set[int]
) -> Report:
    network = make(options.network, options.work or folder)
    guarded, name, shape = export(network, folder)
    one = tensor_of(1, shape)
    request = folder / "request"
    request.write_bytes(open_inference_request(one, name=name, outputs=OUTPUTS))
    served = Served(network=network, guarded=guarded, name=name, folder=folder, venvs=options.venvs)
    peers = [peer for peer in PEERS if not options.peer or peer in options.peer]
    found: dict[str, dict[int, list[Report]]] = {
        peer: {callers: [] for callers in options.callers} for peer in peers
    }
    bares: dict[int, list[Report]] = {1: [], 32: []}
    failed: dict[str, str] = {}
    scores: dict[str, float] = {}
    for turn in range(options.rounds):
        for rows, rounds in bares.items():
            tensor = tensor_of(rows, shape)
            rounds.append(
                bare(guarded, tensor, name=name, outputs=OUTPUTS, seconds=options.seconds / 2,
                     cores=cores)
            )  # fmt: skip
        for peer in peers if turn % 2 == 0 else peers[::-1]:
            if peer in failed:
                continue
            try:
                with start(peer, served, cores=cores, probe=request.read_bytes()) as address:
                    scores[peer] = _score(address, request.read_bytes())
                    for callers in options.callers:
                        load = Load(
                            address=address, method=INFER, request=str(request),
                            seconds=options.seconds, callers=callers,
                        )  # fmt: skip
                        found[peer][callers].append(measure(load, cores=caller_cores))
            except RuntimeError as error:
                failed[peer] = str(error)
                print(f"{peer}: {error}", file=sys.stderr, flush=True)
    _same(scores)
    return {
        "network": options.network,
        "cores": {"server": sorted(cores), "callers": sorted(caller_cores)},
        "processor": platform.processor() or platform.machine(),
        "threads": 1,
        "rounds": options.rounds,
        "seconds": options.seconds,
        "bare": [_medians(rounds) | {"rows": rows} for rows, rounds in bares.items()],
        "servers": {
            peer: {str(callers): _medians(rounds) for callers, rounds in by.items() if rounds}
            for peer, by in found.items()
        },
        "failed": failed,
    }


def _score(address: str, request: bytes) -> float:
    """Return the score that the server gives, to see that all of them do the same work."""
    with grpc.insecure_channel(address) as channel:
        ask = channel.unary_unary(INFER, None, oip.ModelInferResponse.FromString)
        answer = ask(request, timeout=30)
    names = [output.name for output in answer.outputs]
    if sorted(names) != sorted(OUTPUTS):
        raise RuntimeError(f"expected the outputs {', '.join(OUTPUTS)}, got {', '.join(names)}")
    raw = answer.raw_output_contents[names.index("reluguard_score")]
    return float(np.frombuffer(raw, np.float32)[0])


def _same(scores: dict[str, float]) -> None:
    """Raise RuntimeError unless all servers gave the same score."""
    if scores and max(scores.values()) - min(scores.values()) > _TOLERANCE:
        raise RuntimeError(f"expected one score from all servers, got {scores}")


def _medians(rounds: list[Report]) -> Report:
    return {
        key: {
            "median": round(statistics.median(values), 3),
            "least": min(values),
            "largest": max(values),
        }
        for key in ("images_per_s", "p50_ms", "p99_ms")
        if (values := [found[key] for found in rounds])
    }


def table(report: Report) -> str:
    """Return the report as text."""
    best = max(row["images_per_s"]["median"] for row in report["bare"])
    title = f"{report['network']}, one core and one thread per server, callers on another core"
    lines = [
        f"{title}; medians of {report['rounds']} rounds [least, largest]",
        f"{'server':<24}{'callers':>8}{'images/s':>22}{'of bare':>9}{'p50 ms':>24}{'p99 ms':>10}",
    ]
    for row in report["bare"]:
        label = f"bare loop, batch {row['rows']}"
        lines.append(_line(label, "-", row, best))
    for peer, by in report["servers"].items():
        lines += [_line(peer, callers, row, best) for callers, row in by.items()]
    lines += [f"{peer}: not measured: {why}" for peer, why in report["failed"].items()]
    return "\n".join(lines)


def _line(label: str, callers: str, row: Report, best: float) -> str:
    rate, p50, p99 = row["images_per_s"], row["p50_ms"], row["p99_ms"]
    spread = f"{rate['median']:.0f} [{rate['least']:.0f}, {rate['largest']:.0f}]"
    middle = f"{p50['median']:.2f} [{p50['least']:.2f}, {p50['largest']:.2f}]"
    return (
        f"{label:<24}{callers:>8}{spread:>22}{rate['median'] / best:>9.2f}{middle:>24}"
        f"{p99['median']:>10.2f}"
    )


if __name__ == "__main__":
    sys.exit(main())
