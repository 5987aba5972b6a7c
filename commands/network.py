"""The network itself: looked into, explained on one image, fine-tuned."""

import json
from pathlib import Path
from typing import Annotated

import typer

from reluguard.commands.console import show_progress
from reluguard.commands.options import (
    Bgr,
    Classes,
    Data,
    EitherModel,
    GuardFolder,
    GuardModel,
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
    onnx_file,
    preprocessing_of,
    shape_given,
)

__all__ = ["analyze", "explain", "harden"]


def analyze(
    *,
    model: EitherModel = None,
    data: Data,
    out: Annotated[Path, typer.Option("--out", help="The folder to write the report to.")],
    guard: Annotated[
        Path | None,
        typer.Option(
            "--guard",
            help="A guard, to see its scores on the same images; how pixels go into the model, it "
            "says too.",
        ),
    ] = None,
    other: Annotated[
        Path | None,
        typer.Option("--other", help="Another ONNX model, to compare its layers with this one's."),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", help="Read so many images at most.")] = 2000,
    pairwise: Annotated[
        int, typer.Option("--pairwise", help="Compare so many images with one another at most.")
    ] = 1000,
    attack: Annotated[
        list[str] | None,
        typer.Option(
            "--attack",
            help="By name or module:Class; may be repeated, the first is the one every study looks "
            "at. [pgd-linf-8, pgd-linf-2, fgsm-linf-8, fgsm-linf-2]",
        ),
    ] = None,
    twin: Twin = "auto",
    papers: Annotated[
        bool,
        typer.Option(
            "--papers",
            help="Also train the networks that the source papers' claims need; they are kept in "
            "OUT/networks.",
        ),
    ] = False,
    train: Annotated[
        str | None,
        typer.Option(
            "--train",
            help="Labelled images to train these networks on. [default: those of --data that no "
            "study attacks]",
        ),
    ] = None,
    steps: Annotated[
        int,
        typer.Option("--steps", help="Train each of them for so many steps of 64 images."),
    ] = 400,
    output: Output = None,
    scale: Scale = None,
    mean: Mean = None,
    std: Std = None,
    bgr: Bgr = False,
    preprocessing: Pixels = None,
    classes: Classes = None,
    weights: Weights = None,
    input_shape: InputShape = None,
    seed: Seed = 0,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Look into the network: RDMs, Fiedler cuts, maps, graphs and CKA, clean against attacked."""
    from reluguard.training.analyze import ATTACKS
    from reluguard.training.analyze import analyze as run_analysis
    from reluguard.training.pages.analysis.text import print_claims

    file = model if guard is None else onnx_file(model, guard, weights)
    with show_progress() as progress:
        found = run_analysis(
            file,
            data,
            out=out,
            guard=guard,
            other=other,
            limit=limit,
            pairwise=pairwise,
            attacks=attack or ATTACKS,
            twin=twin,
            papers=papers,
            train=train,
            steps=steps,
            output=output,
            preprocessing=preprocessing_of(preprocessing, scale, mean, std, bgr=bgr),
            classes=classes,
            weights=weights if guard is None else None,
            input_shape=shape_given(input_shape),
            seed=seed,
            threads=threads,
            progress=progress,
        )
    if as_json:
        typer.echo(json.dumps(found.to_json()))
    else:
        print_claims(found)
        typer.echo(f"\nreport: {out / 'report.html'}")


def explain(
    image: Annotated[
        Path, typer.Argument(help="The picture to explain: a JPEG, PNG or WebP file.")
    ],
    *,
    model: GuardModel = None,
    guard: GuardFolder,
    data: Data,
    out: Annotated[
        Path, typer.Option("--out", help="The picture to draw: a .png, .svg or .pdf file.")
    ] = Path("explanation.png"),
    classes: Classes = None,
    weights: Weights = None,
    threads: Threads = None,
) -> None:
    """Draw what led to the verdict on one image: taps, channels and nearest clean neighbours."""
    from reluguard.training.explain import explain as draw

    file = onnx_file(model, guard, weights)
    found = draw(file, guard, data, image, out, classes=classes, threads=threads)
    word = "adversarial" if found.verdict.is_adversarial else "clean"
    typer.echo(
        f"class {found.verdict.prediction}, {word}: likelihood {found.verdict.likelihood:.3f}, "
        f"p-value {found.verdict.p_value:.4f}; picture: {out}"
    )


def harden(
    *,
    model: EitherModel = None,
    data: Data,
    out: Annotated[Path, typer.Option("--out", help="The folder to write the hardened model to.")],
    held_out: Annotated[
        str | None,
        typer.Option(
            "--held-out", help="Labelled images to measure on. [default: a fifth of --data]"
        ),
    ] = None,
    guard: Annotated[
        Path | None,
        typer.Option("--guard", help="A guard of the model, which says how pixels go in."),
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", help="Train on so many images at most.")
    ] = 10_000,
    epochs: Annotated[
        int, typer.Option("--epochs", min=1, help="How often each image is trained on.")
    ] = 30,
    budget: Annotated[
        float,
        typer.Option(
            "--budget",
            help="The largest change of a pixel that it is trained against, in steps of 1/255. "
            "More makes it more robust and less right.",
        ),
    ] = 2.0,
    output: Output = None,
    scale: Scale = None,
    mean: Mean = None,
    std: Std = None,
    bgr: Bgr = False,
    preprocessing: Pixels = None,
    classes: Classes = None,
    weights: Weights = None,
    input_shape: InputShape = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Fine-tune the model against attacks; writes another ONNX file, which can look again."""
    from reluguard.training.harden import HardenSettings
    from reluguard.training.harden import harden as run_harden

    kept = onnx_file(None, guard) if model is None and guard is not None else model
    with show_progress() as progress:
        report = run_harden(
            kept,
            data,
            out=out,
            held_out=held_out,
            guard=guard,
            limit=limit,
            settings=HardenSettings(epochs=epochs, budget=budget, seed=seed),
            output=output,
            preprocessing=preprocessing_of(preprocessing, scale, mean, std, bgr=bgr),
            classes=classes,
            weights=weights,
            input_shape=shape_given(input_shape),
            progress=progress,
        ).to_json()
    if as_json:
        typer.echo(json.dumps(report))
        return
    lines = {
        "clean": "right on clean images",
        "robust": f"right under {report['attack']}",
        "consistency": "likeness of the last gate's codes before and after it",
    }
    for what, words in lines.items():
        before, after = report[f"{what}_before"]["value"], report[f"{what}_after"]["value"]
        typer.echo(f"{words}: {before:.3f}, now {after:.3f}")
    typer.echo(f"model: {out / 'model.onnx'}")
    if (out / "weights.pt").is_file():
        typer.echo(f"weights for torch: {out / 'weights.pt'}")
