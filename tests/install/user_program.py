"""A program as a user writes it, with every public name: `mypy --strict` takes it as it is."""

import asyncio
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

import reluguard
from reluguard import (
    AnalysisError,
    AsyncClient,
    Attack,
    AttackError,
    AttackResult,
    Budget,
    CallError,
    Client,
    DataError,
    DetectorError,
    Goal,
    Guard,
    GuardedModule,
    GuardedSession,
    GuardError,
    GuardFormatError,
    HeldError,
    ImageError,
    ImageTooLargeError,
    ModelError,
    ModelMismatchError,
    NoTapsError,
    SettingsError,
    TwinError,
    Verdict,
    Verdicts,
    Victim,
    WorkerError,
    analyze,
    evaluate,
    fit,
    redteam,
)

OFFLINE = (AnalysisError, AttackError, DataError, HeldError, SettingsError, TwinError, WorkerError)
MODEL = (GuardFormatError, ModelMismatchError, GuardError, NoTapsError, ModelError)


def flagged(images: NDArray[np.uint8]) -> list[int]:
    """Return which images look adversarial, in process."""
    try:
        guard = Guard.open("model.onnx", "guard", threads=1)
        verdicts: Verdicts = guard.inspect(images)
    except ImageTooLargeError:
        return flagged(images[:1])
    except ImageError as error:
        raise SystemExit(f"not an image: {error}") from error
    except MODEL as error:
        raise SystemExit(f"{error}") from error
    return [i for i, verdict in enumerate(verdicts) if suspicious(verdict)]


def suspicious(verdict: Verdict) -> bool:
    """Return whether to look at it again."""
    return verdict.is_adversarial or verdict.likelihood > 0.5 or verdict.evidence[0] > 1


def in_other_places(images: NDArray[np.uint8], module: torch.nn.Module) -> float:
    """Return the largest score of a session and of a torch module with the guard in the pass."""
    session = GuardedSession("model.onnx", "guard")
    outputs, verdicts = session.run_with_verdicts(None, {"image": images})
    assert outputs
    return float(max(verdicts.score.max(), GuardedModule(module, "guard")(images).score.max()))


def served(images: NDArray[np.uint8]) -> Verdicts:
    """Return what a server says."""
    with Client("127.0.0.1:50051") as client:
        try:
            return client.inspect(images)
        except CallError as error:
            raise SystemExit(f"{error.code} {error.request_id}") from error


async def served_later(images: NDArray[np.uint8]) -> Verdicts:
    """Return what a server says, awaited."""
    async with AsyncClient("127.0.0.1:50051", deadline_s=2.0) as client:
        return await client.inspect(images)


@dataclass(frozen=True)
class Brighter(Attack):
    """Every pixel a little brighter."""

    size: float = 4.0

    @property
    def name(self) -> str:
        """Its name."""
        return f"brighter-{self.size:g}"

    @property
    def budget(self) -> Budget:
        """How far it goes."""
        return Budget("linf", self.size)

    def run(
        self, clean: torch.Tensor, goal: Goal, victim: Victim, generator: torch.Generator
    ) -> torch.Tensor:
        """Return brighter pixels."""
        del goal, victim, generator
        return clean + self.size / 255


def fooled(images: NDArray[np.uint8], victim: Victim) -> AttackResult:
    """Return what the attack reached."""
    try:
        return Brighter()(images, np.zeros(len(images), np.int64), victim, seed=0)
    except OFFLINE as error:
        raise DetectorError(str(error)) from error


def made(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> Guard:
    """Return a guard, after all that is known of it was written down."""
    data = (images, labels)
    guard = fit("model.onnx", data, out="guard", recipe="quick", target_fpr=0.01)
    found = evaluate("model.onnx", "guard", data, out="report", attacks=["pgd-linf-4"])
    report = redteam("model.onnx", "guard", data, out="red", limit=50)
    print(found.summary.mean_auroc, report.evasions, sorted(found.to_json()))
    print(analyze("model.onnx", data, out="analysis", guard="guard").accuracy)
    return guard


if __name__ == "__main__":
    some = np.zeros((1, 8, 8, 1), np.uint8)
    print(flagged(some), served(some).score, asyncio.run(served_later(some)), reluguard.__all__)
