"""A guard judged on images it never saw."""

import json
from pathlib import Path
from typing import Annotated

import typer

from reluguard.commands.console import show_progress
from reluguard.commands.options import (
    Classes,
    Data,
    GuardFolder,
    GuardModel,
    Json,
    SecondModel,
    Seed,
    Threads,
    Twin,
    Weights,
    Workers,
    onnx_file,
)

__all__ = ["evaluate"]


def evaluate(
    *,
    model: GuardModel = None,
    guard: GuardFolder,
    data: Data,
    out: Annotated[
        Path, typer.Option("--out", help="The folder for evaluation.json and evaluation.html.")
    ],
    attack: Annotated[
        list[str] | None,
        typer.Option(
            "--attack",
            help="An attack to judge on, by name or as module:Class of yours; may be given"
            " again. [default: two dozen of each kind]",
        ),
    ] = None,
    benign: Annotated[
        list[str] | None,
        typer.Option(
            "--benign",
            help="A harmless change to judge on, by name or as module:Class of yours; may be given"
            " again. [default: all]",
        ),
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(
            "--work",
            help="The folder that keeps attacked images, so that a killed run goes on. "
            "[default: OUT/work]",
        ),
    ] = None,
    fit_work: Annotated[
        Path | None,
        typer.Option(
            "--fit-work",
            help="The work folder of the guard's fit: baselines are fitted from it. "
            "[default: GUARD.work]",
        ),
    ] = None,
    twin: Twin = "auto",
    surrogate: Annotated[
        list[Path] | None,
        typer.Option(
            "--surrogate",
            help="The ONNX file of another model of the same task; attacks on it are tried"
            " on yours, and how it doubts the answers is compared.",
        ),
    ] = None,
    second_model: SecondModel = None,
    trained_on: Annotated[
        str | None,
        typer.Option(
            "--trained-on",
            help="Images that the model was trained on: the command refuses to judge on "
            "any of them.",
        ),
    ] = None,
    leave_out: Annotated[
        str,
        typer.Option(
            "--leave-out",
            help="Heads are fitted without one family, or one attack, at a time, to see "
            "how they do on what they never saw.",
        ),
    ] = "family",
    matrix_rows: Annotated[
        int | None,
        typer.Option(
            "--matrix-rows",
            help="How many images of each group those heads are fitted on; 0 fits no such heads.",
        ),
    ] = 1500,
    composed: Annotated[
        bool,
        typer.Option(help="Attacked images are judged after a harmless change too."),
    ] = True,
    limit: Annotated[
        int | None,
        typer.Option("--limit", help="Judge on so many unseen images at most. [default: all]"),
    ] = None,
    classes: Classes = None,
    weights: Weights = None,
    seed: Seed = 0,
    threads: Threads = None,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Judge a guard on images it never saw: report card, baselines, seen against unseen."""
    from reluguard.training.evaluate import evaluate as run_evaluation
    from reluguard.training.evaluation.leave_out import left_out_named
    from reluguard.training.pages.evaluation_text import print_evaluation

    file = onnx_file(model, guard, weights)
    with show_progress() as progress:
        found = run_evaluation(
            file,
            guard,
            data,
            out=out,
            attacks=attack,
            benign=benign,
            work=work,
            fit_work=fit_work,
            twin=twin,
            leave_out=left_out_named(leave_out),
            matrix_rows=matrix_rows,
            composed=composed,
            surrogates=surrogate or (),
            second_model=second_model,
            trained_on=trained_on,
            classes=classes,
            seed=seed,
            limit=limit,
            threads=threads,
            workers=workers,
            progress=progress,
        )
    if as_json:
        typer.echo(json.dumps(found.to_json()))
    else:
        print_evaluation(found)
        typer.echo(f"\nreport: {out / 'evaluation.html'}")
