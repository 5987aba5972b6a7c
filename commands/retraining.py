"""A guard fitted on new attacks beside all old ones."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from reluguard.commands.console import show_progress
from reluguard.commands.options import (
    Classes,
    GuardFolder,
    GuardModel,
    Json,
    SecondModel,
    Seed,
    Threads,
    Weights,
    looks_given,
    onnx_file,
)

__all__ = ["retrain"]


def retrain(
    *,
    guard: GuardFolder,
    model: GuardModel = None,
    out: Annotated[Path, typer.Option("--out", help="The folder to write the new guard to.")],
    new: Annotated[
        list[Path] | None,
        typer.Option(
            "--new",
            help="An .npz of attacked `images` with their true `labels`, a folder of such, a "
            "folder of attacked images per true class, a folder of attacked pictures, or one of "
            "labelled captures; repeatable.",
        ),
    ] = None,
    attack: Annotated[
        list[str] | None,
        typer.Option(
            "--attack",
            help="An attack to run on the original images, by name or as module:Class of "
            "yours; may be given again.",
        ),
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(
            "--work", help="The work folder of the first fit. [default: what the guard names]"
        ),
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="The images of the first fit, if they moved.")
    ] = None,
    classes: Classes = None,
    weights: Weights = None,
    share: Annotated[
        float,
        typer.Option(
            "--share", help="With --refit: the share of all attacks' weight that new ones get."
        ),
    ] = 0.2,
    sources: Annotated[
        int, typer.Option("--sources", help="Fit on so many images of each --attack at most.")
    ] = 400,
    most_per_source: Annotated[
        int,
        typer.Option(
            "--most-per-source",
            min=1,
            help="Take so many captures of one caller under one label at most.",
        ),
    ] = 250,
    margin: Annotated[
        float,
        typer.Option(
            "--margin", help="How much AUROC an old attack may lose before the gate refuses."
        ),
    ] = 0.01,
    most_contradicted: Annotated[
        float,
        typer.Option(
            "--most-contradicted",
            min=0,
            max=1,
            help="The share of labels that may contradict the rest before the gate refuses.",
        ),
    ] = 0.25,
    refit: Annotated[
        bool,
        typer.Option(
            "--refit",
            help="Fit the whole head anew; otherwise each new attack gets a unit of its own.",
        ),
    ] = False,
    looks: Annotated[
        str | None,
        typer.Option(
            "--looks",
            help="first: make a guard that looks once of one that looks twice. [as the old guard]",
        ),
    ] = None,
    second_model: SecondModel = None,
    seed: Seed = 0,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Fit a guard on new attacks beside all old ones and judge it: exit code 1 if refused."""
    from reluguard.detector.metrics import GateLimits
    from reluguard.training.pages.gate_text import print_gate
    from reluguard.training.retrain import retrain as run_retrain

    file = onnx_file(model, guard, weights)
    with show_progress() as progress:
        found = run_retrain(
            guard,
            file,
            new or [],
            out,
            attacks=attack or [],
            work=work,
            data=data,
            classes=classes,
            share=share,
            sources=sources,
            most_per_source=most_per_source,
            refit=refit,
            looks=looks_given(looks),
            second_model=second_model,
            limits=GateLimits(auroc=margin, contradicted=most_contradicted),
            seed=seed,
            threads=threads,
            progress=progress,
        )
    if as_json:
        document = {
            "guard": str(out),
            "digest": found.guard.digest,
            "gate": found.gate.to_json(),
            "added": [one.to_json() for one in found.added],
        }
        typer.echo(json.dumps(document))
    else:
        print_gate(found.gate)
        typer.echo(f"guard: {out}")
    sys.exit(0 if found.gate.passed else 1)
