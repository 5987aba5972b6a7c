"""What harvesting and fitting cost: speed against bare guarded inference, memory against images.

    OMP_NUM_THREADS=1 python -m benchmarks.harvest speed --model resnet20 --shards 12
    OMP_NUM_THREADS=1 python -m benchmarks.harvest stream --images 1000 10000 100000 1000000
    OMP_NUM_THREADS=1 python -m benchmarks.harvest fit --rows 1000000 --rates 2000

`speed` makes shards of clean images and runs the guarded model on the same images, shard by shard
in turn, one thread each; the ratio is the median over pairs. `stream` reads so many images of a
file that is made up beforehand through a small network, in one process, and tells its memory. `fit`
fits a head on made-up shards of one byte per rate. Each prints a table; with `--json` a document.
"""

import argparse
import gc
import json
import resource
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from benchmarks.networks import NETWORKS, make
from reluguard.detector.artifact import write_file
from reluguard.detector.model import infer_spec, load_production
from reluguard.detector.runtime import Guard
from reluguard.detector.taps import Tap, find_taps
from reluguard.training.data.case import chunk_of
from reluguard.training.data.dataset import Dataset, load_data
from reluguard.training.harvest.maker import Maker
from reluguard.training.harvest.orders import SHARD_IMAGES, Orders, plan_jobs
from reluguard.training.harvest.readings import Kind, Readings
from reluguard.training.harvest.workspace import Workspace
from reluguard.training.head.fit import HeadSettings, fit_head

MIB = 2**20


def main() -> None:
    """Measure one of the three and print it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    speed_parser = commands.add_parser("speed", help="shards against bare guarded inference")
    speed_parser.add_argument("--model", choices=sorted(NETWORKS), default="resnet20")
    speed_parser.add_argument("--shards", type=int, default=12)
    speed_parser.add_argument("--images", type=int, default=SHARD_IMAGES, help="per shard")
    speed_parser.set_defaults(measure=speed)
    stream_parser = commands.add_parser("stream", help="memory against the number of images")
    stream_parser.add_argument("--images", type=int, nargs="+", default=[1000, 10_000, 100_000])
    stream_parser.set_defaults(measure=stream)
    fit_parser = commands.add_parser("fit", help="memory of fitting a head")
    fit_parser.add_argument("--rows", type=int, default=100_000)
    fit_parser.add_argument("--rates", type=int, default=2000)
    fit_parser.add_argument("--epochs", type=int, default=1)
    fit_parser.add_argument("--members", type=int, default=1)
    fit_parser.set_defaults(measure=fit)
    for command in (speed_parser, stream_parser, fit_parser):
        command.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = options.measure(options, Path(folder))
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    names = list(rows[0])
    widths = [max(len(name), *(len(str(row[name])) for row in rows)) for name in names]
    for line in (names, *([str(row[name]) for name in names] for row in rows)):
        print("  ".join(str(cell).rjust(width) for cell, width in zip(line, widths, strict=True)))


def speed(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Return the share of bare guarded inference that harvesting reaches."""
    network = make(options.model, folder)
    guard = Guard.open(network.model, network.guard, threads=1)
    spec = guard.spec
    shape = (options.images, spec.height, spec.width, spec.channels)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    data = Dataset(images=images, labels=np.arange(len(images)) % 2, source="noise")
    maker = Maker(_orders(network.model, data, folder / "work", guard.artifact.manifest.taps))
    rows = np.arange(len(images))
    job = plan_jobs("clean", "clean", {"fit": rows})
    chunk = chunk_of(images)
    tensors = [spec.to_tensor(images[i : i + chunk]) for i in range(0, len(images), chunk)]
    pairs = []
    for turn in range(-1, options.shards):
        seconds = {}
        for side in ("harvest", "guarded") if turn % 2 else ("guarded", "harvest"):
            started = time.perf_counter()
            if side == "harvest":
                for one in job:
                    maker.make(one)
            else:
                for tensor in tensors:
                    guard.run(tensor)
            seconds[side] = time.perf_counter() - started
        if turn >= 0:
            pairs.append(seconds)
    ratios = [pair["guarded"] / pair["harvest"] for pair in pairs]
    quartiles = np.quantile(ratios, [0.25, 0.75])
    per_image = {side: np.median([p[side] for p in pairs]) / len(images) for side in pairs[0]}
    size = sum((folder / "work" / one.file).stat().st_size for one in job) / len(images)
    return [
        {
            "model": options.model,
            "shards": options.shards,
            "guarded_ms_per_image": round(1000 * per_image["guarded"], 3),
            "harvest_ms_per_image": round(1000 * per_image["harvest"], 3),
            "throughput_of_guarded": round(float(np.median(ratios)), 3),
            "quartiles": f"{quartiles[0]:.3f}-{quartiles[1]:.3f}",
            "bytes_per_image": round(size),
        }
    ]


