"""reluguard: how likely is this image an adversarial example? Read from which ReLUs fired.

The public names, and the command `reluguard`. Everything is loaded when it is used: importing this
module is free, and serving never imports torch. `docs/reference/api.md` tells of each name.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reluguard.detector.dropin import GuardedSession
    from reluguard.detector.errors import (
        DetectorError,
        GuardError,
        GuardFormatError,
        HeldError,
        ImageError,
        ImageTooLargeError,
        ModelError,
        ModelMismatchError,
        NoTapsError,
        SettingsError,
    )
    from reluguard.detector.runtime import Guard
    from reluguard.detector.verdict import Verdict, Verdicts
    from reluguard.service.client.client import AsyncClient, Client
    from reluguard.service.errors import CallError
    from reluguard.training.analyze import analyze
    from reluguard.training.attacks.base import Attack, AttackResult, Goal
    from reluguard.training.attacks.budget import Budget
    from reluguard.training.attacks.victim import Victim
    from reluguard.training.errors import (
        AnalysisError,
        AttackError,
        DataError,
        TwinError,
        WorkerError,
    )
    from reluguard.training.evaluate import evaluate
    from reluguard.training.evaluation.report_card import ReportCard
    from reluguard.training.evaluation.result import Evaluation
    from reluguard.training.fit import fit
    from reluguard.training.guarded_module import GuardedModule
    from reluguard.training.progress import Progress, Step
    from reluguard.training.red_team.report import RedTeamReport
    from reluguard.training.redteam import redteam
    from reluguard.training.retrain import Retrained, retrain
    from reluguard.training.score import score

__all__ = [
    "AnalysisError",
    "AsyncClient",
    "Attack",
    "AttackError",
    "AttackResult",
    "Budget",
    "CallError",
    "Client",
    "DataError",
    "DetectorError",
    "Evaluation",
    "Goal",
    "Guard",
    "GuardError",
    "GuardFormatError",
    "GuardedModule",
    "GuardedSession",
    "HeldError",
    "ImageError",
    "ImageTooLargeError",
    "ModelError",
    "ModelMismatchError",
    "NoTapsError",
    "Progress",
    "RedTeamReport",
    "ReportCard",
    "Retrained",
    "SettingsError",
    "Step",
    "TwinError",
    "Verdict",
    "Verdicts",
    "Victim",
    "WorkerError",
    "analyze",
    "evaluate",
    "fit",
    "redteam",
    "retrain",
    "score",
]

_NAMES = {  # by the module that holds them
    "detector.dropin": "GuardedSession",
    "detector.errors": "DetectorError GuardError GuardFormatError HeldError ImageError "
    "ImageTooLargeError ModelError ModelMismatchError NoTapsError SettingsError",
    "detector.runtime": "Guard",
    "detector.verdict": "Verdict Verdicts",
    "service.client.client": "AsyncClient Client",
    "service.errors": "CallError",
    "training.analyze": "analyze",
    "training.attacks.base": "Attack AttackResult Goal",
    "training.attacks.budget": "Budget",
    "training.attacks.victim": "Victim",
    "training.errors": "AnalysisError AttackError DataError TwinError WorkerError",
    "training.evaluate": "evaluate",
    "training.evaluation.report_card": "ReportCard",
    "training.evaluation.result": "Evaluation",
    "training.fit": "fit",
    "training.guarded_module": "GuardedModule",
    "training.progress": "Progress Step",
    "training.red_team.report": "RedTeamReport",
    "training.redteam": "redteam",
    "training.retrain": "Retrained retrain",
    "training.score": "score",
}
_HOMES = {name: home for home, names in _NAMES.items() for name in names.split()}


if not TYPE_CHECKING:  # so that a type checker finds a misspelt name

    def __getattr__(name: str) -> Any:
        """Load a public name when it is first asked for."""
        if name not in _HOMES:
            raise AttributeError(f"module 'reluguard' has no attribute {name!r}")
        try:
            home = importlib.import_module(f"reluguard.{_HOMES[name]}")
        except ModuleNotFoundError as error:
            if str(error.name).startswith("reluguard"):
                raise
            raise ModuleNotFoundError(
                f"reluguard.{name} needs {error.name}: pip install 'reluguard[training]'",
                name=error.name,
            ) from error
        return getattr(home, name)


def __dir__() -> list[str]:
    """Return the public names, loaded or not."""
    return sorted({*globals(), *__all__})


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
