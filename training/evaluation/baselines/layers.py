"""Inconsistency between layers, learned from clean images alone. N images, L taps, M means."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from reluguard.training.evaluation.baselines.base import (
    Baseline,
    Context,
    Material,
    Matrix,
    Scores,
    best_setting,
    clean_of,
)

__all__ = ["LayerShifts"]

HIDDEN, EPOCHS, BATCH, RATE = 128, 30, 128, 1e-3
VIEWS, REACH = 2, 0.1  # masks of the pixels, and how far they are from one
SMALL = 1e-8
SPREAD_FLOOR = 1e-4


@dataclass
class LayerShifts(Baseline):
    """Recovery of every layer's means from the last one's, and the answer's moves under masks.

    Recovery: networks fitted on clean images predict each tap's channel means from the last tap's;
    where the error is and how large it is makes a score. Logit layer: how far the answer moves on
    lightly masked pixels beside how far the means do. Each is ranked among clean images, and is
    suspicious far out on either side. Which of the two, or both, and from which layer on, is chosen
    on the fitting rows; the masks are drawn, where the published ones are learned from a start at
    one.

    Source: A Few Large Shifts (AFLS), 2025, arXiv 2505.12586, and its code.
    """

    name: ClassVar[str] = "AFLS (shifts between layers)"
    note: ClassVar[str] = "clean images alone; which test and which layers, chosen on fitting rows"
    context: Context | None = None
    networks: list[Any] = field(default_factory=list)
    center: Matrix = field(default_factory=lambda: np.zeros(0, np.float32))
    spread: Matrix = field(default_factory=lambda: np.ones(0, np.float32))
    masks: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    known: tuple[Scores, ...] = ()
    setting: tuple[str, float] = ("both", 0.0)

    def fit(self, groups: Sequence[Material], context: Context) -> None:
        """Learn recovery from clean images, then choose the setting."""
        self.context = context
        clean = clean_of(groups)
        self.center = clean.means.mean(axis=0)
        self.spread = clean.means.std(axis=0) + SPREAD_FLOOR
        rng = np.random.default_rng(context.seed)
        shape = (VIEWS, *clean.images.shape[1:])
        self.masks = rng.uniform(1 - REACH, 1 + REACH, shape).astype(np.float32)
        self._learn(self._standard(clean.means), context)
        read = [self._read(group) for group in groups]
        own = read[next(i for i, group in enumerate(groups) if group is clean)]

        def scores(setting: tuple[str, float]) -> list[Scores]:
            known = self._tests(own, setting[1])
            return [self._joined(self._tests(one, setting[1]), known, setting[0]) for one in read]

        tests, layers = ("both", "recovery", "logits"), (0.0, 0.5)
        settings = [(test, layer) for test in tests for layer in layers]
        self.setting = best_setting(groups, settings, scores)
        self.known = self._tests(own, self.setting[1])

    def score(self, material: Material) -> Scores:
        """Return how far out the image is among clean ones."""
        tests = self._tests(self._read(material), self.setting[1])
        return self._joined(tests, self.known, self.setting[0])

    def _standard(self, means: Matrix) -> Matrix:
        standard: Matrix = (means - self.center) / self.spread
        return standard

    def _learn(self, x: Matrix, context: Context) -> None:
        import torch

        blocks = context.blocks
        table = torch.from_numpy(x)
        last = table[:, blocks[-1]]
        generator = torch.Generator().manual_seed(context.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(context.seed)
            for block in blocks[:-1]:
                width = block.stop - block.start
                network = torch.nn.Sequential(
                    torch.nn.Linear(last.shape[1], HIDDEN),
                    torch.nn.BatchNorm1d(HIDDEN),
                    torch.nn.ReLU(),
                    torch.nn.Linear(HIDDEN, HIDDEN),
                    torch.nn.BatchNorm1d(HIDDEN),
                    torch.nn.ReLU(),
                    torch.nn.Linear(HIDDEN, width),
                )
                optimiser = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=1e-2)
                for _ in range(EPOCHS):
                    order = torch.randperm(len(table), generator=generator)
                    for rows in order.split(BATCH):
                        if len(rows) < 2:  # batch norm needs two
                            continue
                        error = (network(last[rows]) - table[rows, block]).square().mean()
                        optimiser.zero_grad()
                        error.backward()
                        optimiser.step()
                self.networks.append(network.eval())

    def _read(self, material: Material) -> tuple[Scores, Scores, Scores]:
        """Return recovery errors (N, L - 1), means' moves (V, N, L) and the answer's, (V, N)."""
        import torch

        assert self.context is not None
        x = self._standard(material.means)
        table, blocks = torch.from_numpy(x), self.context.blocks
        with torch.no_grad():
            errors = [
                (network(table[:, blocks[-1]]) - table[:, block]).square().sum(1).numpy()
                for network, block in zip(self.networks, blocks, strict=False)
            ]
        probability = _softmax(material.readings.logits)
        answer = np.eye(probability.shape[1])[probability.argmax(axis=1)]
        entropy = -(probability * np.log(probability + SMALL)).sum(axis=1)
        moves, answers = [], []
        for mask in self.masks:
            view = np.clip(np.rint(material.images * mask), 0, 255).astype(np.uint8)
            means, logits = self.context.record(view)
            moved = (self._standard(means) - x) ** 2
            moves.append(np.stack([moved[:, block].mean(axis=1) for block in blocks], axis=1))
            answers.append(((_softmax(logits) - answer) ** 2).mean(axis=1) * entropy)
        return (
            np.stack(errors, axis=1).astype(np.float64),
            np.stack(moves).astype(np.float64),
            np.stack(answers).astype(np.float64),
        )

    def _tests(self, read: tuple[Scores, Scores, Scores], start: float) -> tuple[Scores, Scores]:
        """Return both tests of each image, (N,), over layers from that share of the depth on."""
        errors, moves, answers = read
        share = _softmax(errors)
        size = np.log(errors.mean(axis=1) + SMALL)[:, None]
        recovery = (np.log(errors.shape[1]) + share * np.log(share + SMALL)) * size
        logits = np.log(answers + SMALL)[:, :, None] - np.log(moves + SMALL)
        first, second = (int(start * n) for n in (recovery.shape[1], logits.shape[2]))
        return recovery[:, first:].sum(axis=1), logits[:, :, second:].mean(axis=(0, 2))

    def _joined(
        self, tests: tuple[Scores, Scores], known: tuple[Scores, ...], which: str
    ) -> Scores:
        far = [_far_out(one, clean) for one, clean in zip(tests, known, strict=True)]
        if which == "both":
            return far[0] + far[1]
        return far[0] if which == "recovery" else far[1]


def _far_out(values: Scores, clean: Scores) -> Scores:
    """Return the square of each value's normal score among clean ones."""
    from scipy.stats import norm

    ordered = np.sort(clean)
    low = np.searchsorted(ordered, values, side="left")
    high = np.searchsorted(ordered, values, side="right")
    rank = ((low + high) / 2 + 0.5) / (len(ordered) + 1)
    # beyond all clean images it goes on by their spread, or all would tie
    spread = ordered.std() + SMALL
    beyond = np.maximum(values - ordered[-1], 0) + np.maximum(ordered[0] - values, 0)
    far: Scores = (np.abs(norm.ppf(rank)) + beyond / spread) ** 2
    return far


def _softmax(x: NDArray[Any]) -> Scores:
    shifted = np.exp(x - x.max(axis=1, keepdims=True), dtype=np.float64)
    probabilities: Scores = shifted / shifted.sum(axis=1, keepdims=True)
    return probabilities
