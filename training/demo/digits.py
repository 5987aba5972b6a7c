"""Scikit-learn's digits and a small network for them: what tests and benchmarks are quick with.

Real handwriting of 8 x 8 pixels (Alpaydin & Kaynak 1998).
"""

from pathlib import Path

import numpy as np
import torch

from reluguard.detector.artifact import write_file
from reluguard.training.data.dataset import Dataset, save_dataset
from reluguard.training.models.export import exported
from reluguard.training.progress import Progress

__all__ = ["digits", "train_and_export", "train_classifier"]

TRAIN_IMAGES = 600


def digits() -> Dataset:
    """Return scikit-learn's 1,797 digits as uint8 images (N, 8, 8, 1)."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    return Dataset(images=images, labels=bunch.target.astype(np.int64), source="sklearn digits")


def train_classifier(data: Dataset, *, seed: int, epochs: int = 25) -> torch.nn.Module:
    """Return a small convolutional network with four ReLUs, trained on these digits."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = torch.nn.Sequential(
            torch.nn.Conv2d(1, 24, 3, padding=1),
            torch.nn.ReLU(),
            torch.nn.Conv2d(24, 32, 3, padding=1),
            torch.nn.ReLU(),
            torch.nn.MaxPool2d(2),
            torch.nn.Conv2d(32, 48, 3, padding=1),
            torch.nn.ReLU(),
            torch.nn.Flatten(),
            torch.nn.Linear(48 * 16, 64),
            torch.nn.ReLU(),
            torch.nn.Linear(64, 10),
        )
        x = torch.from_numpy(data.images).permute(0, 3, 1, 2).float() / 255
        y = torch.from_numpy(data.labels)
        optimiser = torch.optim.Adam(network.parameters(), lr=2e-3)
        for _ in range(epochs):
            for batch in torch.randperm(len(x)).split(32):
                loss = torch.nn.functional.cross_entropy(network(x[batch]), y[batch])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
    return network.eval()


def train_and_export(out: Path, seed: int, progress: Progress) -> tuple[Path, Path]:
    """Return the exported classifier and the file of digits it was not trained on."""
    progress.stage("train and export", 1)
    data = digits()
    order = np.random.default_rng(seed).permutation(len(data))
    parts = [
        Dataset(images=data.images[rows], labels=data.labels[rows], source=data.source)
        for rows in (order[:TRAIN_IMAGES], order[TRAIN_IMAGES:])
    ]
    network = train_classifier(parts[0], seed=seed)
    model, held_out = out / "digits.onnx", out / "held-out.npz"
    write_file(model, exported(network, (1, 8, 8), source="the demo's network"))
    save_dataset(parts[1], held_out)
    progress.advance(1)
    return model, held_out
