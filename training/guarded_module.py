"""A guard on a torch module: the owner's own module answers, and its gates are read as it does.

The pass is the module's, on its device, with its outputs untouched. A guard names its taps by
tensors of the ONNX file it was fitted to, so the module's calls of Relu, GELU and their like are
matched to them by what they say of the guard's golden inputs: each tap gets the call whose firing
rates are the golden ones. The golden replay then has the last word, so a module that is not the
fitted model, or whose gates can't be seen, is refused when it is wrapped and never guarded wrongly.
N images.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from reluguard.detector.artifact import GuardArtifact, read_guard
from reluguard.detector.head import threshold_at
from reluguard.detector.images import Images
from reluguard.detector.probe import check_golden
from reluguard.detector.signature import vouched
from reluguard.detector.taps import Tap
from reluguard.detector.verdict import Verdicts
from reluguard.training.errors import TwinError

__all__ = ["GuardedModule"]

# What a gate is in torch, below whatever module or function called it.
_GATES = {
    "relu", "relu_", "leaky_relu", "leaky_relu_", "_prelu_kernel", "hardtanh", "hardtanh_",
    "clamp", "clamp_", "clamp_min", "clamp_min_", "threshold", "threshold_", "maximum",
    "rrelu_with_noise", "gelu", "gelu_", "silu", "silu_", "hardswish", "hardswish_", "mish",
    "mish_", "elu", "elu_", "celu", "celu_", "selu", "selu_", "softplus",
    # the last operators of those that people spell themselves
    "mul", "mul_", "div", "where", "minimum", "sub", "add",
}  # fmt: skip
_TOLERANCE = 0.02  # of a firing rate, on average: other kernels flip a few bits next to zero
_Call = tuple[int, bool]  # the how-manieth gate of a pass, and whether its input is meant


class GuardedModule:
    """A torch classifier that says of each image how likely it is an adversarial example.

    Args:
        module: takes the model's own input tensor; its parameters' device is where it runs. It is
            put into evaluation mode.
        guard: the guard's folder, fitted to the ONNX export of this module.
        logits: finds the class scores before any softmax, (N, K), in what the module returns.
        fpr: false-positive rate of the verdicts; the guard's own by default.
        public_key: PEM, an Ed25519 public key the guard must be signed for.

    Raises:
        TwinError: a tap is not among the gates this module calls.
        GuardError: the guard is damaged, or the module does not say what the fitted model said.

    Example:
        >>> guarded = GuardedModule(network, "guards/r20")  # doctest: +SKIP
        >>> verdict = guarded(images)[0]  # doctest: +SKIP
        >>> verdict.prediction, verdict.is_adversarial  # doctest: +SKIP
        (3, False)
    """

    def __init__(
        self,
        module: nn.Module,
        guard: Path | str,
        *,
        logits: Callable[[Any], Tensor] = lambda output: output,
        fpr: float | None = None,
        public_key: Path | str | None = None,
    ) -> None:
        vouch = None if public_key is None else vouched(guard, Path(public_key))
        self.artifact = read_guard(guard, vouch=vouch)
        self.module = module.eval()
        self._logits = logits
        self._head = self.artifact.head
        self._fpr = fpr or self.artifact.manifest.fpr
        self.threshold = threshold_at(self._fpr, self._head.clean_scores)
        first = next(module.parameters(), None)
        self._device = torch.device("cpu") if first is None else first.device
        golden = self.artifact.golden
        self._calls = self._match(self.artifact)
        check_golden(golden, self(golden.images))

    def __call__(self, images: Images | Tensor) -> Verdicts:
        """Return prediction and verdict on images, or on what the module itself takes.

        `outputs` of the verdicts holds the class scores under the name the ONNX model has for them.

        Args:
            images: an array of whole pixels, uint8 (N, H, W, C); or a tensor, which goes into the
                module as it is: of its own type and shape, normalised as it wants it.

        Raises:
            ImageError: dtype, rank or size of an array is not the model's.
        """
        tensor = images if isinstance(images, Tensor) else self.tensor(images)
        with torch.no_grad():
            return self.run(tensor)[1]

    def tensor(self, images: Images) -> Tensor:
        """Return the model's own input tensor for uint8 images, on the module's device."""
        array = np.array(self.artifact.manifest.input.to_tensor(images))  # torch wants its own
        return torch.from_numpy(array).to(self._device)

    def run(self, tensor: Tensor) -> tuple[Any, Verdicts]:
        """Return what the module returns, gradients and all, and the verdicts on the same pass."""
        reading = _Reading(wanted=self._calls)
        with reading:
            output = self.module(tensor)
        rates = torch.cat([reading.rates[i] for i in range(len(self._calls))], dim=1)
        scores = self._logits(output).detach().float().cpu().numpy()
        return output, self._verdicts(rates.float().cpu().numpy(), scores)

    def _verdicts(self, rates: NDArray[Any], scores: NDArray[np.float32]) -> Verdicts:
        found = self._head.score(rates, scores)
        return Verdicts(
            prediction=scores.argmax(axis=1),
            score=found.score,
            likelihood=found.likelihood,
            p_value=self._head.p_values(found.score, scores.argmax(axis=1)),
            is_adversarial=self._head.flags(found.score, scores.argmax(axis=1), self._fpr),
            evidence=found.evidence,
            outputs={self.artifact.manifest.answer: scores},
        )

    def _match(self, artifact: GuardArtifact) -> dict[_Call, list[tuple[int, Tap]]]:
        """Return which gates of a pass are which taps, found on the golden inputs."""
        taps = artifact.manifest.taps
        ends = np.cumsum([tap.rates for tap in taps])
        parts = np.split(artifact.golden.rates, ends[:-1], axis=1)
        matching = _Matching(taps=taps, golden=list(map(torch.tensor, parts)))
        with torch.no_grad(), matching:
            self.module(self.tensor(artifact.golden.images))
        calls: dict[_Call, list[tuple[int, Tap]]] = {}
        for i, (tap, (call, distance)) in enumerate(zip(taps, matching.best, strict=True)):
            if call is None or distance > _TOLERANCE:
                near = "none of its shape" if call is None else f"the nearest is {distance:.2g} off"
                raise TwinError(
                    f"expected a gate like the tap {tap.name!r} of shape {tap.shape} among the "
                    f"{matching.count} that the module calls, {near}: is this the fitted model, "
                    "uncompiled and unquantised?"
                )
            calls.setdefault(call, []).append((i, tap))
        return calls


@dataclass
class _Gates(TorchDispatchMode):
    """Sees each gate as it runs: subclasses take its input before and its output after."""

    count: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # torch left it bare

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run the operator, and let the gates among them be seen."""
        if func.overloadpacket.__name__ not in _GATES or not isinstance(args[0], Tensor):
            return func(*args, **(kwargs or {}))
        self.see((self.count, True), args[0])  # before it may be overwritten
        output = func(*args, **(kwargs or {}))
        self.see((self.count, False), output)
        self.count += 1
        return output

    def see(self, call: _Call, value: Tensor) -> None:
        """Take one tensor of one gate."""
        raise NotImplementedError


