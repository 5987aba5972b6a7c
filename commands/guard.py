"""What is done with a fitted guard outside of a server: verdicts, one file, its price."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from reluguard.commands.console import show_progress
from reluguard.commands.options import (
    Classes,
    GuardFolder,
    GuardModel,
    Json,
    LooksWanted,
    Pictures,
    Provider,
    SecondModel,
    Threads,
    Weights,
    looks_given,
    onnx_file,
)

__all__ = ["bench", "export", "score"]


class _Table(StrEnum):
    CSV = "csv"
    JSONL = "jsonl"


def score(
    *,
    model: GuardModel = None,
    guard: GuardFolder,
    data: Pictures,
    out: Annotated[
        str,
        typer.Option(
            "--out",
            help="The file of verdicts to write, which ends in .npz, .csv, .jsonl or .parquet; - "
            "writes a table to standard output.",
        ),
    ],
    table: Annotated[
        _Table,
        typer.Option("--format", help="What kind of table --out - writes."),
    ] = _Table.CSV,
    classes: Classes = None,
    weights: Weights = None,
    looks: LooksWanted = None,
    second_model: SecondModel = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Write offline verdicts on images: the answer, score, likelihood, p-value and flag of each."""
    from reluguard.training.score import score as scored
    from reluguard.training.score import score_data, summary_of
    from reluguard.training.tables import as_bytes

    file = onnx_file(model, guard, weights)
    with show_progress() as progress:
        asked: dict[str, Any] = {
            "classes": classes,
            "looks": looks_given(looks),
            "second_model": second_model,
            "threads": threads,
            "progress": progress,
        }
        if out == "-":
            columns = scored(file, guard, data, **asked)
            summary = summary_of(columns)
        else:
            summary = score_data(file, guard, data, Path(out), **asked)
    if out == "-":
        typer.echo(as_bytes(columns, table).decode(), nl=False)
    if as_json and out != "-":
        typer.echo(json.dumps(summary))
    else:
        flagged = f"{summary['flagged']} of {summary['images']} images flagged"
        where = "standard output" if out == "-" else out
        told = f"{flagged} ({summary['flagged'] / summary['images']:.2%}), written to {where}"
        typer.echo(told, err=out == "-")


def export(
    *,
    model: GuardModel = None,
    guard: GuardFolder,
    out: Annotated[Path, typer.Option("--out", help="The guarded ONNX file to write.")],
    target_fpr: Annotated[
        float | None,
        typer.Option(
            "--target-fpr",
            help="The share of clean images that reluguard_is_adversarial flags. [default:"
            " the guard's own]",
        ),
    ] = None,
    weights: Weights = None,
    looks: LooksWanted = None,
    second_model: SecondModel = None,
) -> None:
    """Write one self-contained guarded ONNX file, for any ONNX runtime."""
    from reluguard.detector.artifact import check_out, write_file
    from reluguard.detector.runtime import Guard

    file = onnx_file(model, guard, weights)
    check_out(out, file, guard, second_model)
    opened = Guard.open(
        file,
        guard,
        fpr=target_fpr,
        looks=looks_given(looks),
        second_model=second_model,
    )
    exported = opened.exported()
    write_file(out, exported.SerializeToString())
    names = ", ".join(value.name for value in exported.graph.output)
    typer.echo(f"{out}: outputs {names}")


def bench(
    *,
    model: GuardModel = None,
    guard: GuardFolder,
    challenger: Annotated[
        Path | None,
        typer.Option("--challenger", help="Time it with this second guard in shadow too."),
    ] = None,
    batch: Annotated[
        list[int] | None,
        typer.Option(
            "--batch", min=1, help="A batch size to time; may be given again. [default: 1, 8, 32]"
        ),
    ] = None,
    rounds: Annotated[
        int,
        typer.Option(
            "--rounds", min=1, help="How many pairs of runs are timed for each batch size."
        ),
    ] = 200,
    weights: Weights = None,
    looks: LooksWanted = None,
    second_model: SecondModel = None,
    threads: Annotated[
        int, typer.Option("--threads", min=1, help="How many threads a run has.")
    ] = 1,
    provider: Provider = None,
    as_json: Json = False,
) -> None:
    """Time the guarded model against the plain one, run by run in turn."""
    from reluguard.detector.bench import bench_guard

    result = bench_guard(
        onnx_file(model, guard, weights),
        guard,
        batches=batch or [1, 8, 32],
        rounds=rounds,
        threads=threads,
        providers=provider,
        challenger=challenger,
        looks=looks_given(looks),
        second_model=second_model,
    )
    if as_json:
        typer.echo(json.dumps(result))
        return
    if told := result.get("looks"):
        share = f"{told['clean_looked_again']:.1%} of clean images looked at again"
        typer.echo(f"second look: {told['second']}, {told['when']}, {share}")
    for row in result["batches"]:
        low, high = row["overhead_quartiles"]
        shadowed = row.get("challenger_overhead_p50")
        more = f", with challenger {shadowed:.3f} of that" if shadowed else ""
        typer.echo(
            f"batch {row['batch']:>3}: plain {row['plain_p50_s'] * 1e3:8.3f} ms, guarded "
            f"{row['guarded_p50_s'] * 1e3:8.3f} ms, ratio {row['overhead_p50']:.3f} "
            f"[{low:.3f}, {high:.3f}]{more}"
        )
        if cost := row.get("looks"):
            typer.echo(
                f"      clean traffic: first look {cost['first_overhead_mean']:.3f} mean, "
                f"{cost['first_overhead_p99']:.3f} p99; both looks "
                f"{cost['both_overhead_mean']:.3f} mean, {cost['both_overhead_p99']:.3f} p99"
            )
