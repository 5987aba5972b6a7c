"""From a model and labelled images to a guard."""

import json
from pathlib import Path
from typing import Annotated

import typer

from reluguard.commands.console import show_progress
from reluguard.commands.options import Data, Json, Model, Seed, Threads

__all__ = ["fit"]


def fit(
    *,
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option("--out", help="The guard's folder to write.")],
    recipe: Annotated[
        str, typer.Option("--recipe", help="What to attack with: default, quick or digits.")
    ] = "default",
    twin: Annotated[
        str,
        typer.Option(
            "--twin",
            help="Where gradients come from: auto converts the ONNX file, package.module:function "
            "gives your torch module, none leaves only black-box attacks.",
        ),
    ] = "auto",
    output: Annotated[
        str | None, typer.Option("--output", help="The model output with the class scores.")
    ] = None,
    scale: Annotated[
        float | None,
        typer.Option("--scale", help="Factor from pixels to the model's range. [default: 1/255]"),
    ] = None,
    mean: Annotated[
        str, typer.Option("--mean", help="Subtracted after scaling: one value or one per channel.")
    ] = "0",
    std: Annotated[
        str, typer.Option("--std", help="Divided by after that: one value or one per channel.")
    ] = "1",
    bgr: Annotated[bool, typer.Option("--bgr", help="The model wants blue first.")] = False,
    target_fpr: Annotated[
        float, typer.Option("--target-fpr", help="Share of clean images that may be flagged.")
    ] = 0.05,
    prevalence: Annotated[
        float, typer.Option("--prevalence", help="Share of attacks the likelihood assumes.")
    ] = 0.5,
    seed: Seed = 0,
    threads: Threads = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Processes. [default: the usable cores]")
    ] = None,
    max_overhead: Annotated[
        float | None,
        typer.Option(
            "--max-overhead",
            help="Read only as many taps as keep guarded / plain time under this, like 1.05.",
        ),
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option("--work", help="Where harvested shards are kept. [default: OUT.work]"),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            "--engine",
            help="Who attacks and reads: local, processes of this machine, or ray, actors of a Ray "
            "cluster (RAY_ADDRESS; every node sees the same paths).",
        ),
    ] = "local",
    as_json: Json = False,
) -> None:
    """Fit a guard: attack clean images, read which ReLUs fire, fit and calibrate a head."""
    from reluguard.training.data.case import Preprocessing
    from reluguard.training.evaluation.report_card import print_card
    from reluguard.training.fit import FitSettings, fit_guard

    preprocessing = Preprocessing(scale=scale, mean=_floats(mean), std=_floats(std), bgr=bgr)
    settings = FitSettings(
        model=model,
        data=data,
        out=out,
        recipe=recipe,
        twin=twin,
        output=output,
        preprocessing=preprocessing,
        fpr=target_fpr,
        prevalence=prevalence,
        seed=seed,
        threads=threads,
        workers=workers,
        max_overhead=max_overhead,
        work=work,
        engine=engine,
    )
    with show_progress(quiet=as_json) as progress:
        artifact = fit_guard(settings, progress)
    if as_json:
        document = {"guard": str(out), "digest": artifact.digest, **artifact.manifest.metrics}
        typer.echo(json.dumps(document))
    else:
        print_card(artifact.manifest.metrics)
        typer.echo(f"\nguard: {out}\nreport: {out / 'report.html'}")


def _floats(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"expected numbers with commas between, got {text!r}") from error
