"""Whether a twin's gradient is one, and leads where the model follows. N images, K classes."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reluguard.detector.images import Images
from reluguard.detector.session import at_once

__all__ = ["lead_slope", "no_gradient"]

# of 255: what rounds its pixels to few levels moves with large ones only
_STEPS = (1, 2, 4, 8, 16, 32)
_ALIVE = 0.75
_FOLLOWED = 0.7  # by chance it is 3 of 8 images

Scorer = Callable[[Images], NDArray[np.float32]]


def lead_slope(scores: Callable[[Tensor], Tensor], pixels: Tensor) -> Tensor:
    """Return the gradient of the lead of the best class: (N, C, H, W).

    Args:
        scores: from pixels to (N, K).
        pixels: float32, (N, C, H, W), in [0, 1].
    """
    return torch.cat([_slope(scores, part) for part in pixels.split(at_once(pixels.shape[1:]))])


def _slope(scores: Callable[[Tensor], Tensor], pixels: Tensor) -> Tensor:
    pixels = pixels.detach().requires_grad_()
    ordered = scores(pixels).topk(2, dim=1).values
    (gradient,) = torch.autograd.grad((ordered[:, 0] - ordered[:, 1]).sum(), pixels)
    return gradient


def no_gradient(
    scores: Callable[[Tensor], Tensor], model: Scorer, images: Images, pixels: Tensor
) -> str | None:
    """Return what is wrong with a twin's gradient, None if attacks can follow it.

    It must be finite and not zero on most images, and steps along it must lower the lead of the
    model's own answer where steps of the same size at random don't.

    Args:
        scores: the twin's, from pixels to (N, K).
        model: the model's, from images to (N, K).
        images: uint8, (N, H, W, C).
        pixels: the same, as the twin takes them.
    """
    try:
        slope = lead_slope(scores, pixels)
    except RuntimeError as error:
        return f"it can't be computed: {error}"
    flat = slope.flatten(1)
    alive = torch.isfinite(flat).all(1) & (flat.abs().amax(1) > 0)
    if alive.float().mean() < _ALIVE:
        return f"it is zero or not finite on {int((~alive).sum())} of {len(images)} images"
    up = np.sign(np.nan_to_num(slope.permute(0, 2, 3, 1).cpu().numpy())).astype(np.int16)
    chance = np.random.default_rng(0).choice(np.array([-1, 1], np.int16), size=up.shape)
    clean = model(images)
    answers = clean.argmax(axis=1)
    before = _lead(clean, answers)
    most = 0
    for step in _STEPS:
        followed, random = (
            _lead(model(np.clip(images + step * way, 0, 255).astype(np.uint8)), answers)
            for way in (-up, chance)
        )
        lower = (followed < before) & (followed < random)
        most = max(most, int(lower.sum()))
        if lower.mean() >= _FOLLOWED:
            return None
    return (
        f"steps along it lower the model's confidence on {most} of {len(images)} images only, "
        "hardly more than steps at random"
    )


def _lead(scores: NDArray[np.float32], answers: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return by how much these classes lead before the best of the others, (N,)."""
    rows = np.arange(len(scores))
    others = scores.copy()
    others[rows, answers] = -np.inf
    lead: NDArray[np.float32] = scores[rows, answers] - others.max(axis=1)
    return lead
