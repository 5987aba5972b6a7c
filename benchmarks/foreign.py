"""Attacks that another library makes, and harmless changes, of images the guard never saw.

    python benchmarks/foreign.py --model M.onnx --guard G --data FRESH.npz [--images 150]

Foolbox attacks the model through its twin; images are rounded to whole 8-bit pixels and count where
the answer is then wrong. AUROC is against the clean images that are not attacked. All must be
fresh: neither the model nor the guard may have been fitted on them. Of the clean ones and of the
default recipe's harmless changes of them it says how many are flagged at the guard's own threshold.
"""

import argparse
from pathlib import Path
from typing import Any

import foolbox
import numpy as np
import torch

from reluguard.detector.images import Images
from reluguard.detector.runtime import Guard
from reluguard.training.attacks.library import TwinModule
from reluguard.training.changes import Change
from reluguard.training.data.dataset import Labels, load_data
from reluguard.training.recipes.harmless import harmless
from reluguard.training.statistics.metrics import auroc, rate_above
from reluguard.training.twin.twin import load_twin, to_pixels

SETTINGS: dict[str, tuple[str, dict[str, Any], float | None]] = {
    "PGD Linf 2": ("LinfPGD", {"steps": 40}, 2 / 255),
    "PGD Linf 4": ("LinfPGD", {"steps": 40}, 4 / 255),
    "PGD Linf 8": ("LinfPGD", {"steps": 40}, 8 / 255),
    "FGSM 4": ("LinfFastGradientAttack", {}, 4 / 255),
    "BIM 4": ("LinfBasicIterativeAttack", {"steps": 10}, 4 / 255),
    "AdamPGD 4": ("LinfAdamPGD", {"steps": 40}, 4 / 255),
    "PGD L2 .5": ("L2PGD", {"steps": 40}, 0.5),
    "FGM L2 1": ("L2FastGradientAttack", {}, 1.0),
    "SLIDE L1 12": ("SparseL1DescentAttack", {"steps": 30}, 12.0),
    "DDN L2": ("DDNAttack", {"steps": 60}, None),
    "DeepFool L2": ("L2DeepFoolAttack", {"overshoot": 0.1}, None),
    "CW L2": (
        "L2CarliniWagnerAttack",
        {"binary_search_steps": 4, "steps": 100, "confidence": 0.5},
        None,
    ),
    # with fewer searches its weight stays too small, and what found nothing comes back all black
    "EAD": ("EADAttack", {"binary_search_steps": 9, "steps": 100, "confidence": 0.5}, None),
    "FMN Linf": ("LInfFMNAttack", {"steps": 60}, None),
    "FMN L0": ("L0FMNAttack", {"steps": 60}, None),
    "Gaussian blur": ("GaussianBlurAttack", {}, None),
}


def _inspect(guard: Guard, images: Images) -> tuple[Any, Any, Any]:
    """Return scores, whether they are flagged, and answers, each (N,)."""
    found = [guard.inspect(images[i : i + 500]) for i in range(0, len(images), 500)]
    scores, flagged, answers = zip(
        *((v.score, v.is_adversarial, v.prediction) for v in found), strict=True
    )
    return np.concatenate(scores), np.concatenate(flagged), np.concatenate(answers)


def _harmless(guard: Guard, images: Images, labels: Labels) -> None:
    """Print a line for clean images and one per harmless change."""
    changed = {"clean": images}
    for portion in harmless(1.0):
        assert isinstance(portion.change, Change)
        changed[portion.change.name] = portion.change(images, seed=5)
    for name, some in changed.items():
        _, flagged, answers = _inspect(guard, some)
        right = answers == labels
        print(
            f"{name:<16} {flagged.mean():.3f} flagged of {len(some)}, {flagged[right].mean():.3f} "
            f"of the {right.mean():.3f} answered right",
            flush=True,
        )


def main() -> None:
    """Print a line per attack."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--guard", type=Path, required=True)
    parser.add_argument("--data", required=True, help="fresh labelled images")
    parser.add_argument("--images", type=int, default=150, help="attacked, from the first on")
    parser.add_argument("--attack", action="append", choices=list(SETTINGS))
    options = parser.parse_args()
    torch.manual_seed(0)
    guard = Guard.open(options.model, options.guard)
    data = load_data(options.data)
    some, rest = data.images[: options.images], data.images[options.images :]
    labels = data.labels[: options.images]
    if not options.attack:
        _harmless(guard, rest, data.labels[options.images :])
    clean = _inspect(guard, rest)[0]
    limit = float(np.quantile(clean, 0.95, method="higher"))
    right = guard.inspect(some).prediction == labels
    some, labels = some[right], labels[right]
    twin = load_twin(options.model, guard.spec, images=some, device="cpu")
    if twin is None:
        parser.error(f"expected a model with a twin, {options.model} has none")
    model = foolbox.PyTorchModel(TwinModule(twin).eval(), bounds=(0, 1), device="cpu")
    pixels = to_pixels(some)
    for name in options.attack or SETTINGS:
        kind, settings, size = SETTINGS[name]
        attack = getattr(foolbox.attacks, kind)(**settings)
        _, moved, _ = attack(model, pixels, torch.from_numpy(labels), epsilons=size)
        whole = (moved.detach() * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1)
        verdicts = guard.inspect(np.ascontiguousarray(whole.numpy()))
        fooled = verdicts.prediction != labels
        if not fooled.any():
            print(f"{name:<14} 0 of {len(some)}")
            continue
        l2 = (moved.detach() - pixels).flatten(1).norm(dim=1)[torch.from_numpy(fooled)].median()
        scores = verdicts.score[fooled]
        print(
            f"{name:<14} {fooled.sum()} of {len(some)}, median L2 {l2:.2f}: "
            f"AUROC {auroc(clean, scores):.3f}, {rate_above(scores, limit).value:.2f} detected "
            "at 5 % false positives",
            flush=True,
        )


if __name__ == "__main__":
    main()
