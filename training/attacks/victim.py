"""What an attack is up against: the production model's answers, and a twin for its gradients."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from reluguard.detector.images import Images, InputSpec
from reluguard.detector.model import load_production
from reluguard.detector.runtime import in_batches
from reluguard.detector.session import open_session
from reluguard.training.errors import AttackError
from reluguard.training.twin.twin import Twin

__all__ = ["Victim", "open_victim"]

_BATCH_VALUES = 256 * 3 * 32 * 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Victim:
    """The model under attack.

    Attributes:
        predict: uint8 (N, H, W, C) to class scores, float32 (N, K), by the ONNX model. What an
            attack reaches is judged by this alone.
        twin: its differentiable copy, if there is one.
        surrogates: other models, for attackers who lack this one.
        both: a twin whose scores are the mean of both looks', of a guard that looks again.
    """

    predict: Callable[[Images], NDArray[np.float32]]
    twin: Twin | None = None
    surrogates: tuple[Twin, ...] = ()
    both: Twin | None = None

    @property
    def differentiable(self) -> Twin:
        """The twin.

        Raises:
            AttackError: there is none.
        """
        if self.twin is None:
            raise AttackError("expected a twin for an attack that needs gradients, got none")
        return self.twin

    @property
    def device(self) -> torch.device:
        """Where attacks on it run."""
        known = self.twin or next(iter(self.surrogates), None)
        return torch.device("cpu") if known is None else known.device


def open_victim(
    model: Path | str,
    spec: InputSpec,
    *,
    twin: Twin | None = None,
    surrogates: tuple[Twin, ...] = (),
    output: str | None = None,
    threads: int | None = None,
) -> Victim:
    """Return the production model, ready to be attacked.

    A model that answers in probabilities is read as their logarithms, so that scores of confident
    answers still tell apart.

    Args:
        model: the production ONNX file.
        spec: how images go into the model.
        twin: for attacks that need gradients.
        surrogates: for attacks that transfer.
        output: which output holds the class scores, where the model has several.
        threads: of ONNX Runtime; by default every core this process may use.

    Raises:
        ModelError: the model can't be read or run.
    """
    production = load_production(model, output=output)
    session = open_session(production.proto, threads=threads)

    def predict(images: Images) -> NDArray[np.float32]:
        step = max(1, _BATCH_VALUES // images[0].size)
        parts = []
        for start in range(0, len(images), step):
            tensor = spec.to_tensor(images[start : start + step])
            parts.append(in_batches(session, spec, tensor, [production.answer])[0])
        scores = production.class_scores(np.concatenate(parts).astype(np.float32))
        if production.ending in {"softmax", "sigmoid"}:
            scores = np.log(np.maximum(scores, np.finfo(np.float32).tiny))
        return scores

    return Victim(predict=predict, twin=twin, surrogates=surrogates)
