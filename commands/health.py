"""Whether a server is well, asked in a hurry: a probe runs every few seconds, all day long."""

import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["DEFAULT_ADDRESS", "OPTIONS", "ask", "quick"]

DEFAULT_ADDRESS = "127.0.0.1:50051"
# what `reluguard health` takes, and what `is_healthy` calls it
OPTIONS = {
    "--address": "address",
    "--service": "service",
    "--ca": "ca",
    "--certificate": "certificate",
    "--key": "key",
    "--server-name": "server_name",
}
_FILES = {"ca", "certificate", "key"}


def quick(arguments: Sequence[str]) -> int | None:
    """Return the exit code of `reluguard health ARGUMENTS`, None for whatever isn't plain options.

    The command line's own machinery takes longer to load than the question takes to be answered.
    """
    given: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        name, sign, value = rest.pop(0).partition("=")
        if not sign:
            value = rest.pop(0) if rest else ""
        if name not in OPTIONS or not value or OPTIONS[name] in given:
            return None
        given[OPTIONS[name]] = value
    return ask(**given)


def ask(address: str = DEFAULT_ADDRESS, service: str = "", **options: str) -> int:
    """Ask, say what was answered, and return the exit code."""
    from reluguard.service.client.probe import is_healthy

    for name in _FILES & set(options):
        if not Path(options[name]).is_file():
            sys.stderr.write(f"reluguard: expected a file as --{name}, got {options[name]}\n")
            return 1
    try:
        healthy = is_healthy(address, service=service, **options)  # type: ignore[arg-type] # ours
    except (OSError, ValueError) as error:
        sys.stderr.write(f"reluguard: {error}\n")
        return 1
    sys.stdout.write("SERVING\n" if healthy else "not serving\n")
    return 0 if healthy else 1
