"""reluguard: how likely is this image an adversarial example? Read from which ReLUs fired.

The public names, and the command `reluguard`. Everything is loaded when it is used: importing this
module is free, and serving never imports torch.
"""

import contextlib
import importlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from detector.dropin import GuardedSession
    from detector.errors import DetectorError
    from detector.runtime import Guard
    from detector.shelf import Change
    from detector.verdict import Verdict, Verdicts
    from service.client import AsyncClient, Client
    from training.guarded_module import GuardedModule
    from training.progress import Progress

__all__ = [
    "AsyncClient",
    "Client",
    "DetectorError",
    "Guard",
    "GuardedModule",
    "GuardedSession",
    "Verdict",
    "Verdicts",
    "main",
]

_HOMES = {
    "AsyncClient": "service.client",
    "Client": "service.client",
    "DetectorError": "detector.errors",
    "Guard": "detector.runtime",
    "GuardedModule": "training.guarded_module",
    "GuardedSession": "detector.dropin",
    "Verdict": "detector.verdict",
    "Verdicts": "detector.verdict",
}


INTERRUPTED = 130  # what typer makes of Ctrl-C


def __getattr__(name: str) -> Any:
    """Load a public name when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'reluguard' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


app = typer.Typer(
    name="reluguard",
    help="Tells, per request and in the same forward pass, how likely an image is adversarial.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(*, wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(version("reluguard"))
        raise typer.Exit


@app.callback()
def _options(
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=lambda wanted: _print_version(wanted=wanted),
            is_eager=True,
            help="Print the version.",
        ),
    ] = False,
) -> None:
    """Tells, per request and in the same forward pass, how likely an image is adversarial."""
    del version


Model = Annotated[Path, typer.Option("--model", help="The production model, an ONNX file.")]
GuardFolder = Annotated[Path, typer.Option("--guard", help="The guard's folder.")]
Data = Annotated[
    str,
    typer.Option(
        "--data",
        help="Labelled images: an .npz with `images` uint8 (N, H, W, C) and `labels`, a folder "
        "per class, or torchvision:NAME:ROOT.",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option("--threads", min=1, help="Threads per run; by default the usable cores."),
]
Provider = Annotated[
    list[str] | None,
    typer.Option(
        "--provider",
        help="ONNX Runtime's execution provider, like CUDAExecutionProvider; may be repeated, "
        "first choice first. [CPUExecutionProvider]",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Of every random choice.")]


@app.command()
def demo(
    *,
    as_json: Json = False,
    out: Annotated[Path, typer.Option("--out", help="Where pictures and files go.")] = Path(
        "out/demo"
    ),
    seed: Seed = 0,
) -> None:
    """Run the whole main job on handwritten digits: train, attack, fit, serve, ask."""
    from training.demo import print_demo, run_demo

    with _progress(quiet=as_json) as progress:
        result = run_demo(out, _ask_server, seed=seed, progress=progress)
    if as_json:
        typer.echo(json.dumps(result.summary))
    else:
        print_demo(result)


def _ask_server(
    guard: "Guard", batches: "Sequence[NDArray[np.uint8]]"
) -> "tuple[list[Verdicts], str]":
    """Serve a guard on free ports, ask it by gRPC, and return verdicts and the metrics page."""
    import urllib.request

    from service.client import Client
    from service.server import running

    with running(guard) as server, Client(server.address) as client:
        verdicts = [client.inspect(images) for images in batches]
        url = f"http://{server.metrics_address}/metrics"
        with urllib.request.urlopen(url, timeout=10) as reply:
            return verdicts, reply.read().decode()


@app.command()
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
    from training.case import Preprocessing
    from training.pipeline import FitSettings, fit_guard
    from training.report import print_card

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
    with _progress(quiet=as_json) as progress:
        artifact = fit_guard(settings, progress)
    if as_json:
        document = {"guard": str(out), "digest": artifact.digest, **artifact.manifest.metrics}
        typer.echo(json.dumps(document))
    else:
        print_card(artifact.manifest.metrics)
        typer.echo(f"\nguard: {out}\nreport: {out / 'report.html'}")


@app.command()
def score(
    *,
    model: Model,
    guard: GuardFolder,
    data: Data,
    out: Annotated[Path, typer.Option("--out", help="The .npz file of verdicts to write.")],
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Write offline verdicts: prediction, score, likelihood, p_value, is_adversarial, evidence."""
    from training.score import score_data

    with _progress(quiet=as_json) as progress:
        summary = score_data(model, guard, data, out, threads=threads, progress=progress)
    if as_json:
        typer.echo(json.dumps(summary))
    else:
        flagged = f"{summary['flagged']} of {summary['images']} images flagged"
        typer.echo(f"{flagged} ({summary['flagged'] / summary['images']:.2%}), written to {out}")


