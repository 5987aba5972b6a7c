"""Attacks that another library makes, and harmless changes, of images the guard never saw.

    python benchmarks/foreign.py --model M.onnx --guard G --data FRESH [--images 150]

Foolbox attacks the model through its twin; images are rounded to whole 8-bit pixels and count where
the answer is then wrong. AUROC is against all clean images, with a 95 % interval by bootstrap over
source images. All must be fresh: neither the model nor the guard may have been fitted on them. Of
the clean ones and of the default recipe's harmless changes of them it says how many are flagged at
the guard's own threshold. With `--looks` a guard that looks twice is judged as it is then served.
L2 and L1 sizes are those of 32-pixel images, and grow with the side and with the number of places.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import foolbox
import numpy as np
import torch
from numpy.typing import NDArray

from reluguard.detector.images import Images
from reluguard.detector.runtime import Guard
from reluguard.detector.verdict import Verdicts
from reluguard.training.attacks.library import TwinModule
from reluguard.training.changes import Change
from reluguard.training.data.dataset import Labels, load_data
from reluguard.training.data.reading import Reading
from reluguard.training.recipes.harmless import harmless
from reluguard.training.statistics.metrics import auroc_interval, rate_above
from reluguard.training.twin.twin import load_twin, to_pixels

SETTINGS: dict[str, tuple[str, dict[str, Any], float | None]] = {
    "PGD Linf 1": ("LinfPGD", {"steps": 40}, 1 / 255),
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
        *((order_of(v), v.is_adversarial, v.prediction) for v in found), strict=True
    )
    return np.concatenate(scores), np.concatenate(flagged), np.concatenate(answers)


def order_of(verdicts: Verdicts) -> NDArray[np.float64]:
    """Return what verdicts are ordered by, however many looks there were: float64, (N,).

    A second look's scores and a first one's have no scale in common, so p-values come first, and
    scores decide between those whose look was the same.
    """
    between = verdicts.score / (1 + np.abs(verdicts.score))  # less than any step of a p-value
    order: NDArray[np.float64] = 1e-6 * between - np.log(verdicts.p_value)
    return order


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


def _sized(name: str, size: float | None, side: int) -> float | None:
    """Return an attack's size for images of a side: L2 by the side, L1 by the places."""
    if size is None or "Linf" in name or name in ("FGSM 4", "BIM 4", "AdamPGD 4"):
        return size
    return size * max(side / 32, 1.0) ** (2 if "L1" in name else 1)


def _batches(count: int, side: int) -> Iterator[slice]:
    """Yield rows that fit memory together: 200 of 32 pixels a side, 16 of 224."""
    rows = min(max(200 * 32 * 32 // side**2, 16), count)
    yield from (slice(first, first + rows) for first in range(0, count, rows))


def main() -> None:
    """Print a line per attack."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--guard", type=Path, required=True)
    parser.add_argument("--data", required=True, help="fresh labelled images")
    parser.add_argument("--looks", choices=["first", "suspicious", "always"], default="first")
    parser.add_argument("--second-model", type=Path)
    parser.add_argument("--images", type=int, default=150, help="attacked, from the first on")
    parser.add_argument("--attack", action="append", choices=list(SETTINGS))
    options = parser.parse_args()
    torch.manual_seed(0)
    guard = Guard.open(
        options.model, options.guard, looks=options.looks, second_model=options.second_model
    )
    data = load_data(options.data, Reading.of(guard.spec))
    order = np.random.default_rng(0).permutation(len(data))
    images, labels = data.images, data.labels
    if not options.attack:
        _harmless(guard, images[:], labels)
    clean, _, answers = _inspect(guard, images)
    limit = float(np.quantile(clean, 0.95, method="higher"))
    chosen = order[: options.images]
    chosen = np.sort(chosen[answers[chosen] == labels[chosen]])
    twin = load_twin(options.model, guard.spec, images=images[:8], device="cpu")
    if twin is None:
        parser.error(f"expected a model with a twin, {options.model} has none")
    model = foolbox.PyTorchModel(TwinModule(twin).eval(), bounds=(0, 1), device="cpu")
    for name in options.attack or SETTINGS:
        kind, settings, size = SETTINGS[name]
        attack = getattr(foolbox.attacks, kind)(**settings)
        size = _sized(name, size, guard.spec.height)
        scores, sources, lengths = [], [], []
        for rows in _batches(len(chosen), guard.spec.height):
            picked = chosen[rows]
            pixels = to_pixels(images[picked])
            _, moved, _ = attack(model, pixels, torch.from_numpy(labels[picked]), epsilons=size)
            whole = (moved.detach() * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1)
            verdicts = guard.inspect(np.ascontiguousarray(whole.numpy()))
            fooled = verdicts.prediction != labels[picked]
            scores.append(order_of(verdicts)[fooled])
            sources.append(picked[fooled])
            far = (moved.detach() - pixels).flatten(1).norm(dim=1).numpy()
            lengths.append(far[fooled])
        found = np.concatenate(scores)
        if not len(found):
            print(f"{name:<14} 0 of {len(chosen)}", flush=True)
            continue
        quality = auroc_interval(
            clean, np.arange(len(clean)), found, np.concatenate(sources), seed=0
        )
        print(
            f"{name:<14} {len(found)} of {len(chosen)}, "
            f"median L2 {np.median(np.concatenate(lengths)):.2f}: AUROC {quality:.3f}, "
            f"{rate_above(found, limit).value:.2f} detected at 5 % false positives",
            flush=True,
        )


if __name__ == "__main__":
    main()
