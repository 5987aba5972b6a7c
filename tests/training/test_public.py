"""The public functions: what the commands are a thin skin over."""

import inspect
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import reluguard
from reluguard.commands.app import app
from reluguard.detector.metrics import GateLimits
from reluguard.training.data.dataset import Dataset
from reluguard.training.explain import explain
from reluguard.training.harden import HardenSettings, harden
from reluguard.training.recipes import Recipe

FUNCTIONS: dict[str, Callable[..., object]] = {
    "fit": reluguard.fit,
    "score": reluguard.score,
    "evaluate": reluguard.evaluate,
    "redteam": reluguard.redteam,
    "retrain": reluguard.retrain,
    "analyze": reluguard.analyze,
    "explain": explain,
    "harden": harden,
}
RENAMED = {  # a repeated option is singular on the command line
    "attack": "attacks",
    "benign": "benign",
    "budget": "budgets",
    "surrogate": "surrogates",
    "scale": "preprocessing",
    "mean": "preprocessing",
    "std": "preprocessing",
    "bgr": "preprocessing",
    "server": "ask",
    "token": "ask",
    "margin": "auroc",
    "most_contradicted": "contradicted",
}
APART = {  # what the command does itself, or by another function
    "score": {"out", "table"},
    "redteam": {"rounds", "refitted", "harden", "hardened", "fit_data", "fit_work"},
}
INSIDE = {"harden": HardenSettings, "retrain": GateLimits}  # values that hold some options
NEEDED = {"model", "new", "out"}  # said in Python, where a command has a default of its own


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_takes_what_its_command_takes(name: str) -> None:
    """By the same name and with the same default, unless the command line needs another."""
    function = inspect.signature(FUNCTIONS[name]).parameters
    held = inspect.signature(INSIDE[name]).parameters if name in INSIDE else {}
    callbacks = [c.callback for c in app.registered_commands if c.callback is not None]
    command = inspect.signature(next(c for c in callbacks if c.__name__ == name)).parameters
    for option, parameter in command.items():
        if option in APART.get(name, set()) | {"as_json"}:
            continue
        known = option if option in {*function, *held} else RENAMED[option]
        there = {**held, **function}[known]
        is_required = there.default is inspect.Parameter.empty
        if (known == option or known in held) and not (is_required and option in NEEDED):
            assert there.default == parameter.default, option
    required = {key for key, p in function.items() if p.default is inspect.Parameter.empty}
    assert required <= {"model", "guard", "data", "out", "new", "image"}


def test_a_guard_from_arrays_is_ready_to_inspect(
    digits: Dataset, digits_model: Path, brief_recipe: Recipe, tmp_path: Path
) -> None:
    """Images in memory in, a guard out that tells attacked from clean, and a folder that opens."""
    some = digits.take(np.arange(300))
    guard = reluguard.fit(
        str(digits_model),
        (some.images, some.labels),
        out=tmp_path / "guard",
        recipe=brief_recipe,
        threads=1,
        workers=1,
    )
    assert isinstance(guard, reluguard.Guard)
    verdicts = guard.inspect(some.images[:8])
    again = reluguard.Guard.open(digits_model, tmp_path / "guard").inspect(some.images[:8])
    assert (verdicts.score == again.score).all()
    assert guard.artifact.manifest.provenance["data"]["source"] == "arrays in memory"
