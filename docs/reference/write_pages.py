"""Writes the pages that the code itself tells, each time the site is built: `make docs`.

commands.md from the command line, settings.md from the server's settings, metrics.md from the
registry of a server that has just started, protocol.md from the .proto file. They are not
committed.
api.md, which readers want without building anything, is: `make reference`.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def write_all() -> None:
    """Write each page that would change."""
    for name, written in PAGES.items():
        page, text = HERE / name, written()
        if not page.is_file() or page.read_text(encoding="utf-8") != text:
            page.write_text(text, encoding="utf-8")


def commands() -> str:
    """Return the page of the command line: what `--help` says, command by command."""
    import typer.main

    from reluguard.commands.app import app
    from reluguard.commands.helping import JOBS, OTHER_COMMANDS, sorted_by

    group: Any = typer.main.get_group(app)
    top = group.make_context("reluguard", [], resilient_parsing=True)
    parts = [
        "# Commands\n",
        (
            "What `reluguard COMMAND --help` says, written from it. Results go to standard output, "
            "progress and errors to standard error; the exit code is 0 when all went well, 1 after "
            "a failure, which one line tells, and 2 for wrong usage.\n"
        ),
    ]
    for job, names in sorted_by(JOBS, list(group.commands), OTHER_COMMANDS).items():
        parts.append(f"## {job}\n")
        for name in names:
            parts += _command(name, group.commands[name], top)
    return "\n".join(parts)


def _command(name: str, command: Any, above: Any, depth: int = 3) -> Iterator[str]:
    context = command.make_context(
        name.rpartition(" ")[2], [], parent=above, resilient_parsing=True
    )
    yield f"{'#' * depth} reluguard {name}\n"
    yield f"```text\n{command.get_help(context)}\n```\n"
    for inner, below in getattr(command, "commands", {}).items():
        yield from _command(f"{name} {inner}", below, context, depth + 1)


def settings() -> str:
    """Return the page of the server's settings: name, default and meaning of each."""
    from reluguard.service.settings import PREFIX, Settings

    meanings = dict(_attributes(Settings.__doc__ or ""))
    rows = ["| setting | default | what it does |", "|---|---|---|"]
    for field in fields(Settings):
        default = "none" if field.default is None else str(field.default)
        rows.append(f"| `{field.name}` | {default or 'empty'} | {_cell(meanings[field.name])} |")
    told = (
        "# Settings of the server\n\n"
        "Each can be given in four ways; the first one that says something wins:\n\n"
        "1. an option of `reluguard serve`, where there is one, like `--port 50051`;\n"
        "2. `--set NAME=VALUE` of the same command;\n"
        f"3. a variable of the environment, `{PREFIX}` and the name in capitals, like "
        f"`{PREFIX}PORT`;\n"
        "4. a line of the TOML file named by `--config`.\n\n"
        "An unknown name or a value without meaning is an error at the start; "
        "`reluguard serve --check-config` says so and starts nothing. `none` takes a default "
        "away where that means something.\n\n"
    )
    return told + "\n".join(rows) + "\n"


def _attributes(docstring: str) -> Iterator[tuple[str, str]]:
    """Yield name and meaning of each entry below `Attributes:`."""
    body = docstring.partition("Attributes:\n")[2]
    for entry in re.split(r"\n(?=        \w+: )", "\n" + body):
        name, _, meaning = entry.strip().partition(": ")
        if meaning:
            yield name, " ".join(meaning.split())


def metrics() -> str:
    """Return the page of what Prometheus sees, with labels, and the alerts made of it."""
    import numpy as np
    import yaml
    from prometheus_client import CollectorRegistry

    from reluguard.detector.looks.thresholds import Thresholds
    from reluguard.service.captures.drift import Drift
    from reluguard.service.monitoring.live_guards import LiveGuard
    from reluguard.service.monitoring.metrics import Metrics

    registry = CollectorRegistry()
    shown = Metrics(registry)
    model = shown.model("m", "annotate")
    some = Thresholds(fpr=0.05, first=np.zeros(1, np.float32))
    model.guard(
        LiveGuard(
            digest="d",
            model_sha256="s",
            created=0.0,
            thresholds=some,
            challenger="c",
            challenger_thresholds=some,
        )
    )
    shown.rpc.method("unary", "s", "m")
    shown.drift("m", Drift(samples=0.0, statistics={}, advice="wait", layers={"l": 0.0}))
    rows = ["| metric | kind | labels | what it counts |", "|---|---|---|---|"]
    for family in sorted(registry.collect(), key=lambda one: one.name):
        labels = sorted({name for sample in family.samples for name in sample.labels} - {"le"})
        name = family.name + ("_total" if family.type == "counter" else "")
        words = ", ".join(f"`{label}`" for label in labels) or "none"
        rows.append(f"| `{name}` | {family.type} | {words} | {_cell(family.documentation)} |")
    alerts = ["| alert | severity | says |", "|---|---|---|"]
    rules = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yml").read_text())
    for rule in (rule for group in rules["groups"] for rule in group["rules"] if "alert" in rule):
        note = rule["annotations"]
        said = _cell(note.get("summary", "") + " " + note.get("description", ""))
        alerts.append(f"| {rule['alert']} | {rule['labels']['severity']} | {said} |")
    return (
        "# Metrics and alerts\n\n"
        "`/metrics` on the metrics port (9464), as Prometheus reads it. `model` is the name the "
        "server gives the model; no label comes from a caller.\n\n"
        + "\n".join(rows)
        + "\n\n## Alerts\n\n`deploy/prometheus/alerts.yml`, with unit tests beside it; "
        "`deploy/grafana/dashboard.json` shows the same figures.\n\n" + "\n".join(alerts) + "\n"
    )


def protocol() -> str:
    """Return the page of the gRPC protocol: the .proto file, and what stands beside it."""
    text = (ROOT / "proto" / "reluguard" / "v1").glob("*.proto")
    files = "\n".join(f"```proto\n{file.read_text(encoding='utf-8')}```" for file in sorted(text))
    return (
        "# Protocol\n\n"
        "The server speaks two protocols on one port. `reluguard.v1.Guard`, below, gives verdicts "
        "with columns of their own. The **Open Inference Protocol** "
        "(`inference.GRPCInferenceService`, `proto/open_inference.proto`) is what clients such as "
        "tritonclient speak: they get the outputs they always got, and may ask for "
        "`reluguard_score`, `reluguard_likelihood`, "
        "`reluguard_is_adversarial` and `reluguard_unscored` beside them. Health is "
        "`grpc.health.v1`.\n\n"
        "## What a call may end with\n\n"
        "| status | when |\n|---|---|\n" + "".join(_statuses()) + "\n## Messages\n\n" + files + "\n"
    )


def _statuses() -> Iterator[str]:
    """Yield a row for each code that a call may end with, from the server's own table."""
    from reluguard.service.status import CODES

    told: dict[str, list[str]] = {}
    for kind, code in CODES.items():
        told.setdefault(code.name, []).append(_cell((kind.__doc__ or "").split("\n\n")[0]))
    told["INTERNAL"] = ["Anything else; the trace is in the server's log."]
    return (f"| {code} | {' '.join(meanings)} |\n" for code, meanings in told.items())


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


PAGES: dict[str, Callable[[], str]] = {
    "commands.md": commands,
    "settings.md": settings,
    "metrics.md": metrics,
    "protocol.md": protocol,
}

if __name__ == "__main__":
    write_all()
