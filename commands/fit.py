"""From a model and labelled images to a guard."""

import json
from pathlib import Path
from typing import Annotated

import typer

from reluguard.commands.console import show_progress
from reluguard.commands.options import (
    AnyModel,
    Bgr,
    Classes,
    Data,
    InputShape,
    Json,
    Mean,
    Output,
    Pixels,
    Scale,
    Seed,
    Std,
    Threads,
    Twin,
    Weights,
    Workers,
    preprocessing_of,
    shape_given,
)

__all__ = ["fit"]


def fit(
    *,
    model: AnyModel,
    data: Data,
    out: Annotated[Path, typer.Option("--out", help="The folder to write the guard to.")],
    recipe: Annotated[
        str,
        typer.Option(
            "--recipe",
            help="What to attack with: default (thorough), quick (minutes), digits (tiny "
            "images), one that another package brings, or yours as module:name or file.py:name.",
        ),
    ] = "default",
    twin: Twin = "auto",
    second: Annotated[
        str,
        typer.Option(
            "--second",
            help="Who looks again at what looks suspicious: auto, the model at a view that it "
            "agrees with itself on; mirror, shift, smaller or blur, that view; FILE.onnx, another "
            "network of the same classes and input; none.",
        ),
    ] = "auto",
    output: Output = None,
    scale: Scale = None,
    mean: Mean = None,
    std: Std = None,
    bgr: Bgr = False,
    preprocessing: Pixels = None,
    preprocessing_as_given: Annotated[
        bool,
        typer.Option(
            "--preprocessing-as-given",
            help="Go on although the model answers clearly more images right with another "
            "preprocessing.",
        ),
    ] = False,
    classes: Classes = None,
    weights: Weights = None,
    input_shape: InputShape = None,
    target_fpr: Annotated[
        float, typer.Option("--target-fpr", help="The share of clean images that may be flagged.")
    ] = 0.05,
    per_class: Annotated[
        bool,
        typer.Option(
            "--per-class",
            help="Keep that share within each class that the model answers, where it has enough "
            "calibration images: 99 for .05.",
        ),
    ] = False,
    prevalence: Annotated[
        float,
        typer.Option(
            "--prevalence", help="The share of attacks among requests that the likelihood assumes."
        ),
    ] = 0.5,
    seed: Seed = 0,
    threads: Threads = None,
    workers: Workers = None,
    max_overhead: Annotated[
        float | None,
        typer.Option(
            "--max-overhead",
            help="Read only as many taps and levels as keep guarded / plain time under this, like "
            "1.05; 0 reads all. [default: as few as lose next to nothing]",
        ),
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(
            "--work",
            help="The folder that keeps attacked images, so that a killed fit goes on. "
            "[default: OUT.work]",
        ),
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
    from reluguard.training.evaluation.report_card import ReportCard
    from reluguard.training.fit import fit as run_fit
    from reluguard.training.pages.report_card_text import print_card

    with show_progress() as progress:
        artifact = run_fit(
            model,
            data,
            out=out,
            recipe=recipe,
            twin=twin,
            second=second,
            output=output,
            preprocessing=preprocessing_of(preprocessing, scale, mean, std, bgr=bgr),
            preprocessing_as_given=preprocessing_as_given,
            classes=classes,
            weights=weights,
            input_shape=shape_given(input_shape),
            target_fpr=target_fpr,
            per_class=per_class,
            prevalence=prevalence,
            seed=seed,
            threads=threads,
            workers=workers,
            max_overhead=max_overhead,
            work=work,
            engine=engine,
            progress=progress,
        ).artifact
    if as_json:
        document = {"guard": str(out), "digest": artifact.digest, **artifact.manifest.metrics}
        typer.echo(json.dumps(document))
    else:
        print_card(ReportCard.from_json(artifact.manifest.metrics))
        typer.echo(f"\nguard: {out}\nreport: {out / 'report.html'}")
        if artifact.manifest.provenance.get("exported"):
            typer.echo(f"model: {out}.onnx, exported for it")
