"""A server started, and asked whether it is well."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from reluguard.commands.health import DEFAULT_ADDRESS
from reluguard.commands.options import LooksWanted, Provider, SecondModel, Threads

__all__ = ["health", "serve"]


def serve(
    *,
    model: Annotated[
        Path | None,
        typer.Option(
            "--model",
            help="The production model, an ONNX file. [default: what fit exported and put beside "
            "the guard, GUARD.onnx]",
        ),
    ] = None,
    guard: Annotated[
        Path | None,
        typer.Option("--guard", help="The guard's folder, or one whose CURRENT file names it."),
    ] = None,
    challenger: Annotated[
        Path | None,
        typer.Option(
            "--challenger",
            help="A second guard's folder: it scores in the same pass and is only counted.",
        ),
    ] = None,
    looks: LooksWanted = None,
    second_model: SecondModel = None,
    models: Annotated[
        Path | None,
        typer.Option(
            "--models",
            help="In place of --model and --guard: a folder of NAME/model.onnx and NAME/guard.",
        ),
    ] = None,
    host: Annotated[
        str | None,
        typer.Option("--host", help="The address to listen on, or unix:PATH. [default: 127.0.0.1]"),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option("--port", help="The gRPC port; 0 takes a free one. [default: 50051]"),
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            "--metrics-port",
            help="The port of /metrics and the status page; `--set metrics_port=none` for "
            "none. [default: 9464]",
        ),
    ] = None,
    http_port: Annotated[
        int | None,
        typer.Option(
            "--http-port",
            help="A port for the Open Inference Protocol by HTTP too. [default: none]",
        ),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(
            "--processes",
            help="How many processes answer on the port; with more than one, another one "
            "watches them. [default: 1]",
        ),
    ] = None,
    threads: Threads = None,
    provider: Provider = None,
    policy: Annotated[
        str | None,
        typer.Option(
            "--policy",
            help="What callers get of flagged images: annotate (answer and verdict), "
            "reject (no answer) or shadow (the answer; verdicts are only counted). "
            "[default: annotate]",
        ),
    ] = None,
    tls_certificate: Annotated[
        Path | None,
        typer.Option(
            "--tls-certificate",
            help="A PEM file with the server's certificates; it is read again when it changes.",
        ),
    ] = None,
    tls_key: Annotated[
        Path | None,
        typer.Option("--tls-key", help="A PEM file with the certificate's private key."),
    ] = None,
    tls_client_ca: Annotated[
        Path | None,
        typer.Option(
            "--tls-client-ca",
            help="A PEM file of authorities: callers must show a certificate of theirs.",
        ),
    ] = None,
    tokens: Annotated[
        Path | None,
        typer.Option(
            "--tokens",
            help="A TOML file of bearer tokens and what each may see. Without it every "
            "caller sees all.",
        ),
    ] = None,
    watch: Annotated[
        str | None,
        typer.Option(
            "--watch",
            help="Whether near-equal questions of a caller, the way of attacks that only ask, are "
            "counted (count), counted and refused (refuse), or neither (off). Patents on "
            "similarity to historical queries exist in the US. [default: off]",
        ),
    ] = None,
    reflection: Annotated[
        bool,
        typer.Option("--reflection", help="Let callers list the services, by gRPC reflection."),
    ] = False,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", help="A TOML file of settings by name; what is given here wins over it."
        ),
    ] = None,
    check_config: Annotated[
        bool,
        typer.Option("--check-config", help="Only say whether all settings are right, and exit."),
    ] = False,
    more: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Any other setting as NAME=VALUE; may be given again. The variable "
            "RELUGUARD_NAME does the same.",
        ),
    ] = None,
) -> None:
    """Serve the guarded model by gRPC: our own protocol and the Open Inference Protocol."""
    import os
    import signal

    if not check_config:
        # libraries take seconds to load, and whoever asks for a reload meanwhile means no end
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

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
        looks=looks,
        second_model=second_model,
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
        watch=watch,
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
    address: Annotated[
        str, typer.Option("--address", help="The server, as host:port or unix:PATH.")
    ] = (DEFAULT_ADDRESS),
    name: Annotated[
        str,
        typer.Option("--service", help="The name of the model to ask about; all of them if empty."),
    ] = "",
    ca: Annotated[
        Path | None,
        typer.Option("--ca", help="A PEM file with the authority of the server's certificate."),
    ] = None,
    certificate: Annotated[
        Path | None,
        typer.Option(
            "--certificate",
            help="A PEM file with a certificate to show, where the server demands one.",
        ),
    ] = None,
    key: Annotated[
        Path | None, typer.Option("--key", help="A PEM file with that certificate's private key.")
    ] = None,
    server_name: Annotated[
        str | None,
        typer.Option(
            "--server-name",
            help="The name in the server's certificate, where it is not the address.",
        ),
    ] = None,
) -> None:
    """Ask a server whether it is SERVING: exit code 0 if so, 1 if not."""
    from reluguard.commands.health import ask

    options = {"ca": ca, "certificate": certificate, "key": key, "server_name": server_name}
    given = {name: str(value) for name, value in options.items() if value is not None}
    sys.exit(ask(address, name, **given))
