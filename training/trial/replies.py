"""What the page is told, as plain values: verdicts, answers, pictures as PNG. H rows, W columns."""

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

from reluguard.detector.images import Images
from reluguard.training.trial.tools import ATTACK_TOOLS, CHANGE_TOOLS, Slider
from reluguard.training.trial.trial import Look, Trial, Tried

__all__ = ["described", "png", "told"]

_ANSWERS = 5  # shown, the likeliest
_VISIBLE = 96  # how far from grey the largest difference is drawn
_MOST_TIMES = 32


def described(trial: Trial, title: str) -> dict[str, Any]:
    """Return what the page is built from: the guard, the tools and how many samples there are."""
    manifest = trial.guard.artifact.manifest
    spec = trial.guard.spec
    return {
        "title": title,
        "guard": trial.guard.artifact.digest[:16],
        "fpr": trial.guard.fpr,
        "threshold": trial.guard.threshold,
        "prevalence": manifest.provenance.get("prevalence", 0.5),
        "size": [spec.height, spec.width, spec.channels],
        "taps": [tap.name for tap in manifest.taps],
        "without_gradients": trial.without_gradients,
        "samples": [None if one.label is None else trial.name(one.label) for one in trial.samples],
        "attacks": [
            {
                "name": name,
                "label": tool.label,
                "slider": _slider(tool.slider),
                "disabled": tool.needs_gradients and trial.without_gradients is not None,
            }
            for name, tool in ATTACK_TOOLS.items()
        ],
        "changes": [
            {"name": name, "label": tool.label, "slider": _slider(tool.slider), "disabled": False}
            for name, tool in CHANGE_TOOLS.items()
        ],
    }


def told(trial: Trial, found: Tried) -> dict[str, Any]:
    """Return what became of a picture."""
    before, after = found.before, found.after
    change = after.image.astype(np.int64) - before.image.astype(np.int64)
    largest = int(np.abs(change).max())
    times = max(1, min(_MOST_TIMES, _VISIBLE // max(1, largest)))
    difference = np.clip(128 + times * change, 0, 255).astype(np.uint8)
    return {
        "before": _look(trial, before),
        "after": _look(trial, after),
        "difference": png(difference),
        "times": times,
        "largest": largest,
        "linf": found.linf,
        "fooled": found.fooled,
    }


def png(image: Images) -> str:
    """Return a picture, uint8 (H, W, C), as a data URI that a page can show."""
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _slider(slider: Slider | None) -> dict[str, Any] | None:
    if slider is None:
        return None
    return {name: getattr(slider, name) for name in ("low", "high", "step", "start", "unit")}


def _look(trial: Trial, look: Look) -> dict[str, Any]:
    verdict = look.verdict
    first = np.argsort(-look.shares, kind="stable")[:_ANSWERS]
    # JSON knows no infinity, which a pass that overflowed may give
    scored = not verdict.is_unscored
    return {
        "image": png(look.image),
        "answer": trial.name(verdict.prediction),
        "answers": [[trial.name(int(k)), float(look.shares[k])] for k in first],
        "score": verdict.score if scored else None,
        "likelihood": verdict.likelihood if scored else None,
        "p_value": verdict.p_value if scored else None,
        "is_adversarial": verdict.is_adversarial,
        "evidence": list(verdict.evidence) if scored else [],
    }