@app.command()
def evaluate(
    *,
    model: Model,
    guard: GuardFolder,
    data: Data,
    out: Annotated[
        Path, typer.Option("--out", help="Folder for evaluation.json and evaluation.html.")
    ],
    attack: Annotated[
        list[str] | None,
        typer.Option(
            "--attack", help="By name or module:Class; may be repeated. [a list of 21 of each kind]"
        ),
    ] = None,
    benign: Annotated[
        list[str] | None,
        typer.Option("--benign", help="Harmless change by name; may be repeated. [all]"),
    ] = None,
    work: Annotated[
        Path | None, typer.Option("--work", help="Where shards are kept. [default: OUT/work]")
    ] = None,
    fit_work: Annotated[
        Path | None,
        typer.Option(
            "--fit-work",
            help="The work folder of the guard's fit: baselines are fitted from it. "
            "[default: GUARD.work]",
        ),
    ] = None,
    twin: Annotated[
        str, typer.Option("--twin", help="auto, package.module:function or none, as in fit.")
    ] = "auto",
    surrogate: Annotated[
        list[Path] | None,
        typer.Option(
            "--surrogate", help="ONNX file of another model of the task, whose attacks are tried."
        ),
    ] = None,
    trained_on: Annotated[
        str | None,
        typer.Option(
            "--trained-on", help="Images the model was trained on: refuses to judge on any of them."
        ),
    ] = None,
    leave_out: Annotated[
        str, typer.Option("--leave-out", help="family or attack: what heads are fitted without.")
    ] = "family",
    matrix_rows: Annotated[
        int | None,
        typer.Option(
            "--matrix-rows",
            help="Rows of each group those heads are fitted on; 0 for no such heads.",
        ),
    ] = 1500,
    limit: Annotated[
        int | None, typer.Option("--limit", help="Unseen images at most. [default: all]")
    ] = None,
    seed: Seed = 0,
    threads: Threads = None,
    workers: Annotated[
        int | None, typer.Option("--workers", help="Processes. [default: the usable cores]")
    ] = None,
    as_json: Json = False,
) -> None:
    """Judge a guard on images it never saw: report card, baselines, seen against unseen."""
    from training.evaluate import evaluate as run_evaluation
    from training.evaluation_text import print_evaluation
    from training.leave_out import left_out_named

    with _progress(quiet=as_json) as progress:
        card = run_evaluation(
            model,
            guard,
            data,
            out,
            attacks=attack,
            benign=benign,
            work=work,
            fit_work=fit_work,
            twin=twin,
            left_out=left_out_named(leave_out),
            matrix_rows=matrix_rows,
            surrogates=surrogate or (),
            trained_on=trained_on,
            seed=seed,
            limit=limit,
            threads=threads,
            workers=workers,
            progress=progress,
        )
    if as_json:
        typer.echo(json.dumps(card))
    else:
        print_evaluation(card)
        typer.echo(f"\nreport: {out / 'evaluation.html'}")


