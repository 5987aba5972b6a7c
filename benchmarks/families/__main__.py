"""Families of networks on the whole way: export, fit, serve, ask, evaluate, score. One row each.

    python -m benchmarks.families --out families [--family convnext_tiny] [--form "int8 QDQ"]
    python -m benchmarks.families --out photographs --photographs FOLDER
    python -m benchmarks.families --out mine --model M.onnx --photographs FOLDER

Networks of torchvision with random weights, whose last layer alone is fitted, see scikit-learn's
digits at 64 pixels, tinted, or photographs of yours, a folder per class, at 224 through resize and
crop. With `--model` a trained network of yours is taken instead, whose classes are these folders in
alphabetical order. Each goes the way in every form of numbers asked for, by the commands that
people use. What is printed: how many gates are read, how far the twin is from the network (root
mean square, as a share of the distance between classes) and on how many images both answer alike,
how many attacks succeeded of those tried, how well they are told in fitting and in evaluation (by
both looks where there are two), on how many images a server gives the very bits of bare ONNX
Runtime, for tensors and for files, and says what `score` says, the most memory a command took, and
the seconds of each step. A run that was stopped goes on: what the folder holds is taken.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.families.networks import FAMILIES, export, fitted
from benchmarks.families.pictures import PARTS, Parts, digits_in_parts, photographs_in_parts
from benchmarks.families.recipes import EVALUATED, HARMLESS
from benchmarks.families.way import Way, whole_way
from benchmarks.forms import FORMS
from reluguard.detector.model import load_production

CALIBRATING = 48  # images that integers are fitted to
DIGITS = {"train": 700, "fit": 320, "judge": 80}
PHOTOGRAPHS = {"train": 60, "fit": 100, "judge": 40}
SIDES = {"digits": 64, "photographs": 224}


@dataclass(frozen=True, slots=True)
class _Case:
    """A network in a form, and what it sees."""

    name: str
    form: str
    parts: Parts


def main() -> int:
    """Print a row per network and form; return 1 if one of them did not come to its end."""
    options = _options()
    rows = []
    for case in _cases(options):
        folder = options.out / f"{case.name} {case.form} {options.second}".replace(" ", "-")
        folder.mkdir(parents=True, exist_ok=True)
        plain = options.model or _built(case, options)
        model = folder / "model.onnx"
        if not model.exists():
            making = folder / "making.onnx"
            FORMS[case.form](plain, case.parts.tensor(PARTS[0])[:CALIBRATING], making)
            making.rename(model)
        way = Way(
            model=model,
            parts=case.parts,
            recipe=options.recipe,
            second=options.second,
            limit=options.limit,
            attacks=tuple(options.attack or EVALUATED),
            harmless=HARMLESS,
        )
        found = whole_way(way, folder, current=partial(_tell, f"{case.name} {case.form}"))
        rows.append(_row(f"{case.name} {case.form}", found))
        if "trouble" in found:
            _tell(case.name, found["trouble"])
    _print(rows)
    return int(any(row["trouble"] for row in rows))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of models and guards")
    parser.add_argument("--family", action="append", choices=list(FAMILIES))
    parser.add_argument("--form", action="append", choices=list(FORMS), help="[float32]")
    parser.add_argument("--current", action="store_true", help="by torch's current exporter")
    parser.add_argument("--model", type=Path, help="a trained network instead")
    parser.add_argument("--photographs", type=Path, help="a folder per class; digits without it")
    parser.add_argument("--preprocessing", default="torchvision", help="of photographs")
    parser.add_argument("--side", type=int, help="pixels [64 of digits, 224 of photographs]")
    parser.add_argument(
        "--images", type=int, help="to fit a guard on [320 digits, 100 photographs]"
    )
    parser.add_argument("--limit", type=int, default=40, help="images to judge on [40]")
    parser.add_argument("--recipe", help="[tiny for digits, few for photographs]")
    parser.add_argument("--second", default="auto", help="as fit takes it")
    parser.add_argument("--attack", action="append", help="to judge on")
    options = parser.parse_args()
    if options.model is not None and options.photographs is None:
        parser.error("expected --photographs beside --model")
    named = "tiny" if options.photographs is None else "few"
    options.recipe = options.recipe or f"benchmarks.families.recipes:{named}"
    size = None if options.model is None else load_production(options.model).image_size
    options.side = size[0] if size else options.side
    return options


def _cases(options: argparse.Namespace) -> Iterator[_Case]:
    names = [options.model.stem] if options.model else options.family or list(FAMILIES)
    for name in names:
        least = FAMILIES[name].least if name in FAMILIES else 0
        for form in options.form or ["float32"]:
            yield _Case(name, form, _parts(options, least))


def _parts(options: argparse.Namespace, least: int) -> Parts:
    seen = "digits" if options.photographs is None else "photographs"
    side = max(least, options.side or SIDES[seen])
    counts: dict[str, int] = dict(DIGITS if seen == "digits" else PHOTOGRAPHS)
    counts["fit"] = options.images or counts["fit"]
    folder = options.out / seen
    if options.photographs is None:
        return digits_in_parts(folder, side, counts)
    return photographs_in_parts(options.photographs, folder, side, counts, options.preprocessing)


def _built(case: _Case, options: argparse.Namespace) -> Path:
    """Return the network as it is exported, made where it is not there yet."""
    folder: Path = options.out / "models"
    path = folder / f"{case.name}{'-current' if options.current else ''}-{case.parts.side}.onnx"
    if not path.exists():
        _tell(case.name, "make the network")
        folder.mkdir(parents=True, exist_ok=True)
        network = fitted(case.name, *case.parts.taught(), ridge=case.parts.ridge)
        making = path.with_suffix(".making")
        export(network, case.parts.side, making, current=options.current).rename(path)
    return path


def _row(name: str, found: Mapping[str, Any]) -> dict[str, str]:
    """Return what is printed of a way, as far as it came."""
    fit, twin, serve = (found.get(step, {}) for step in ("fit", "twin", "serve"))
    evaluate, score = found.get("evaluate", {}), found.get("score", {})
    steps = {step: one for step, one in found.items() if step != "trouble"}
    odd = sum(len(one.get("odd", ())) for one in steps.values())
    looks = evaluate.get("looks") or {}
    asked = serve.get("asked")
    return {
        "network": name,
        "gates": f"{fit['gates']['read']}/{fit['gates']['found']}" if fit else "",
        "right": f"{fit['accuracy']:.2f}" if fit else "",
        "twin: off by, answers": f"{twin['apart']:.1e}, {twin['same']}/{twin['of']}"
        if twin
        else "",
        "second look": ((fit.get("second") or "none") if fit else ""),
        "succeeded": f"{fit['succeeded']}/{fit['tried']}" if fit else "",
        "AUROC at fit": _number(fit.get("auroc")),
        "judged: first, both": ", ".join(
            _number(looks.get(how)) for how in ("first", "suspicious", "always")
        )
        if looks
        else _number(evaluate.get("auroc")),
        "same bits: tensors, files": f"{serve['same_bits']}, {serve['same_bits_of_files']}/{asked}"
        if serve
        else "",
        "score as served": f"{score['as_served']}/{asked}" if score else "",
        "clean flagged": f"{score['flagged']}/{score['images']}" if score else "",
        "peak MB": str(max((one.get("peak_mb", 0) for one in steps.values()), default=0)),
        "odd lines": str(odd),
        "seconds": ", ".join(f"{step} {one['seconds']}" for step, one in steps.items()),
        "trouble": found.get("trouble", ""),
    }


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _print(rows: list[dict[str, str]]) -> None:
    print("| " + " | ".join(rows[0]) + " |")
    print("|" + "---|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(value or "-" for value in row.values()) + " |", flush=True)


def _tell(name: str, step: str) -> None:
    print(f"{name}: {step}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
