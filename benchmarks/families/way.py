"""The way of one network by the commands that people use, each step kept for a run that goes on."""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from PIL import Image

from benchmarks.families.pictures import Parts
from benchmarks.faults.pair import Pair
from benchmarks.faults.process import ROOT, served
from benchmarks.memory import watched
from reluguard.detector.artifact import read_guard, write_file
from reluguard.detector.model import load_production
from reluguard.detector.session import open_session, run_session
from reluguard.service.client.client import Client
from reluguard.training.data.folder import Folder
from reluguard.training.twin.twin import load_twin

__all__ = ["Way", "whole_way"]

ASKED = 8  # photographs sent to the server, as tensors and as files
TWINNED = 32  # that the twin is compared on
EVERY_S = 0.5
ODD = ("Warning", "Traceback", "nan")  # what no log should hold


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """A network, what it sees, and how it is guarded and judged.

    Attributes:
        model: the ONNX file.
        parts: its images.
        recipe: as `fit --recipe` takes it.
        second: as `fit --second` takes it.
        limit: images to judge on at most.
        attacks, harmless: that are judged.
    """

    model: Path
    parts: Parts
    recipe: str
    second: str
    limit: int
    attacks: tuple[str, ...]
    harmless: tuple[str, ...]


def whole_way(
    way: Way, folder: Path, *, current: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Fit a guard, judge it, serve it, ask and score; return what came of each step.

    What the folder holds of an earlier run is taken. `trouble` says what ended the way.

    Args:
        way: what to do.
        folder: for the guard, the evaluation, logs and results.
        current: told of each step.
    """
    steps: Mapping[str, Callable[[Way, Path], dict[str, Any]]] = {
        "fit": _fit,
        "twin": _twin,
        "serve": _serve,
        "evaluate": _evaluate,
        "score": _score,
    }
    file = folder / "way.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    found.pop("trouble", None)
    for name, step in steps.items():
        if name in found:
            continue
        current(name)
        start = perf_counter()
        try:
            result = step(way, folder)
        except Exception as error:  # noqa: BLE001 # a row of its own is what this is for
            found["trouble"] = f"{name}: {type(error).__name__}: {' '.join(str(error).split())}"
            break
        found[name] = result | {"seconds": round(perf_counter() - start)}
        write_file(file, json.dumps(found, indent=2).encode())
    return found


def _command(folder: Path, name: str, *more: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the document that a command prints, and its peak of memory and odd lines of its log.

    Raises:
        RuntimeError: it failed; says its last line.
    """
    log, printed = folder / f"{name}.log", folder / f"{name}.json"
    run = [sys.executable, "-m", "reluguard", name, *more, "--threads", "1", "--json"]
    seen = watched(run, log=log, printed=printed, cwd=ROOT, every_s=EVERY_S)
    lines = log.read_text().splitlines()
    if seen.exit:
        raise RuntimeError(lines[-1] if lines else f"exit code {seen.exit}")
    odd = [line for line in lines if any(word in line for word in ODD)]
    document: dict[str, Any] = json.loads(printed.read_text())
    return document, {"peak_mb": seen.peak_mb, "while": seen.at, "odd": odd}


def _fit(way: Way, folder: Path) -> dict[str, Any]:
    more = [] if way.parts.preprocessing is None else ["--preprocessing", way.parts.preprocessing]
    card, seen = _command(
        folder, "fit", "--model", str(way.model), "--data", str(way.parts.places["fit"]),
        "--out", str(folder / "guard"), "--recipe", way.recipe, "--second", way.second,
        "--workers", "1", *more,
    )  # fmt: skip
    attacks = card["attacks"].values()
    return seen | {
        "gates": card["gates"],
        "accuracy": card["clean"]["accuracy"]["value"],
        "tried": sum(one["tried"] for one in attacks),
        "succeeded": sum(one["succeeded"] for one in attacks),
        "auroc": card["summary"]["mean_auroc"],
        "words": card.get("words", []),
        "second": (card.get("looks") or {}).get("second"),
    }


def _twin(way: Way, folder: Path) -> dict[str, Any]:
    """Return how far the twin's scores are from the model's, and on how many images they agree."""
    spec = read_guard(folder / "guard").manifest.input
    images = way.parts.read("judge").images[:TWINNED]
    production = load_production(way.model)
    twin = load_twin(way.model, spec, images=images)
    assert twin is not None  # only where none is asked for
    proto = onnx.ModelProto()
    proto.CopyFrom(production.proto)
    if production.logits not in {value.name for value in proto.graph.output}:
        proto.graph.output.append(onnx.ValueInfoProto(name=production.logits))
    session = open_session(proto, threads=1)
    rows = spec.batch or 4
    parts = [
        run_session(session, {spec.name: spec.to_tensor(images[i : i + rows])}, [production.logits])
        for i in range(0, len(images) - rows + 1, rows)
    ]
    wanted = np.concatenate([part[0] for part in parts]).astype(np.float32)
    got = np.concatenate(
        [twin.predict(images[i : i + rows]) for i in range(0, len(wanted), rows)]
    )[: len(wanted)]  # fmt: skip
    spread = float(np.median(wanted.max(axis=1) - wanted.mean(axis=1)))
    return {
        "apart": float(np.sqrt(np.square(got - wanted).mean())) / spread,
        "same": int((got.argmax(axis=1) == wanted.argmax(axis=1)).sum()),
        "of": len(wanted),
    }


def _serve(way: Way, folder: Path) -> dict[str, Any]:
    """Ask a server about tensors and files; compare its outputs with bare ONNX Runtime's bits."""
    images, files = way.parts.read("judge").images[:ASKED], _files(way)
    pair = Pair(model=way.model, guard=folder / "guard")
    with (
        served(pair, settings={"threads": 1}, patience_s=300) as server,
        Client(server.address, deadline_s=120) as client,
    ):
        spec = client.describe().input
        tensors = [spec.to_tensor(image[None]) for image in images]
        by_tensor = [client.inspect_tensor(tensor, outputs=True) for tensor in tensors]
        by_file = [client.inspect_encoded([file], outputs=True) for file in files]
        together = client.inspect_encoded(files)
        usage = server.usage()
        odd = [
            line["message"] for line in server.messages() if line["level"] not in {"INFO", "DEBUG"}
        ]
    session = open_session(onnx.load(way.model), threads=1)
    names = [value.name for value in session.get_outputs()]
    plain = [run_session(session, {spec.name: tensor}, names) for tensor in tensors]
    return {
        "asked": len(images),
        "same_bits": sum(
            all(map(_same, wanted, [one.outputs[name] for name in names]))
            for wanted, one in zip(plain, by_tensor, strict=True)
        ),
        "same_bits_of_files": sum(
            all(map(_same, wanted, [one.outputs[name] for name in names]))
            for wanted, one in zip(plain, by_file, strict=True)
        ),
        "predictions": together.prediction.tolist(),
        "scores": together.score.tolist(),
        "flags": together.is_adversarial.tolist(),
        "rss_mb": round(usage.rss_mib),
        "odd": odd,
    }


def _files(way: Way) -> list[bytes]:
    """Return the first images to judge as files: as they lie there, or as PNG."""
    place = way.parts.places["judge"]
    if place.is_dir():
        return [Path(file).read_bytes() for file, _ in Folder(place).files[:ASKED]]
    found = []
    for image in way.parts.read("judge").images[:ASKED]:
        file = BytesIO()
        Image.fromarray(image).save(file, "png")
        found.append(file.getvalue())
    return found


def _evaluate(way: Way, folder: Path) -> dict[str, Any]:
    more = [part for name in way.attacks for part in ("--attack", name)]
    more += [part for name in way.harmless for part in ("--benign", name)]
    card, seen = _command(
        folder, "evaluate", "--model", str(way.model), "--guard", str(folder / "guard"),
        "--data", str(way.parts.places["judge"]), "--out", str(folder / "evaluation"),
        "--limit", str(way.limit), "--matrix-rows", "0", "--workers", "1", *more,
    )  # fmt: skip
    shown = [one["auroc"]["value"] for one in card["attacks"].values() if one.get("auroc")]
    looks = {
        how: one["mean_auroc"]
        for how, one in ((card.get("looks") or {}).get("summary") or {}).items()
    }
    return seen | {"auroc": float(np.mean(shown)) if shown else None, "looks": looks}


def _score(way: Way, folder: Path) -> dict[str, Any]:
    """Score files offline; the first must be what the server said of them."""
    out = folder / "verdicts.npz"
    told, seen = _command(
        folder, "score", "--model", str(way.model), "--guard", str(folder / "guard"),
        "--data", str(way.parts.places["judge"]), "--out", str(out),
    )  # fmt: skip
    asked = json.loads((folder / "way.json").read_text())["serve"]
    with np.load(out) as columns:
        count = asked["asked"]
        return seen | told | {
            "as_served": int(
                (
                    (columns["prediction"][:count] == asked["predictions"])
                    & (columns["is_adversarial"][:count] == asked["flags"])
                    & np.isclose(columns["score"][:count], asked["scores"], atol=1e-3)
                ).sum()
            )
        }  # fmt: skip


def _same(a: NDArray[Any], b: NDArray[Any]) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