@app.command()
def redteam(
    *,
    model: Model,
    guard: GuardFolder,
    data: Data,
    out: Annotated[
        Path, typer.Option("--out", help="Folder for red_team.json, red_team.html, evasions.npz.")
    ],
    budget: Annotated[
        list[float] | None,
        typer.Option("--budget", help="Linf, in 8-bit steps; may be repeated. [2.55, 4, 8]"),
    ] = None,
    standard: Annotated[
        bool,
        typer.Option(
            "--standard",
            help="1,000 steps and 5 restarts, later attacks on those that are left. Takes hours, "
            "and goes on where it was stopped.",
        ),
    ] = False,
    steps: Annotated[
        int | None, typer.Option("--steps", help="Of each run of an attack. [100]")
    ] = None,
    restarts: Annotated[
        int | None, typer.Option("--restarts", help="Runs of each attack. [2]")
    ] = None,
    queries: Annotated[
        int, typer.Option("--queries", help="Questions of the black box per image.")
    ] = 1000,
    limit: Annotated[int, typer.Option("--limit", help="Images to attack at most.")] = 100,
    ladders: Annotated[
        bool,
        typer.Option("--ladders/--no-ladders", help="Climb to the smallest budget of each image."),
    ] = True,
    server: Annotated[
        str, typer.Option("--server", help="A running server that the black box asks, host:port.")
    ] = "",
    token: Annotated[
        str, typer.Option("--token", envvar="RELUGUARD_TOKEN", help="For that server.")
    ] = "",
    publish: Annotated[
        bool,
        typer.Option("--publish", help="Write the figures into the guard's manifest and report."),
    ] = False,
    key: Annotated[
        Path | None,
        typer.Option("--key", help="PEM, an Ed25519 private key: signs what was published."),
    ] = None,
    seed: Seed = 0,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Attack your own guard with full knowledge of it, and say how often that gets past."""
    from dataclasses import replace

    from training import redteam as red
    from training.publication import publish as publish_figures
    from training.red_text import print_red_team

    effort = red.STANDARD if standard else red.Effort()
    with _progress(quiet=as_json) as progress, _asking(server, token, guard) as ask:
        card = red.redteam(
            model,
            guard,
            data,
            out,
            budgets=budget or red.BUDGETS,
            effort=replace(
                effort,
                steps=effort.steps if steps is None else steps,
                restarts=effort.restarts if restarts is None else restarts,
                queries=queries,
            ),
            ladders=red.LADDERS if ladders else {},
            seed=seed,
            limit=limit,
            threads=threads,
            ask=ask,
            told=f"the server at {server}" if server else red.IN_PROCESS,
            progress=progress,
        )
    if publish:
        publish_figures(guard, card, key=key)
    if as_json:
        typer.echo(json.dumps(card))
    else:
        print_red_team(card)
        typer.echo(f"\nreport: {out / 'red_team.html'}, images: {out / 'evasions.npz'}")


@contextlib.contextmanager
def _asking(
    server: str, token: str, guard: Path
) -> Iterator["Callable[[NDArray[np.uint8]], Verdicts] | None"]:
    """Give what asks a server that serves this very guard, or None without a server."""
    if not server:
        yield None
        return
    from functools import partial

    from detector.artifact import read_guard
    from service.client import Client

    with Client(server, token=token or None) as client:
        served, own = client.describe().guard, read_guard(guard).digest
        if served != own:
            _fail(f"expected a server of the guard {own[:16]}, {server} serves {served[:16]}")
        yield partial(client.inspect, outputs=True)


@app.command()
def export(
    *,
    model: Model,
    guard: GuardFolder,
    out: Annotated[Path, typer.Option("--out", help="The guarded ONNX file to write.")],
    target_fpr: Annotated[
        float | None,
        typer.Option("--target-fpr", help="Rate of reluguard_is_adversarial. [the guard's own]"),
    ] = None,
) -> None:
    """Write one self-contained guarded ONNX file, for any ONNX runtime."""
    from detector.artifact import write_file
    from detector.runtime import Guard

    opened = Guard.open(model, guard, fpr=target_fpr)
    write_file(out, opened.compiled.SerializeToString())
    names = ", ".join(value.name for value in opened.compiled.graph.output)
    typer.echo(f"{out}: outputs {names}")


@app.command()
def serve(
    *,
    model: Annotated[Path | None, typer.Option("--model", help="The production model.")] = None,
    guard: Annotated[
        Path | None,
        typer.Option("--guard", help="The guard's folder, or one whose CURRENT file names it."),
    ] = None,
    challenger: Annotated[
        Path | None,
        typer.Option("--challenger", help="A second guard, scored in the same pass, only counted."),
    ] = None,
    models: Annotated[
        Path | None,
        typer.Option("--models", help="Instead: a folder of NAME/model.onnx and NAME/guard."),
    ] = None,
    host: Annotated[str | None, typer.Option("--host", help="[default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option("--port", help="0 for any. [default: 50051]")] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option("--metrics-port", help="Metrics, status; none by --set. [default: 9464]"),
    ] = None,
    threads: Threads = None,
    provider: Provider = None,
    policy: Annotated[
        str | None, typer.Option("--policy", help="annotate, reject or shadow.")
    ] = None,
    tls_certificate: Annotated[
        Path | None, typer.Option("--tls-certificate", help="PEM; read again when it changes.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option("--tls-key", help="PEM private key.")] = None,
    tls_client_ca: Annotated[
        Path | None, typer.Option("--tls-client-ca", help="PEM; demands client certificates.")
    ] = None,
    tokens: Annotated[
        Path | None, typer.Option("--tokens", help="TOML file of bearer tokens and their scopes.")
    ] = None,
    reflection: Annotated[
        bool, typer.Option("--reflection", help="Serve gRPC reflection.")
    ] = False,
    more: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any other setting as NAME=VALUE; RELUGUARD_NAME works too."),
    ] = None,
) -> None:
    """Serve the guarded model by gRPC: our own protocol and the Open Inference Protocol."""
    import os

    from service.server import serve as run_server
    from service.settings import PREFIX, Settings

    extra = dict(_assignment(text) for text in more or [])
    named = {PREFIX + name.upper(): value for name, value in extra.items()}
    settings = Settings.from_env(
        {**os.environ, **named},
        model=model,
        guard=guard,
        challenger=challenger,
        models=models,
        host=host,
        port=port,
        metrics_port=metrics_port,
        threads=threads,
        providers=None if provider is None else tuple(provider),
        policy=policy,
        tls_certificate=tls_certificate,
        tls_key=tls_key,
        tls_client_ca=tls_client_ca,
        tokens=tokens,
        reflection=reflection or None,
    )
    sys.exit(run_server(settings))


@app.command()
def health(
    *,
    address: Annotated[str, typer.Option("--address", help="host:port.")] = "127.0.0.1:50051",
    name: Annotated[str, typer.Option("--service", help="A model's name; empty for all.")] = "",
    ca: Annotated[Path | None, typer.Option("--ca", help="PEM of the server's authority.")] = None,
    certificate: Annotated[
        Path | None, typer.Option("--certificate", help="PEM, where the server demands one.")
    ] = None,
    key: Annotated[Path | None, typer.Option("--key", help="PEM private key of that.")] = None,
) -> None:
    """Ask a server whether it is SERVING: exit code 0 if so, 1 if not."""
    from service.client import is_healthy

    healthy = is_healthy(address, service=name, ca=ca, certificate=certificate, key=key)
    typer.echo("SERVING" if healthy else "not serving")
    sys.exit(0 if healthy else 1)


def _assignment(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign:
        raise typer.BadParameter(f"expected NAME=VALUE, got {text!r}")
    return name, value


@app.command()
def bench(
    *,
    model: Model,
    guard: GuardFolder,
    challenger: Annotated[
        Path | None, typer.Option("--challenger", help="Also with this guard in shadow.")
    ] = None,
    batch: Annotated[
        list[int] | None,
        typer.Option("--batch", min=1, help="Batch size; may be repeated. [1, 8, 32]"),
    ] = None,
    rounds: Annotated[
        int, typer.Option("--rounds", min=1, help="Timed pairs per batch size.")
    ] = 200,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads per run.")] = 1,
    provider: Provider = None,
    as_json: Json = False,
) -> None:
    """Time the guarded model against the plain one, run by run in turn."""
    from detector.bench import bench_guard

    result = bench_guard(
        model,
        guard,
        batches=batch or [1, 8, 32],
        rounds=rounds,
        threads=threads,
        providers=provider,
        challenger=challenger,
    )
    if as_json:
        typer.echo(json.dumps(result))
        return
    for row in result["batches"]:
        low, high = row["overhead_quartiles"]
        shadowed = row.get("challenger_overhead_p50")
        more = f", with challenger {shadowed:.3f} of that" if shadowed else ""
        typer.echo(
            f"batch {row['batch']:>3}: plain {row['plain_p50_s'] * 1e3:8.3f} ms, guarded "
            f"{row['guarded_p50_s'] * 1e3:8.3f} ms, ratio {row['overhead_p50']:.3f} "
            f"[{low:.3f}, {high:.3f}]{more}"
        )


@app.command()
def analyze(
    *,
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option("--out", help="The folder of the report.")],
    guard: Annotated[
        Path | None, typer.Option("--guard", help="A guard, to see its scores on the same images.")
    ] = None,
    other: Annotated[
        Path | None, typer.Option("--other", help="Another ONNX model, to compare layers with.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", help="Images read, at most.")] = 2000,
    pairwise: Annotated[
        int, typer.Option("--pairwise", help="Images compared with one another, at most.")
    ] = 1000,
    papers: Annotated[
        bool, typer.Option("--papers", help="Also train what the papers' claims need.")
    ] = False,
    seed: Seed = 0,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Look into the network: RDMs, Fiedler cuts, maps, graphs and CKA, clean against attacked."""
    from training.analysis.analyze import AnalysisSettings
    from training.analysis.analyze import analyze as run_analysis

    settings = AnalysisSettings(
        limit=limit, pairwise=pairwise, papers=papers, threads=threads, seed=seed
    )
    with _progress(quiet=as_json) as progress:
        found = run_analysis(
            model, data, out, guard=guard, other=other, settings=settings, progress=progress
        )
    typer.echo(json.dumps(found) if as_json else f"report: {out / 'report.html'}")


@app.command()
def explain(
    image: Annotated[Path, typer.Argument(help="A JPEG or PNG.")],
    *,
    model: Model,
    guard: GuardFolder,
    data: Data,
    out: Annotated[Path, typer.Option("--out", help="The picture: .png, .svg or .pdf.")] = Path(
        "explanation.png"
    ),
    threads: Threads = None,
) -> None:
    """Draw what led to the verdict on one image: taps, channels and nearest clean neighbours."""
    from training.analysis.explain import explain as draw

    found = draw(model, guard, data, image, out, threads=threads)
    word = "adversarial" if found.verdict.is_adversarial else "clean"
    typer.echo(
        f"class {found.verdict.prediction}, {word}: likelihood {found.verdict.likelihood:.3f}, "
        f"p-value {found.verdict.p_value:.4f}; picture: {out}"
    )


@app.command()
def harden(
    *,
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option("--out", help="The folder of the hardened model.")],
    held_out: Annotated[
        str | None, typer.Option("--held-out", help="Images to measure on. [a fifth of --data]")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", help="Images to train on, at most.")] = 4000,
    as_json: Json = False,
) -> None:
    """Fine-tune the model against attacks with the consistent loss; writes another ONNX file."""
    from training.harden import harden as run_harden

    with _progress(quiet=as_json) as progress:
        report = run_harden(
            model, data, out, held_out=held_out, limit=limit, progress=progress
        ).to_json()
    if as_json:
        typer.echo(json.dumps(report))
        return
    for what in ("clean", "robust", "consistency"):
        before, after = report[f"{what}_before"]["value"], report[f"{what}_after"]["value"]
        typer.echo(f"{what:<12} {before:.3f} -> {after:.3f}")
    typer.echo(f"model: {out / 'model.onnx'}")


Shelf = Annotated[
    Path, typer.Option("--shelf", help="The folder of versions that `serve --guard` follows.")
]
Why = Annotated[str, typer.Option("--why", help="Goes into the history.")]
Who = Annotated[str, typer.Option("--who", help="Goes into the history. [the user's name]")]
Key = Annotated[
    Path | None, typer.Option("--key", help="PEM, an Ed25519 private key to sign with.")
]


@app.command()
def retrain(
    *,
    guard: GuardFolder,
    model: Model,
    out: Annotated[Path, typer.Option("--out", help="The new guard's folder to write.")],
    new: Annotated[
        list[Path] | None,
        typer.Option(
            "--new",
            help="An .npz of attacked `images` with their true `labels`, a folder of such, or a "
            "folder of labelled captures; may be repeated.",
        ),
    ] = None,
    attack: Annotated[
        list[str] | None,
        typer.Option("--attack", help="An attack to run, by name or module:Class; repeatable."),
    ] = None,
    work: Annotated[
        Path | None, typer.Option("--work", help="The harvest. [what the guard names]")
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="The images of the first fit, if they moved.")
    ] = None,
    share: Annotated[
        float, typer.Option("--share", help="Of all attacks' weight, for the new ones.")
    ] = 0.2,
    sources: Annotated[
        int, typer.Option("--sources", help="Images per --attack to fit on, at most.")
    ] = 400,
    most_per_source: Annotated[
        int,
        typer.Option(
            "--most-per-source", min=1, help="Captures of one caller under one label, at most."
        ),
    ] = 250,
    margin: Annotated[
        float, typer.Option("--margin", help="AUROC that an old attack may lose.")
    ] = 0.01,
    seed: Seed = 0,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Fit a guard on new attacks beside all old ones and judge it: exit code 1 if refused."""
    from training.gate import GateLimits, print_gate
    from training.retrain import retrain as run_retrain

    with _progress(quiet=as_json) as progress:
        found = run_retrain(
            guard,
            model,
            new or [],
            out,
            attacks=attack or [],
            work=work,
            data=data,
            share=share,
            sources=sources,
            most_per_source=most_per_source,
            limits=GateLimits(auroc=margin),
            seed=seed,
            threads=threads,
            progress=progress,
        )
    if as_json:
        document = {"guard": str(out), "digest": found.guard.digest, "gate": found.gate.to_json()}
        typer.echo(json.dumps(document))
    else:
        print_gate(found.gate)
        typer.echo(f"guard: {out}")
    sys.exit(0 if found.gate.passed else 1)


@app.command()
def promote(
    *,
    shelf: Shelf,
    guard: Annotated[
        Path | None,
        typer.Option("--guard", help="The guard's folder. [the challenger in shadow]"),
    ] = None,
    why: Why,
    who: Who = "",
    in_shadow: Annotated[
        bool, typer.Option("--shadow", help="As challenger: scored beside the current one.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Against the gate's word; the version says so.")
    ] = False,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Put a guard on the shelf and make it current, or challenger; a running server follows."""
    from detector import shelf as shelves

    if in_shadow and (force or guard is None):
        raise typer.BadParameter("expected --shadow with --guard and without --force")
    who = who or _user()
    if in_shadow and guard is not None:
        change = shelves.shadow(shelf, guard, who=who, why=why, key=key)
    else:
        if guard is None:
            rival = shelves.challenger(shelf)
            if rival is None:
                raise shelves.ShelfError(f"expected --guard: {shelf} has no challenger to promote")
            guard = rival.path
        change = shelves.promote(shelf, guard, who=who, why=why, force=force, key=key)
    _tell_change(change, as_json=as_json)


@app.command()
def shadow(
    *,
    shelf: Shelf,
    guard: Annotated[
        Path | None, typer.Option("--guard", help="The guard's folder, to score in shadow.")
    ] = None,
    clear: Annotated[
        bool, typer.Option("--clear", help="Instead: take the challenger out of shadow.")
    ] = False,
    why: Why,
    who: Who = "",
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Let a guard score beside the current one, counted only, or end that."""
    from detector import shelf as shelves

    if clear == (guard is not None):
        raise typer.BadParameter("expected either --guard or --clear")
    who = who or _user()
    if guard is None:
        change = shelves.clear(shelf, who=who, why=why)
    else:
        change = shelves.shadow(shelf, guard, who=who, why=why, key=key)
    _tell_change(change, as_json=as_json)


@app.command()
def rollback(*, shelf: Shelf, why: Why, who: Who = "", as_json: Json = False) -> None:
    """Make the version current that was so before; again, one further back."""
    from detector.shelf import rollback as go_back

    _tell_change(go_back(shelf, who=who or _user(), why=why), as_json=as_json)


@app.command()
def status(
    *,
    shelf: Annotated[
        Path | None, typer.Option("--shelf", help="The folder of versions that a server follows.")
    ] = None,
    captures: Annotated[
        Path | None, typer.Option("--captures", help="A server's capture folder.")
    ] = None,
    server: Annotated[
        str, typer.Option("--server", help="A running server's metrics port, host:port.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Show champion, challenger, gate, history, what waits for labels, and a live server's view."""
    if shelf is None and captures is None and not server:
        raise typer.BadParameter("expected --shelf, --captures or --server")
    document: dict[str, Any] = {}
    lines: list[str] = []
    if shelf is not None:
        _shelf_status(shelf, document, lines)
    if captures is not None:
        _capture_status(captures, document, lines)
    if server:
        _server_status(server, document, lines)
    typer.echo(json.dumps(document) if as_json else "\n".join(lines))


def _shelf_status(shelf: Path, document: dict[str, Any], lines: list[str]) -> None:
    from dataclasses import asdict

    from detector.shelf import challenger, current, history, versions

    live, rival = current(shelf), challenger(shelf)
    known, changes = versions(shelf), history(shelf)
    gate = {} if live is None else live.manifest.metrics.get("gate", {})
    red_team = {} if live is None else live.manifest.metrics.get("red_team", {})
    document |= {
        "current": live and live.digest,
        "challenger": rival and rival.digest,
        "versions": {name: found.manifest.created_at for name, found in known.items()},
        "gate": gate,
        "red_team": red_team,
        "history": [asdict(change) for change in changes],
    }
    marks = {found.digest: mark for mark, found in (("*", live), ("?", rival)) if found}
    words = {"*": "  current", "?": "  challenger"}
    for name, found in known.items():
        mark = marks.get(found.digest, " ")
        lines.append(f"{mark} {name}  fitted {found.manifest.created_at}{words.get(mark, '')}")
    if gate:
        lines.append(f"gate: {'passed' if gate['passed'] else 'refused'}")
    if live is not None:
        lines += _red_team_lines(red_team)
    for change in changes:
        forced = ", forced" if change.forced else ""
        lines.append(
            f"{change.number:>4} {change.when} {change.action:<8} {change.guard[:16]} "
            f"by {change.who}{forced}: {change.why}"
        )


def _red_team_lines(found: Mapping[str, Any]) -> list[str]:
    """Return what the red team published with a guard, or that it did not."""
    if not found:
        return ["red team: nothing published with this guard, see `reluguard redteam --publish`"]
    lines = []
    for size, rates in found["evaded"].items():
        shares = ", ".join(
            f"{entry['value']:.2f} [{entry['low']:.2f}, {entry['high']:.2f}] at {rate}"
            for rate, entry in rates.items()
        )
        lines.append(f"red team, {float(size):g}/255, {found['images']} images: evades {shares}")
    return lines


def _capture_status(captures: Path, document: dict[str, Any], lines: list[str]) -> None:
    import sqlite3
    from dataclasses import asdict

    from service.snapshot import count_captures

    try:
        found = count_captures(captures)
    except sqlite3.Error as error:
        _fail(f"expected captures in {captures}, its index can't be read: {error}")
    document["captured"] = asdict(found)
    waiting = ", ".join(f"{count} {name}" for name, count in found.waiting.items())
    labels = ", ".join(f"{count} {name}" for name, count in found.labels.items()) or "none"
    lines.append(f"captured {found.images}; waiting for labels: {waiting}; labelled: {labels}")


def _server_status(address: str, document: dict[str, Any], lines: list[str]) -> None:
    from service.snapshot import fetch_status, in_words

    document["server"] = fetch_status(address)
    lines += in_words(document["server"])


def _user() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return "unknown"


def _tell_change(change: "Change", *, as_json: bool) -> None:
    from dataclasses import asdict

    if as_json:
        typer.echo(json.dumps(asdict(change)))
        return
    is_now = {"shadow": "in shadow", "clear": "out of shadow"}.get(change.action, "current")
    before = f", before {change.before[:16]}" if change.before and change.action != "clear" else ""
    typer.echo(f"{change.action}: {change.guard[:16]} is {is_now}{before}")


label = typer.Typer(
    help="Say what captured images were: list, show, export, import, set.", no_args_is_help=True
)
app.add_typer(label, name="label")

Captures = Annotated[Path, typer.Option("--captures", help="The server's capture folder.")]
Labeller = Annotated[str, typer.Option("--labeller", help="Who says so, for the record.")]
Replace = Annotated[bool, typer.Option("--replace", help="Where another label was given before.")]


@label.command("list")
def label_list(
    *,
    captures: Captures,
    limit: Annotated[int, typer.Option("--limit", help="Images, at most.")] = 50,
    unlabelled: Annotated[bool, typer.Option("--unlabelled", help="Only what waits.")] = False,
    source: Annotated[
        str | None, typer.Option("--source", help="Only what this caller sent.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List captured images, the most adversarial first."""
    from service.label import list_captures

    with _labels():
        found = list_captures(captures, limit=limit, unlabelled=unlabelled, source=source)
    rows = [row.to_json() for row in found]
    if as_json:
        typer.echo(json.dumps(rows))
        return
    for row in rows:
        typer.echo(
            f"{row['id']}  {row['stratum']:<7}  score {row['score']:8.3f}  p {row['p_value']:.4f}"
            f"  class {row['prediction']}  {row['label'] or '-'}"
        )


@label.command("show")
def label_show(
    name: Annotated[str, typer.Argument(metavar="ID", help="Of the captured image.")],
    *,
    captures: Captures,
    guard: Annotated[
        Path | None,
        typer.Option("--guard", help="A guard's folder or a shelf: shows each layer's evidence."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="A .png to draw the pixels to, if they were kept.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show one captured image: what was said of it, each layer's evidence, and its pixels."""
    from detector.artifact import read_guard
    from detector.shelf import current
    from service.show import show_capture, write_image

    artifact = None if guard is None else current(guard) or read_guard(guard)
    with _labels():
        shown = show_capture(captures, name, artifact)
        if out is not None and shown.raw is None:
            _fail(f"no raw input of {name!r} was kept: serve with --set capture_images=true")
        if out is not None and shown.raw is not None:
            write_image(shown.raw, out)
    if as_json:
        typer.echo(json.dumps(shown.to_json()))
        return
    for key, value in shown.row.to_json().items():
        typer.echo(f"{key:<11} {value}")
    for layer, value in shown.evidence.items():
        typer.echo(f"{layer:<40} {value:+8.3f}  {shown.layer_rates[layer]:.3f} fired")


@label.command("export")
def label_export(
    out: Annotated[Path, typer.Argument(help="The CSV to write.")], *, captures: Captures
) -> None:
    """Write the captures as CSV, for its column `label` to be filled in."""
    from service.label import export_csv

    with _labels():
        count = export_csv(captures, out)
    typer.echo(f"{count} captures written to {out}")


@label.command("import")
def label_import(
    file: Annotated[Path, typer.Argument(help="A CSV with the columns id and label.")],
    *,
    captures: Captures,
    labeller: Labeller = "cli",
    replace: Replace = False,
) -> None:
    """Take the labels of a CSV, all of them or none."""
    from service.label import import_csv

    with _labels():
        count = import_csv(captures, file, labeller=labeller, replace=replace)
    typer.echo(f"{count} new labels")


@label.command("set")
def label_set(
    name: Annotated[str, typer.Argument(metavar="ID", help="Of the captured image.")],
    value: Annotated[str, typer.Argument(metavar="LABEL", help="clean or attack:NAME.")],
    *,
    captures: Captures,
    labeller: Labeller = "cli",
    replace: Replace = False,
) -> None:
    """Label one captured image."""
    from service.label import set_label

    with _labels():
        count = set_label(captures, [(name, value)], labeller=labeller, replace=replace)
    typer.echo(f"{count} new labels")


@contextlib.contextmanager
def _labels() -> Iterator[None]:
    """Turn what is wrong with a label into one clear line."""
    from service.errors import LabelError

    try:
        yield
    except LabelError as error:
        _fail(str(error))


def _floats(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"expected numbers with commas between, got {text!r}") from error


@contextlib.contextmanager
def _progress(*, quiet: bool) -> Iterator["Progress"]:
    """Give progress bars on standard error, or silence."""
    from training.progress import Bars, Progress

    with Progress() if quiet else Bars() as progress:
        yield progress


def main() -> None:
    """Run the command line: exit code 0 good, 1 failed with one clear line, 2 wrong usage."""
    from detector.errors import DetectorError

    try:
        app()
    except DetectorError as error:
        _fail(str(error))
    except OSError as error:
        place = f": {error.filename}" if error.filename else ""
        _fail(f"{error.strerror or error}{place}")
    except ModuleNotFoundError as error:
        _fail(f"no module {error.name} here: install reluguard with the extra [training]")
    except SystemExit as stop:
        if stop.code == INTERRUPTED:
            typer.echo("reluguard: interrupted; finished work is kept", err=True)
        raise


def _fail(message: str) -> NoReturn:
    typer.echo(f"reluguard: {' '.join(message.split())}", err=True)
    sys.exit(1)


if __name__ == "__main__":
    main()