def stream(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Return memory after so many images, all from one growing harvest."""
    model, size = folder / "small.onnx", 16
    onnx.save(_small(size), model)
    count = max(options.images)
    file = _images_on_disk(folder / "images.npz", count, size)
    data = load_data(str(file))
    maker = Maker(_orders(model, data, folder / "work"))
    jobs = plan_jobs("clean", "clean", {"fit": np.arange(count)})
    table, done, started = [], 0, time.perf_counter()
    for job in jobs:
        maker.make(job)
        (folder / "work" / job.file).unlink()  # a million images' shards are not wanted here
        before, done = done, done + len(job.sources)
        for mark in sorted(options.images):
            if before < mark <= done:
                gc.collect()
                table.append(
                    {
                        "images": done,
                        "seconds": round(time.perf_counter() - started, 1),
                        **_memory(),
                        "file_MiB": round(file.stat().st_size / MIB),
                    }
                )
    return table


def fit(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Return the peak memory of fitting a head on shards of half clean, half attacked rows."""
    taps = (Tap(name="a", op="Relu", shape=(options.rates, 16, 16)),)
    half = options.rows // 2
    workspace = Workspace(folder, {})
    kinds: tuple[Kind, Kind] = ("clean", "attack")
    groups = [_made_up(workspace, kind, half, options.rates) for kind in kinds]
    disk = sum(file.stat().st_size for file in folder.rglob("*.npz"))
    before, started = _memory()["rss_MiB"], time.perf_counter()
    head = fit_head(
        groups,
        taps=taps,
        settings=HeadSettings(members=options.members, epochs=options.epochs),
        seed=0,
    )
    seconds = time.perf_counter() - started
    fresh = [_draw(kind, 2000, options.rates, seed=99) for kind in kinds]
    scores = [head.score(codes / np.float32(255), logits).score for codes, logits in fresh]
    above = (scores[1][:, None] > scores[0][None]).mean()
    return [
        {
            "rows": 2 * half,
            "rates": options.rates,
            "shards_MiB": round(disk / MIB),
            "rss_before_MiB": before,
            "peak_rss_MiB": _memory()["peak_rss_MiB"],
            "seconds": round(seconds),
            "fresh_auroc": round(float(above), 3),
        }
    ]


def _orders(model: Path, data: Dataset, work: Path, taps: tuple[Tap, ...] = ()) -> Orders:
    production = load_production(model)
    h, w, c = data.images.shape[1:]
    spec = infer_spec(production, (h, w, c))
    return Orders(
        model=model,
        output=production.answer,
        spec=spec,
        taps=taps or find_taps(production, spec),
        twin="none",
        dataset=data,
        changes={},
        workspace=work,
        seed=0,
        threads=1,
    )


def _memory() -> dict[str, int]:
    """Return this process's memory in MiB: now, without what mapped files take, and at most."""
    text = Path("/proc/self/status").read_text()
    kib = {line.split(":")[0]: line.split()[1] for line in text.splitlines() if "kB" in line}
    return {
        "rss_MiB": int(kib["VmRSS"]) // 1024,
        "anonymous_MiB": int(kib["RssAnon"]) // 1024,
        "peak_rss_MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def _small(size: int) -> onnx.ModelProto:
    """Return a network of one convolution on grey images."""
    rng = np.random.default_rng(0)
    shapes = {"w1": (16, 1, 3, 3), "b1": (16,), "w2": (10, 16), "b2": (10,)}
    weights = [
        numpy_helper.from_array(rng.normal(0, 0.3, shape).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    nodes = [
        helper.make_node("Conv", ["image", "w1", "b1"], ["c"], strides=[2, 2]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "w2", "b2"], ["logits"], transB=1),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, size, size])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 10])
    graph = helper.make_graph(nodes, "small", [image], [logits], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def _images_on_disk(file: Path, count: int, size: int) -> Path:
    """Write a plain npz of noise, block by block."""
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(file, "w") as archive:
        with archive.open("images.npy", "w", force_zip64=True) as stream:
            header = {"descr": "|u1", "fortran_order": False, "shape": (count, size, size, 1)}
            np.lib.format.write_array_header_1_0(stream, header)
            for start in range(0, count, 10_000):
                rows = min(10_000, count - start)
                stream.write(rng.integers(0, 256, (rows, size, size, 1), np.uint8).tobytes())
        with archive.open("labels.npy", "w") as stream:
            np.lib.format.write_array(stream, np.arange(count) % 10)
    return file


def _draw(
    kind: Kind, rows: int, rates: int, *, seed: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Return codes of 255 steps, of which an attack moves a tenth a little, and logits."""
    rng = np.random.default_rng(seed if kind == "clean" else seed + 10**6)
    codes = rng.integers(60, 180, (rows, rates), dtype=np.uint8)
    if kind == "attack":
        codes[:, ::10] += 6
    return codes, rng.normal(0, 1, (rows, 10)).astype(np.float32)


def _made_up(workspace: Workspace, kind: Kind, rows: int, rates: int) -> Readings:
    """Write shards of random readings and return them, left on disk."""
    jobs = plan_jobs(kind, kind, {"fit": np.arange(rows)})
    for job in jobs:
        codes, logits = _draw(kind, len(job.sources), rates, seed=job.number)
        arrays: dict[str, NDArray[Any]] = {
            "rates": codes,
            "steps": np.full(rates, 255, np.uint8),
            "logits": logits,
            "sources": job.sources,
            "labels": job.sources % 10,
            "success": np.ones(len(codes), np.bool_),
        }
        write_file(workspace.folder / job.file, npz=arrays, compress=False)
    return workspace.readings(jobs)


if __name__ == "__main__":
    main()
