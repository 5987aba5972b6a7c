"""A small CNN trained on scikit-learn's digits, as an ONNX file, its twin and a surrogate's."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from reluguard.detector.artifact import GuardArtifact
from reluguard.detector.images import Images, InputSpec
from reluguard.training.attacks import FGSM, PGD, Square, Victim, open_victim
from reluguard.training.changes import GaussianNoise
from reluguard.training.changes.mixture import Mixture
from reluguard.training.data.dataset import Dataset, save_dataset
from reluguard.training.head.fit import HeadSettings
from reluguard.training.recipes import Portion, Recipe
from reluguard.training.twin.twin import Twin, load_twin
from tests.training.fitting import Order

SPEC = InputSpec(name="image", height=8, width=8, channels=1)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def digits() -> Dataset:
    """scikit-learn's digits in 8-bit steps: 1,797 grey images of 8 x 8, in random order."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    pixels = np.rint(images.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    return Dataset(images=pixels[order], labels=labels[order].astype(np.int64), source="digits")


def trained(data: Dataset, *, units: int, seed: int) -> nn.Sequential:
    """Return two convolutions and a linear layer, trained for a second or two."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(1, units, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(units, 2 * units, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * units, int(data.labels.max()) + 1),
        )
        x = torch.from_numpy(data.images).permute(0, 3, 1, 2).float() / 255
        y = torch.from_numpy(data.labels)
        optimiser = torch.optim.Adam(net.parameters(), lr=5e-3)
        for _ in range(6):
            for rows in torch.randperm(len(y)).split(64):
                optimiser.zero_grad()
                nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
                optimiser.step()
    return net.eval()


def save_network(net: nn.Sequential, path: Path) -> Path:
    """Write the network's ONNX file."""
    weights = {f"t{i}": p.detach().numpy() for i, p in enumerate(net.parameters())}
    nodes = [
        helper.make_node("Conv", ["image", "t0", "t1"], ["c1"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "t2", "t3"], ["c2"], pads=[1] * 4, strides=[2, 2]),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("Flatten", ["r2"], ["flat"]),
        helper.make_node("Gemm", ["flat", "t4", "t5"], ["logits"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", len(weights["t5"])])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)
    return path


@pytest.fixture(scope="session")
def digits_model(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ONNX file of a CNN that knows digits, trained on all but the first 300."""
    train = digits.take(np.arange(300, len(digits)))
    path = tmp_path_factory.mktemp("digits") / "digits.onnx"
    return save_network(trained(train, units=8, seed=0), path)


@pytest.fixture(scope="session")
def parity(digits: Dataset) -> Dataset:
    """The digits in two classes: even and odd."""
    return replace(digits, labels=digits.labels % 2)


@pytest.fixture(scope="session")
def parity_model(parity: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ONNX file of a CNN of two outputs that knows odd from even."""
    train = parity.take(np.arange(300, len(parity)))
    path = tmp_path_factory.mktemp("parity") / "parity.onnx"
    return save_network(trained(train, units=8, seed=0), path)


@pytest.fixture(scope="session")
def digits_spec() -> InputSpec:
    """How digits go into the models."""
    return SPEC


@pytest.fixture(scope="session")
def digits_victim(
    digits: Dataset, digits_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Victim:
    """The digits model under attack, with its twin and a surrogate of another seed and width."""
    train = digits.take(np.arange(300, len(digits)))
    other = tmp_path_factory.mktemp("surrogate") / "surrogate.onnx"
    save_network(trained(train, units=6, seed=1), other)
    twins = [twin_of(path, digits.images[:8]) for path in (digits_model, other)]
    return open_victim(digits_model, SPEC, twin=twins[0], surrogates=(twins[1],), threads=1)


def twin_of(path: Path, images: Images) -> Twin:
    """Return the twin of a digits model."""
    twin = load_twin(path, SPEC, images=images, device="cpu")
    assert twin is not None
    return twin


@pytest.fixture(scope="session")
def graph_model() -> Callable[..., onnx.ModelProto]:
    """`graph_of`: builds a model of given nodes from one float input."""
    return graph_of


def graph_of(
    nodes: list[onnx.NodeProto],
    shape: tuple[int | str, ...],
    *,
    output: str = "y",
    weights: dict[str, np.ndarray] | None = None,
    opset: int = 17,
    rank: int | None = None,
) -> onnx.ModelProto:
    """Return a model from `image` of this shape to one output, weights given by name."""
    free = None if rank is None else [None] * rank
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, free)],
        [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(
        graph, opset_imports=opsets, ir_version=min(10, 9 if opset < 21 else 10)
    )


@pytest.fixture(scope="session")
def digits_file(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The npz of the 300 digits that the model was not trained on."""
    path = tmp_path_factory.mktemp("unseen") / "unseen.npz"
    save_dataset(digits.take(np.arange(300)), path)
    return path


@pytest.fixture(scope="session")
def brief_recipe() -> Recipe:
    """A recipe of a second: attacks with and without gradients, and one harmless change."""
    return Recipe(
        name="brief",
        attacks=(
            Portion(FGSM(size=48.0)),
            Portion(PGD(size=24.0, steps=4), 0.5),
            Portion(Square(size=56.0, most_queries=40), 0.6),
        ),
        benign=(Portion(Mixture("noise", tuple(GaussianNoise(sigma=s) for s in (4.0, 16.0)))),),
        then=(Portion(GaussianNoise(sigma=3.0), 0.5, weight=0.5),),
        head=HeadSettings(units=16, epochs=6, batch=64),
        fit=0.5,
        calibrate=0.3,
        test=0.2,
    )


@pytest.fixture(scope="session")
def fit_settings(
    digits_model: Path,
    digits_file: Path,
    brief_recipe: Recipe,
    tmp_path_factory: pytest.TempPathFactory,
) -> Order:
    """What `fitted` was asked for; its work folder is kept."""
    return Order(
        model=digits_model,
        data=str(digits_file),
        out=tmp_path_factory.mktemp("fitted") / "guard",
        recipe=brief_recipe,
        threads=1,
        workers=1,
    )


@pytest.fixture(scope="session")
def fitted(fit_settings: Order) -> GuardArtifact:
    """A guard fitted on digits by the brief recipe."""
    return fit_settings.run()
