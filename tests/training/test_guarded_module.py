"""A torch module with a guard: its own pass, its own outputs, the guard's verdicts.

Rates agree with ONNX Runtime's but for bits next to zero, so scores do within SCORE_TOLERANCE.
"""

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import reluguard
from reluguard.detector.artifact import read_guard
from reluguard.detector.errors import GuardError
from reluguard.detector.images import Images
from reluguard.detector.runtime import Guard
from reluguard.training.errors import TwinError
from reluguard.training.guarded_module import GuardedModule

SCORE_TOLERANCE = 0.05
SHAPE = (12, 12, 3)


class Residual(nn.Module):
    """One Relu module called twice, one of them overwritten, a functional one and an unused one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.relu = nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        self.unused, self.last = nn.ReLU6(), nn.Linear(1152, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores."""
        y = self.relu(self.norm(self.first(x)))
        z = functional.relu(self.second(y))
        z += y  # over what was a gate's output
        scores: Tensor = self.last(self.relu(z - 0.3).flatten(1))
        return scores


def kinds() -> nn.Module:
    """Every other kind of gate."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.LeakyReLU(0.1), nn.Conv2d(8, 8, 3), nn.ReLU6(),
        nn.Conv2d(8, 8, 3), nn.PReLU(8), nn.Conv2d(8, 8, 3), nn.Hardtanh(0.0, 2.0),
        nn.Flatten(), nn.Linear(128, 16), nn.ReLU(), nn.Linear(16, 5),
    )  # fmt: skip


class Spelled(nn.Module):
    """A SiLU as people write it themselves."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x where that is large."""
        return x * torch.sigmoid(x)


def smooth() -> nn.Module:
    """Gates that have no kink."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.GELU(), nn.Conv2d(8, 8, 3), nn.SiLU(inplace=True),
        nn.Conv2d(8, 8, 3), nn.Hardswish(), nn.Conv2d(8, 8, 3), Spelled(), nn.Flatten(),
        nn.Linear(128, 16), nn.Mish(), nn.Linear(16, 16), nn.ELU(), nn.Linear(16, 16),
        nn.Softplus(), nn.Linear(16, 5),
    )  # fmt: skip


def built(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = make().eval()
        for part in module.modules():
            if isinstance(part, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(part.weight)
                last = part
            if isinstance(part, nn.BatchNorm2d):
                nn.init.normal_(part.get_buffer("running_mean"), 0, 0.3)
                nn.init.uniform_(part.get_buffer("running_var"), 0.5, 2)
        with torch.no_grad():  # else one class wins always
            last.bias -= module(torch.rand(64, 3, 12, 12)).mean(dim=0)
    return module


Fitted = tuple[nn.Module, Path, Path]


@pytest.fixture(
    scope="module", params=[Residual, kinds, smooth], ids=["residual", "kinds", "smooth"]
)
def fitted(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    make_guard: Callable[..., Path],
) -> Fitted:
    """A module, its ONNX export and a guard fitted to that."""
    module = built(request.param)
    path = tmp_path_factory.mktemp("fitted") / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own future
        torch.onnx.export(
            module, (torch.rand(2, 3, 12, 12),), path, dynamo=False, opset_version=17,
            input_names=["image"], output_names=["logits"],
            dynamic_axes={"image": {0: "N"}, "logits": {0: "N"}},
        )  # fmt: skip
    return module, path, make_guard(path, path.parent / "guard", image_shape=SHAPE)


@pytest.fixture(scope="module")
def pictures(make_images: Callable[..., Images]) -> Images:
    return make_images(40, size=12, channels=3, seed=5)


def test_it_says_what_the_guard_says(fitted: Fitted, pictures: Images) -> None:
    """Predictions, scores, verdicts and evidence are those of the guarded ONNX model."""
    module, path, folder = fitted
    guarded = GuardedModule(module, folder)
    guard = Guard.open(path, folder, threads=1)
    ours, theirs = guarded(pictures), guard.inspect(pictures)
    np.testing.assert_array_equal(ours.prediction, theirs.prediction)
    np.testing.assert_allclose(ours.score, theirs.score, atol=SCORE_TOLERANCE)
    np.testing.assert_allclose(ours.evidence, theirs.evidence, atol=SCORE_TOLERANCE)
    clear = np.abs(theirs.score - guard.threshold) > SCORE_TOLERANCE
    np.testing.assert_array_equal(ours.is_adversarial[clear], theirs.is_adversarial[clear])
    assert clear.mean() > 0.8
    assert len(set(ours.prediction)) > 1
    assert reluguard.GuardedModule is GuardedModule


@pytest.mark.parametrize("fitted", [kinds], indirect=True, ids=["kinds"])
def test_the_module_s_own_output_is_untouched(fitted: Fitted, pictures: Images) -> None:
    """Bit for bit what it returns alone, and gradients flow through it as ever."""
    module, _, folder = fitted
    guarded = GuardedModule(module, folder)
    x = guarded.tensor(pictures[:6]).requires_grad_()
    output, verdicts = guarded.run(x)
    assert torch.equal(output, module(x.detach()))
    np.testing.assert_array_equal(verdicts.prediction, output.argmax(dim=1).numpy())
    (gradient,) = torch.autograd.grad(output.sum(), x)
    assert gradient.abs().sum() > 0
    alone = guarded(pictures[:6])
    np.testing.assert_array_equal(alone.score, verdicts.score)


def test_a_scripted_module_is_seen_through(fitted: Fitted, pictures: Images) -> None:
    """Gates are seen below the module's language."""
    module, _, folder = fitted
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is on its way out
        scripted = torch.jit.script(module)
        found = GuardedModule(scripted, folder)(pictures)
    np.testing.assert_allclose(
        found.score, GuardedModule(module, folder)(pictures).score, atol=SCORE_TOLERANCE
    )


