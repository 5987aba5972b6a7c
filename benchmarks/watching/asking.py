"""Attacks that ask a real server by gRPC, each as a caller of its own, watched or not."""

import hashlib
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.images import Images
from reluguard.detector.runtime import Guard
from reluguard.service.background import Running, running
from reluguard.service.client.client import Client
from reluguard.service.errors import CallError
from reluguard.training.attacks import Attack
from reluguard.training.attacks.victim import Victim

__all__ = ["Asked", "ask_server", "time_ratio"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What came of attacks on a server.

    Attributes:
        runs: attacks, an image each.
        raised: of them put under suspicion.
        before: questions asked when that was, in the middle.
        answered: questions that got an answer, in the middle.
        refused: questions that got none, in the middle.
        fooled: runs that ended with another answer of the model.
        change: L2, pixels in [0, 1], that it took, in the middle of all runs; one that did not
            succeed is infinite.
    """

    runs: int
    raised: int
    before: int | None
    answered: int
    refused: int
    fooled: int
    change: float


def ask_server(
    guard: Guard,
    attack: Attack,
    images: Images,
    labels: NDArray[np.int64],
    *,
    seed: int,
    **watch: object,
) -> Asked:
    """Return what an attack reaches that asks one question a call.

    A question that is refused tells the attacker nothing; it takes it as no success and goes on.

    Args:
        guard: opened with readings.
        attack: one that only asks.
        images: uint8 (N, H, W, C).
        labels: int64 (N,).
        seed: of all chance.
        watch: settings of the watch.
    """
    before: list[int | None] = []
    answered: list[int] = []
    refused: list[int] = []
    changes: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        tokens = Path(folder) / "tokens.toml"
        tokens.write_text("".join(_token(f"attacker {i}") for i in range(len(images))))
        with running(guard, tokens=tokens, metrics_port=None, **watch) as server:
            for i in range(len(images)):
                with Client(server.address, token=f"attacker {i}") as client:
                    asking = _Asking(server, client, f"attacker {i}", int(labels[i]))
                    victim = Victim(predict=asking)
                    one = slice(i, i + 1)
                    result = attack(images[one], labels[one], victim, seed=seed + i, batch=1)
                before.append(asking.raised)
                answered.append(asking.answered)
                refused.append(asking.refused)
                moved = result.images[0].astype(np.float64) - images[i]
                # by the model itself: the server may refuse to say
                wrong = guard.inspect(result.images).prediction[0] != labels[i]
                changes.append(float(np.linalg.norm(moved) / 255) if wrong else np.inf)
    raised = [one for one in before if one is not None]
    return Asked(
        runs=len(images),
        raised=len(raised),
        before=int(statistics.median(raised)) if raised else None,
        answered=int(statistics.median(answered)),
        refused=int(statistics.median(refused)),
        fooled=int(np.isfinite(changes).sum()),
        change=float(np.median(changes)),
    )


def _token(name: str) -> str:
    digest = hashlib.sha256(name.encode()).hexdigest()
    return f"[[token]]\nname = '{name}'\nscopes = ['privileged']\nsha256 = '{digest}'\n"


class _Asking:
    """Asks a server about each image by itself."""

    def __init__(self, server: Running, client: Client, name: str, label: int) -> None:
        self._server, self._client, self._name, self._label = server, client, name, label
        self.answered = self.refused = 0
        self.raised: int | None = None
        self._classes = 0

    def __call__(self, batch: Images) -> NDArray[np.float32]:
        return np.concatenate([self._one(image[None]) for image in batch])

    def _one(self, image: Images) -> NDArray[np.float32]:
        try:
            outputs = self._client.inspect(image, outputs=True).outputs
        except CallError as error:
            if "near-equal" not in str(error):
                raise
            self.refused += 1
            told = np.zeros((1, self._classes), np.float32)
            told[0, self._label] = 1
            return told
        self.answered += 1
        logits = np.asarray(next(iter(outputs.values())), np.float32)
        self._classes = logits.shape[1]
        if self.raised is None:
            watch = self._server.server.status().watch
            if watch is not None and self._name in {one.caller for one in watch.suspects}:
                self.raised = self.answered
        return logits


def time_ratio(guards: Sequence[Guard], images: Images, *, calls: int, rounds: int) -> list[float]:
    """Return how much longer a call takes with the watch, a ratio of medians for each round.

    Two servers, one that watches and one that does not, are asked in turn, one image a call.

    Args:
        guards: the same guard without readings and with them.
        images: uint8 (N, H, W, C), different ones.
        calls: of each server and round.
        rounds: how many.
    """
    ratios = []
    with ExitStack() as stack:
        plain, watched = (
            stack.enter_context(running(guard, metrics_port=None, watch=watch))
            for guard, watch in zip(guards, ("off", "count"), strict=True)
        )
        clients = [stack.enter_context(Client(one.address)) for one in (plain, watched)]
        for turn in range(rounds + 1):
            took: list[list[float]] = [[], []]
            for call in range(calls):
                image = images[(turn * calls + call) % len(images)][None]
                for which in (0, 1) if call % 2 else (1, 0):
                    started = time.perf_counter()
                    clients[which].inspect(image)
                    took[which].append(time.perf_counter() - started)
            if turn:  # the first warms up
                ratios.append(statistics.median(took[1]) / statistics.median(took[0]))
    return ratios
