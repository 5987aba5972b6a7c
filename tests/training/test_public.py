"""The public functions: what the commands are a thin skin over."""

import inspect
from pathlib import Path

import numpy as np
import pytest

import reluguard
from reluguard.commands.app import app
from reluguard.training.data.dataset import Dataset
from reluguard.training.recipes import Recipe

HERE = {"as_json"}
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
}
ROUNDS = {"rounds", "refitted", "harden", "hardened", "fit_data", "fit_work"}  # another function's


@pytest.mark.parametrize("name", ["fit", "evaluate", "redteam", "analyze"])
def test_a_function_takes_what_its_command_takes(name: str) -> None:
    """By the same name and with the same default, unless the command line needs another."""
    function = inspect.signature(getattr(reluguard, name)).parameters
    callbacks = [c.callback for c in app.registered_commands if c.callback is not None]
    command = inspect.signature(next(c for c in callbacks if c.__name__ == name)).parameters
    apart = HERE | (ROUNDS if name == "redteam" else set())
    assert {RENAMED.get(option, option) for option in command if option not in apart} <= set(
        function
    )
    for option, parameter in command.items():
        if option == "model":  # first in Python, where None is what lies beside the guard
            continue
        if option in function and parameter.default is not inspect.Parameter.empty:
            assert function[option].default == parameter.default, option
    required = {key for key, p in function.items() if p.default is inspect.Parameter.empty}
    assert required <= {"model", "guard", "data", "out"}


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