@pytest.mark.parametrize("fitted", [Residual], indirect=True, ids=["residual"])
def test_another_module_is_refused(fitted: Fitted) -> None:
    """Other weights, other gates, no gates: never guarded wrongly."""
    module, _, folder = fitted
    with pytest.raises(TwinError, match=r"a gate like the tap .* is this the fitted model"):
        GuardedModule(built(Residual, seed=1), folder)
    smooth = built(lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.GELU(), nn.Flatten(),
                                         nn.Linear(800, 5)))  # fmt: skip
    with pytest.raises(TwinError, match="among the 1 that the module calls, none of its shape"):
        GuardedModule(smooth, folder)
    with pytest.raises(GuardError, match="golden replay failed"):
        GuardedModule(module, folder, logits=lambda output: -output)


def test_class_scores_are_found_where_the_caller_says(fitted: Fitted, pictures: Images) -> None:
    """A module that returns more than scores is told where they are."""
    module, _, folder = fitted

    class Wrapped(nn.Module):
        """Returns a dictionary."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            """Return the scores by name."""
            return {"scores": self.inner(x), "shape": torch.tensor(x.shape)}

    guarded = GuardedModule(Wrapped(), folder, logits=lambda output: output["scores"])
    output, verdicts = guarded.run(guarded.tensor(pictures[:4]))
    assert set(output) == {"scores", "shape"}
    np.testing.assert_array_equal(verdicts.prediction, output["scores"].argmax(dim=1).numpy())


def test_the_guard_was_fitted_to_real_gates(fitted: Fitted) -> None:
    """The networks above have the gates they claim to have."""
    _, _, folder = fitted
    ops = {tap.op for tap in read_guard(folder).manifest.taps}
    kinked, smooth = {"LeakyRelu", "PRelu", "Clip"}, {"Gelu", "Silu", "Mish", "Elu", "Softplus"}
    assert kinked <= ops or smooth <= ops or ops == {"Relu"}


@pytest.mark.parametrize("fitted", [kinds], indirect=True, ids=["kinds"])
def test_it_takes_tensors_as_the_module_does(fitted: Fitted, pictures: Images) -> None:
    """The module's own input gives the verdicts of the images that it was made of."""
    module, _, folder = fitted
    guarded = GuardedModule(module, folder)
    tensor = torch.from_numpy(pictures[:9]).permute(0, 3, 1, 2).float() / 255
    found, wanted = guarded(tensor), guarded(pictures[:9])
    np.testing.assert_array_equal(found.score, wanted.score)
    np.testing.assert_array_equal(found.prediction, module(tensor).argmax(dim=1).numpy())
