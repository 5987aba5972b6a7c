"""How fast attacks are against foolbox's and ART's: the same network, images, budget and steps.

    OMP_NUM_THREADS=1 python -m benchmarks.attacks --images 128 --rounds 3

Everyone differentiates the same torch twin. Libraries are given all images in one call, foolbox as
one batch and ART in batches of 32, as they are by default. Time is the median over rounds, all in
turn; success is measured on the ONNX model in whole 8-bit pixels, as everywhere here.
"""

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.networks import NETWORKS, make
from reluguard.detector.images import Images
from reluguard.detector.model import infer_spec, load_production
from reluguard.training.attacks import (
    APGD,
    CWL2,
    FMN,
    PGD,
    Attack,
    DeepFool,
    Square,
    Victim,
    open_victim,
)
from reluguard.training.attacks.library import TwinModule
from reluguard.training.data.dataset import Labels, load_data
from reluguard.training.data.reading import Reading
from reluguard.training.twin.twin import Twin, load_twin, to_pixels

Library = Callable[[Twin, Images, Labels, int], NDArray[np.float32]]
BATCH = 32


def main() -> None:
    """Print one row per attack and library."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=sorted(NETWORKS), default="resnet20")
    parser.add_argument(
        "--data", help="labelled images [default: noise, where success says little]"
    )
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", help="attacks whose name contains this")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        images, labels, victim = _case(options, Path(folder))
    rows = []
    for ours, name, library in _pairs():
        if options.only is None or options.only in ours.name:
            rows.append(_compare(ours, name, library, images, labels, victim, options.rounds))
            if not options.json:
                _print(rows[-1], head=len(rows) == 1)
    if options.json:
        print(json.dumps(rows, indent=2))


def _case(options: argparse.Namespace, folder: Path) -> tuple[Images, Labels, Victim]:
    model = make(options.model, folder).model
    production = load_production(model)
    size = NETWORKS[options.model][0]
    spec = infer_spec(production, (size, size, 3))
    if options.data:
        data = load_data(options.data, Reading(size=(size, size)))
        images, labels = data.images[: 2 * options.images], data.labels[: 2 * options.images]
    else:
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (options.images, size, size, 3), dtype=np.uint8)
        labels = np.zeros(len(images), np.int64)
    twin = load_twin(model, spec, images=images[:8])
    victim = open_victim(model, spec, twin=twin, threads=1)
    if options.data:
        right = victim.predict(images).argmax(axis=1) == labels
        images, labels = images[right], labels[right]
    else:
        labels = victim.predict(images).argmax(axis=1)
    return images[: options.images], labels[: options.images], victim


def _pairs() -> list[tuple[Attack, str, Library]]:
    """Return our attacks with the calls of others that do the same."""
    return [
        (PGD(size=2.0), "foolbox", _foolbox("LinfPGD", 2 / 255, rel_stepsize=0.25, steps=10)),
        (
            PGD(size=2.0),
            "ART",
            _art(
                "ProjectedGradientDescent",
                eps=2 / 255,
                eps_step=0.5 / 255,
                max_iter=10,
                num_random_init=1,
                batch_size=BATCH,
                verbose=False,
            ),
        ),
        (
            PGD(norm="l2", size=0.25),
            "foolbox",
            _foolbox("L2PGD", 0.25, rel_stepsize=0.25, steps=10),
        ),
        (
            APGD(size=2.0, steps=12),
            "ART",
            _art(
                "AutoProjectedGradientDescent",
                eps=2 / 255,
                eps_step=4 / 255,
                max_iter=12,
                nb_random_init=1,
                batch_size=BATCH,
                verbose=False,
            ),
        ),
        (DeepFool(steps=30), "foolbox", _foolbox("L2DeepFoolAttack", None, steps=30, candidates=5)),
        (FMN(steps=30), "foolbox", _foolbox("L2FMNAttack", None, steps=30)),
        (
            CWL2(searches=3, steps=30),
            "foolbox",
            _foolbox("L2CarliniWagnerAttack", None, binary_search_steps=3, steps=30),
        ),
        (
            Square(size=8.0, most_queries=100),
            "ART",
            _art(
                "SquareAttack",
                eps=8 / 255,
                max_iter=100,
                p_init=0.8,
                nb_restarts=1,
                batch_size=BATCH,
                verbose=False,
            ),
        ),
    ]


def _compare(
    ours: Attack,
    name: str,
    library: Library,
    images: Images,
    labels: Labels,
    victim: Victim,
    rounds: int,
) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    success = {}
    clean = victim.predict(images).argmax(axis=1)
    ours(images[:4], labels[:4], victim, seed=0)
    for turn in range(rounds):
        started = time.perf_counter()
        result = ours(images, labels, victim, seed=0)
        seconds["ours"].append(time.perf_counter() - started)
        success["ours"] = float(result.success.mean())
        started = time.perf_counter()
        moved = library(victim.differentiable, images, clean, turn)
        seconds["theirs"].append(time.perf_counter() - started)
        whole = np.rint(moved.clip(0, 1) * 255).astype(np.uint8).transpose(0, 2, 3, 1)
        answers = victim.predict(np.ascontiguousarray(whole)).argmax(axis=1)
        success["theirs"] = float((answers != clean).mean())
    ratios = np.array(seconds["theirs"]) / np.array(seconds["ours"])
    return {
        "attack": ours.name,
        "library": name,
        "images": len(images),
        "ms_per_image": round(1000 * float(np.median(seconds["ours"])) / len(images), 2),
        "library_ms_per_image": round(1000 * float(np.median(seconds["theirs"])) / len(images), 2),
        "times_as_fast": round(float(np.median(ratios)), 2),
        "spread": f"{ratios.min():.2f}-{ratios.max():.2f}",
        "success": round(success["ours"], 3),
        "library_success": round(success["theirs"], 3),
    }


def _print(row: dict[str, Any], *, head: bool) -> None:
    widths = [max(len(name), 15) for name in row]
    for line in (list(row), list(row.values()))[0 if head else 1 :]:
        cells = zip(line, widths, strict=True)
        print("  ".join(str(cell).rjust(width) for cell, width in cells), flush=True)


def _foolbox(name: str, size: float | None, **settings: Any) -> Library:
    def attack(twin: Twin, images: Images, labels: Labels, seed: int) -> NDArray[np.float32]:
        import foolbox

        torch.manual_seed(seed)
        model = foolbox.PyTorchModel(TwinModule(twin).eval(), bounds=(0, 1), device="cpu")
        call = getattr(foolbox.attacks, name)(**settings)
        moved = call(model, to_pixels(images), torch.from_numpy(labels), epsilons=size)[1]
        found: NDArray[np.float32] = moved.numpy()
        return found

    return attack


def _art(name: str, **settings: Any) -> Library:
    def attack(twin: Twin, images: Images, labels: Labels, seed: int) -> NDArray[np.float32]:
        from art.attacks import evasion
        from art.estimators.classification import PyTorchClassifier

        np.random.seed(seed)  # noqa: NPY002  (ART draws from the global state)
        pixels = to_pixels(images)
        with torch.no_grad():
            classes = twin.logits(pixels[:1]).shape[1]
        model = PyTorchClassifier(
            TwinModule(twin).eval(),
            loss=nn.CrossEntropyLoss(),
            input_shape=tuple(pixels.shape[1:]),
            nb_classes=classes,
            clip_values=(0.0, 1.0),
            device_type="cpu",
        )
        call = getattr(evasion, name)(estimator=model, **settings)
        found: NDArray[np.float32] = call.generate(pixels.numpy(), np.eye(classes)[labels])
        return found

    return attack


if __name__ == "__main__":
    main()