@dataclass
class _Matching(_Gates):
    """Finds the call that says of the golden inputs what each tap said."""

    taps: tuple[Tap, ...]
    golden: list[Tensor]
    best: list[tuple[_Call | None, float]] = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.best = [(None, float("inf"))] * len(self.taps)

    def see(self, call: _Call, value: Tensor) -> None:
        """Compare with every tap of this shape."""
        for i, tap in enumerate(self.taps):
            if tuple(value.shape[1:]) == tap.shape:
                found = _rates(value, tap).float().cpu()
                distance = float((found - self.golden[i]).abs().mean())
                if distance < self.best[i][1]:
                    self.best[i] = (call, distance)


@dataclass
class _Reading(_Gates):
    """Reads the firing rates of the calls that are taps."""

    wanted: dict[_Call, list[tuple[int, Tap]]]
    rates: dict[int, Tensor] = field(default_factory=dict, init=False)

    def see(self, call: _Call, value: Tensor) -> None:
        """Read the taps of this call."""
        for i, tap in self.wanted.get(call, ()):
            self.rates[i] = _rates(value, tap)


def _rates(value: Tensor, tap: Tap) -> Tensor:
    """Return a tap's firing rates: (N, rates of the tap). As `compile` writes them in ONNX."""
    value = value.detach()
    if tap.pooled:
        value = torch.nn.functional.max_pool2d(value, tap.strides, tap.strides, ceil_mode=True)
    elif tap.is_strided:
        down, right = tap.strides
        value = value[:, :, ::down, ::right]
    axes = [axis + 1 for axis in range(len(tap.shape)) if axis != tap.channel_axis]
    bits = [(value > level).to(torch.float32) for level in tap.levels]
    return torch.cat([bit.mean(dim=axes) if axes else bit for bit in bits], dim=1)
