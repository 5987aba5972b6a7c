"""Handwritten digits painted on photographs, and a small network that reads them. N images.

Handwriting and photographs are real and ship with scikit-learn: 1,797 digits of 8 x 8 pixels
(Alpaydin & Kaynak 1998), drawn smoothly at 64, over pieces of its two sample photographs. Digits
over photographs are from Ganin & Lempitsky 2015 (MNIST-M, arXiv 1409.7495); paint is mixed in here
so that people still read it. On black paper a digit takes a change that anyone sees; on a
photograph one that nobody does.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from reluguard.detector.artifact import write_file
from reluguard.detector.images import Images
from reluguard.training.attacks import FGSM, PGD, DeepFool
from reluguard.training.changes import JPEG, Brightness, GaussianNoise, SignNoise
from reluguard.training.changes.mixture import Mixture
from reluguard.training.data.dataset import Dataset, save_dataset
from reluguard.training.head.fit import HeadSettings
from reluguard.training.models.export import exported
from reluguard.training.progress import Progress
from reluguard.training.recipes.recipe import Portion, Recipe

__all__ = ["SIDE", "paint", "painted_recipe", "strokes", "train_and_export_painted"]

SIDE = 64
TRAIN_IMAGES = 700
_RIM = 8
_PAINT = 0.7  # how opaque
_EPOCHS = 20
_COATS = 10  # every digit on so many pieces of photographs, or training learns those by heart

Strokes = NDArray[np.float32]


def painted_recipe() -> Recipe:
    """Return what the demo's guard is fitted on: attacks nobody sees, and what pictures suffer."""
    return Recipe(
        name="painted",
        attacks=(
            Portion(FGSM(size=4.0)),
            Portion(FGSM(size=8.0)),
            Portion(PGD(size=4.0)),
            Portion(PGD(size=8.0)),
            Portion(DeepFool(), 0.5),
        ),
        benign=(
            Portion(Mixture("gaussian", tuple(GaussianNoise(sigma=s) for s in (2.0, 4.0))), 0.5),
            Portion(Mixture("sign", tuple(SignNoise(size=s) for s in (2.0, 4.0))), 0.5),
            Portion(Mixture("jpeg", tuple(JPEG(quality=q) for q in (90, 75))), 0.5),
            Portion(Mixture("brightness", tuple(Brightness(amount=a) for a in (-0.1, 0.1))), 0.5),
        ),
        head=HeadSettings(epochs=40, batch=128),
        fit=0.6,
        calibrate=0.22,
        test=0.18,
    )


def strokes() -> tuple[Strokes, NDArray[np.int64]]:
    """Return how much paint lies where, float32 (N, 64, 64) in [0, 1], and which digit it is."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    inner = SIDE - 2 * _RIM
    drawn = np.zeros((len(bunch.images), SIDE, SIDE), np.float32)
    for i, digit in enumerate(bunch.images):
        small = Image.fromarray((digit / 16).astype(np.float32))
        large = np.asarray(small.resize((inner, inner), Image.Resampling.BICUBIC))
        # a brush has an edge: what was half grey is drawn half as wide
        drawn[i, _RIM:-_RIM, _RIM:-_RIM] = 1 / (1 + np.exp(-12 * (large - 0.5)))
    return drawn, bunch.target.astype(np.int64)


def paint(drawn: Strokes, rng: np.random.Generator) -> Images:
    """Return each digit on a piece of a photograph, light paint on dark, dark on light.

    Args:
        drawn: (N, 64, 64), as `strokes` makes them.
        rng: chooses pieces and colours.

    Returns:
        uint8, (N, 64, 64, 3).
    """
    photographs = _photographs()
    painted = np.empty((*drawn.shape, 3), np.uint8)
    for i, one in enumerate(drawn):
        photograph = photographs[int(rng.integers(len(photographs)))]
        top, left = (int(rng.integers(size - SIDE)) for size in photograph.shape[:2])
        piece = photograph[top : top + SIDE, left : left + SIDE].astype(np.float32)
        if rng.random() < 0.5:
            piece = piece[:, ::-1]
        low, high = (0, 60) if piece.mean() > 128 else (195, 255)
        cover = _PAINT * one[..., None]
        painted[i] = np.rint(piece * (1 - cover) + rng.uniform(low, high, 3) * cover)
    return painted


@cache
def _photographs() -> Sequence[Images]:
    from sklearn.datasets import load_sample_images

    return [np.asarray(picture, np.uint8) for picture in load_sample_images().images]


def train_and_export_painted(out: Path, seed: int, progress: Progress) -> tuple[Path, Path]:
    """Return the exported network, and the file of painted digits that it was not trained on.

    Args:
        out: the folder for both, `digits.onnx` and `held-out.npz`.
        seed: of every random choice.
        progress: told of each epoch.
    """
    drawn, labels = strokes()
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(drawn))
    known, others = order[:TRAIN_IMAGES], order[TRAIN_IMAGES:]
    held = Dataset(images=paint(drawn[others], rng), labels=labels[others], source="painted digits")
    network = _trained(drawn[known], labels[known], rng, progress)
    model, held_out = out / "digits.onnx", out / "held-out.npz"
    write_file(model, exported(network, (3, SIDE, SIDE), source="the demo's network"))
    save_dataset(held, held_out)
    return model, held_out


def _trained(
    drawn: Strokes, labels: NDArray[np.int64], rng: np.random.Generator, progress: Progress
) -> torch.nn.Module:
    """Return a network of five ReLUs in evaluation mode."""
    progress.stage("train a small network", _EPOCHS)
    coats = [torch.from_numpy(paint(drawn, rng)).permute(0, 3, 1, 2) for _ in range(_COATS)]
    y = torch.from_numpy(labels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(2**31)))
        network = _network()
        optimiser = torch.optim.Adam(network.parameters())
        steps = _EPOCHS * -(-len(y) // 32)
        rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps)
        for epoch in range(_EPOCHS):
            x = coats[epoch % _COATS]
            for batch in torch.randperm(len(y)).split(32):
                loss = torch.nn.functional.cross_entropy(network(x[batch].float() / 255), y[batch])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                rate.step()
            progress.advance(1)
    return network.eval()


def _network() -> torch.nn.Sequential:
    layers: list[torch.nn.Module] = []
    before = 3
    for place, channels in enumerate((16, 32, 48, 64)):
        if place:
            layers.append(torch.nn.MaxPool2d(2))
        layers += [
            torch.nn.Conv2d(before, channels, 3, 1 if place else 2, padding=1, bias=False),
            torch.nn.BatchNorm2d(channels),
            torch.nn.ReLU(),
        ]
        before = channels
    flat = before * (SIDE // 16) ** 2
    layers += [
        torch.nn.Flatten(),
        torch.nn.Linear(flat, 64),
        torch.nn.ReLU(),
        torch.nn.Linear(64, 10),
    ]
    return torch.nn.Sequential(*layers)
