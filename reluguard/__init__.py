"""reluguard: how likely is this image an adversarial example? Read from which ReLUs fired.

The public names, and the command `reluguard`. Everything is loaded when it is used: importing this
module is free, and serving never imports torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reluguard.detector.dropin import GuardedSession
    from reluguard.detector.errors import DetectorError
    from reluguard.detector.runtime import Guard
    from reluguard.detector.verdict import Verdict, Verdicts
    from reluguard.service.client.client import AsyncClient, Client
    from reluguard.training.analyze import analyze
    from reluguard.training.evaluate import evaluate
    from reluguard.training.fit import fit
    from reluguard.training.guarded_module import GuardedModule
    from reluguard.training.redteam import redteam

__all__ = [
    "AsyncClient",
    "Client",
    "DetectorError",
    "Guard",
    "GuardedModule",
    "GuardedSession",
    "Verdict",
    "Verdicts",
    "analyze",
    "evaluate",
    "fit",
    "main",
    "redteam",
]

_HOMES = {
    "AsyncClient": "reluguard.service.client.client",
    "Client": "reluguard.service.client.client",
    "DetectorError": "reluguard.detector.errors",
    "Guard": "reluguard.detector.runtime",
    "GuardedModule": "reluguard.training.guarded_module",
    "GuardedSession": "reluguard.detector.dropin",
    "Verdict": "reluguard.detector.verdict",
    "Verdicts": "reluguard.detector.verdict",
    "analyze": "reluguard.training.analyze",
    "evaluate": "reluguard.training.evaluate",
    "fit": "reluguard.training.fit",
    "redteam": "reluguard.training.redteam",
}


def __getattr__(name: str) -> Any:
    """Load a public name when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'reluguard' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def main() -> None:
    """Run the command line: exit code 0 good, 1 failed with one clear line, 2 wrong usage."""
    import sys

    if sys.argv[1:2] == ["health"]:
        from reluguard.commands.health import quick

        code = quick(sys.argv[2:])
        if code is not None:
            sys.exit(code)
    from reluguard.commands.app import run

    run()


if __name__ == "__main__":
    main()
