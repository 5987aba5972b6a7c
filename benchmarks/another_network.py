"""Train a small network unlike a ResNet, to guard it: the recipe must hold there too.

    python benchmarks/another_network.py --data train.npz --out model.onnx

Five 3 x 3 convolutions with batch norm, two max pools, two linear layers; no skip connection.
The figures of docs/measured.md for Fashion-MNIST are of such a network (four epochs, 55,000
images, seed 0) and of

    reluguard fit --model model.onnx --data fit.npz --out guard
    reluguard evaluate --model model.onnx --guard guard --data fresh.npz --trained-on train.npz
        --out evaluation --limit 300 --matrix-rows 0

with 6,000 and 4,994 other images, the fresh ones no copies of any.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from reluguard.detector.artifact import write_file
from reluguard.training.data.dataset import Dataset, load_data
from reluguard.training.progress import Bars

BATCH = 128


def network(channels: int, classes: int) -> torch.nn.Sequential:
    """Return it untrained: (N, C, H, W) in [0, 1] to logits (N, K)."""

    def block(taken: int, given: int) -> list[torch.nn.Module]:
        convolution = torch.nn.Conv2d(taken, given, 3, padding=1, bias=False)
        return [convolution, torch.nn.BatchNorm2d(given), torch.nn.ReLU()]

    return torch.nn.Sequential(
        *block(channels, 32), *block(32, 32), torch.nn.MaxPool2d(2),
        *block(32, 64), *block(64, 64), torch.nn.MaxPool2d(2),
        *block(64, 128), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
        torch.nn.Linear(128, 64), torch.nn.ReLU(), torch.nn.Linear(64, classes),
    )  # fmt: skip


def train(data: Dataset, *, epochs: int, seed: int) -> torch.nn.Sequential:
    """Return it trained: SGD with one cycle of the learning rate, half of the images mirrored."""
    torch.manual_seed(seed)
    labels = torch.from_numpy(data.labels)
    made = network(data.images.shape[3], int(labels.max()) + 1)
    steps = len(labels) // BATCH
    optimiser = torch.optim.SGD(
        made.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.1, total_steps=epochs * steps)
    with Bars() as progress:
        progress.stage("training", epochs * steps)
        for _ in range(epochs):
            order = torch.randperm(len(labels))
            for rows in order[: steps * BATCH].split(BATCH):
                x = tensor(data.images[rows.numpy()])
                x = x.flip(3) if torch.rand(()) < 1 / 2 else x
                with torch.autocast("cpu", torch.bfloat16):
                    loss = torch.nn.functional.cross_entropy(made(x), labels[rows])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
                progress.advance(1)
    return made.eval()


def tensor(images: NDArray[np.uint8]) -> torch.Tensor:
    """Return images (N, H, W, C) as the network takes them."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255


def main() -> None:
    """Train and export."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="labelled images, as `reluguard fit` has it")
    parser.add_argument("--out", type=Path, required=True, help="the ONNX file to write")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    data = load_data(options.data)
    made = train(data, epochs=options.epochs, seed=options.seed)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        torch.onnx.export(
            made, (tensor(data.images[:2]),), file, input_names=["image"],
            output_names=["logits"], dynamic_axes={"image": {0: "n"}, "logits": {0: "n"}},
            dynamo=False, opset_version=17,
        )  # fmt: skip
        write_file(options.out, file.read_bytes())


if __name__ == "__main__":
    main()
