"""A server started, and asked whether it is well."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from reluguard.commands.health import DEFAULT_ADDRESS
from reluguard.commands.options import Provider, Threads

__all__ = ["health", "serve"]


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
    host: Annotated[
        str | None, typer.Option("--host", help="Or unix:PATH. [default: 127.0.0.1]")
    ] = None,
    port: Annotated[int | None, typer.Option("--port", help="0 for any. [default: 50051]")] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option("--metrics-port", help="Metrics, status; none by --set. [default: 9464]"),
    ] = None,
    http_port: Annotated[
        int | None,
        typer.Option("--http-port", help="The open protocol by HTTP too. [default: none]"),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option("--processes", help="That answer on the port, and one to watch. [default: 1]"),
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
    config: Annotated[
        Path | None,
        typer.Option("--config", help="TOML with any settings by name; what is given here wins."),
    ] = None,
    check_config: Annotated[
        bool, typer.Option("--check-config", help="Only say whether all settings are right.")
    ] = False,
    more: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any other setting as NAME=VALUE; RELUGUARD_NAME works too."),
    ] = None,
) -> None:
    """Serve the guarded model by gRPC: our own protocol and the Open Inference Protocol."""
    import os

    from reluguard.service.process import serve as run_server
    from reluguard.service.settings import PREFIX, Settings

    extra = dict(_assignment(text) for text in more or [])
    named = {PREFIX + name.upper(): value for name, value in extra.items()}
    settings = Settings.from_env(
        {**os.environ, **named},
        config=config,
        model=model,
        guard=guard,
        challenger=challenger,
        models=models,
        host=host,
        port=port,
        metrics_port=metrics_port,
        http_port=http_port,
        processes=processes,
        threads=threads,
        providers=None if provider is None else tuple(provider),
        policy=policy,
        tls_certificate=tls_certificate,
        tls_key=tls_key,
        tls_client_ca=tls_client_ca,
        tokens=tokens,
        reflection=reflection or None,
    )
    if check_config:
        from reluguard.service.checking import problems

        found = problems(settings)
        for problem in found:
            sys.stderr.write(f"reluguard: {problem}\n")
        typer.echo("the settings are right" if not found else f"{len(found)} problems")
        sys.exit(1 if found else 0)
    sys.exit(run_server(settings))


def _assignment(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign:
        raise typer.BadParameter(f"expected NAME=VALUE, got {text!r}")
    return name, value


def health(
    *,
    address: Annotated[str, typer.Option("--address", help="host:port or unix:PATH.")] = (
        DEFAULT_ADDRESS
    ),
    name: Annotated[str, typer.Option("--service", help="A model's name; empty for all.")] = "",
    ca: Annotated[Path | None, typer.Option("--ca", help="PEM of the server's authority.")] = None,
    certificate: Annotated[
        Path | None, typer.Option("--certificate", help="PEM, where the server demands one.")
    ] = None,
    key: Annotated[Path | None, typer.Option("--key", help="PEM private key of that.")] = None,
    server_name: Annotated[
        str | None, typer.Option("--server-name", help="In the certificate, if not the address.")
    ] = None,
) -> None:
    """Ask a server whether it is SERVING: exit code 0 if so, 1 if not."""
    from reluguard.commands.health import ask

    options = {"ca": ca, "certificate": certificate, "key": key, "server_name": server_name}
    given = {name: str(value) for name, value in options.items() if value is not None}
    sys.exit(ask(address, name, **given))
