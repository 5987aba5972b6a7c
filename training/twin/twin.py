"""A differentiable copy of the production model. N images, K classes.

Attacks live in pixel space: floats in [0, 1], (N, C, H, W), RGB. The twin applies the model's input
specification inside, so no attack knows of normalisation or layout.
"""

from pathlib import Path
from typing import cast

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from reluguard.detector.errors import did_you_mean
from reluguard.detector.images import Images, InputSpec
from reluguard.detector.model import Production, load_production
from reluguard.detector.runtime import in_batches
from reluguard.detector.session import at_once, open_session
from reluguard.training.errors import TwinError
from reluguard.training.lent import Lent, lent_module
from reluguard.training.twin.agreement import difference, unit_of
from reluguard.training.twin.direction import Scorer, lead_slope, no_gradient

__all__ = ["Twin", "check_twin", "from_pixels", "in_order", "load_twin", "to_pixels"]

_SAMPLE = 32
_HALF_SAMPLE = 8
_GRADIENT_SAMPLE = 16
_HALF_COSINE = 0.9  # .97 for ResNet-20; below it attacks would begin to lose


class Twin:
    """The model in torch, in evaluation mode, its parameters frozen.

    Args:
        module: takes the model's own input tensor (of `spec`'s layout and range, as float32) and
            returns class scores of shape (N, K).
        spec: how images go into the model.
        device: where it runs; by default CUDA if there is a device, else CPU.
        half: whether `rough_logits` may multiply in bfloat16.
    """

    def __init__(
        self,
        module: nn.Module,
        spec: InputSpec,
        *,
        device: torch.device | str | None = None,
        half: bool = False,
    ) -> None:
        self.spec = spec
        self.half = half
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.module = module.to(self.device).eval().requires_grad_(False)
        shape = (1, -1, 1, 1)
        self._mean = torch.tensor(spec.mean, device=self.device).reshape(shape)
        self._std = torch.tensor(spec.std, device=self.device).reshape(shape)

    def logits(self, pixels: Tensor) -> Tensor:
        """Return class scores before any softmax: float32, (N, K), differentiable.

        Args:
            pixels: float32, (N, C, H, W), RGB or grey, in [0, 1], on the twin's device.
        """
        batch = self.spec.batch
        if batch is None or batch == len(pixels):
            return self._forward(pixels)
        missing = -len(pixels) % batch
        padded = torch.cat([pixels, pixels[-1:].expand(missing, -1, -1, -1)])
        parts = [self._forward(part) for part in padded.split(batch)]
        return torch.cat(parts)[: len(pixels)]

    def rough_logits(self, pixels: Tensor) -> Tensor:
        """Return class scores that are good enough for the gradients of an attack of many steps.

        With `half`, products are of bfloat16: 1.9 times as fast, there and back, on a processor
        that has them (ResNet-20), and PGD, APGD, sparse and patch attacks succeed as often.

        Args:
            pixels: as for `logits`.
        """
        return self.half_logits(pixels) if self.half else self.logits(pixels)

    def half_logits(self, pixels: Tensor) -> Tensor:
        """Return class scores whose products are of bfloat16: float32, (N, K)."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            return self.logits(pixels)

    def _forward(self, pixels: Tensor) -> Tensor:
        spec = self.spec
        # The same arithmetic as InputSpec.to_tensor. A model of raw pixels gets 0 to 255.
        x = pixels if spec.scale == 1 / 255 else pixels * (255 * spec.scale)
        if set(spec.mean) != {0.0} or set(spec.std) != {1.0}:
            x = (x - self._mean) / self._std
        if spec.bgr:
            x = x.flip(1)
        if spec.layout == "NHWC":
            x = x.permute(0, 2, 3, 1)
        elif spec.layout == "flat":
            x = x.reshape(len(x), -1)
        else:
            x = x.contiguous(memory_format=torch.channels_last)
        return cast("Tensor", self.module(x)).float()

    def predict(self, images: Images) -> NDArray[np.float32]:
        """Return class scores of uint8 images of shape (N, H, W, C): float32, (N, K)."""
        pixels = to_pixels(images, self.device)
        with torch.no_grad():
            parts = [self.logits(part) for part in pixels.split(at_once(pixels.shape[1:]))]
        return cast("NDArray[np.float32]", torch.cat(parts).cpu().numpy())


def to_pixels(images: Images, device: torch.device | str = "cpu") -> Tensor:
    """Return uint8 images (N, H, W, C) as float32 pixels (N, C, H, W) in [0, 1]."""
    # a copy: torch warns of arrays that can't be written to, as those mapped from a file
    return torch.tensor(images).to(device).permute(0, 3, 1, 2).contiguous() / 255


def from_pixels(pixels: Tensor) -> Images:
    """Return whole pixels (N, C, H, W), uint8, as images (N, H, W, C)."""
    return np.ascontiguousarray(pixels.permute(0, 2, 3, 1).cpu().numpy())


def load_twin(
    model: Path | str,
    spec: InputSpec,
    how: str = "auto",
    *,
    images: Images,
    output: str | None = None,
    tolerance: float = 1e-3,
    device: torch.device | str | None = None,
) -> Twin | None:
    """Return the model's twin, proved to answer as the model does, or None for `none`.

    Args:
        model: the production ONNX file.
        spec: how images go into the model.
        how: `auto` builds it from the ONNX file; `package.module:function` calls your function of
            no arguments, which returns a torch module taking the model's own input tensor, or names
            such a module; `none` goes without, which leaves the attacks that need no gradients.
        images: uint8, (N, H, W, C), a sample to compare answers on; the first 32 are used.
        output: which output holds the class scores, where the model has several.
        tolerance: largest difference in scores, as a share of the largest score. A model that
            rounds to 8 or 16 bits is allowed what its rounding can do; see `agreement`.
        device: where the twin runs; by default CUDA if there is a device.

    Raises:
        TwinError: it can't be built, differs from the model by more than the tolerance, or has no
            gradient that leads anywhere.
        ModelError: the model can't be read or run.
    """
    if how == "none":
        return None
    production = load_production(model, output=output)
    if how == "auto":
        from reluguard.training.twin.onnx_torch import OnnxModule

        module: nn.Module = OnnxModule(production.proto, production.logits)
    else:
        module = in_order(lent_module(_lent(how)), spec)
    twin = Twin(module, spec, device=device)
    _check(twin, production, how, images[:_SAMPLE], tolerance)
    twin.half = half_serves(twin, images[:_HALF_SAMPLE])
    return twin


def in_order(module: nn.Module, spec: InputSpec) -> nn.Module:
    """Return a module that takes what `Twin` gives it: channels last in memory, for speed.

    That is itself, unless it fails there, as one does whose code takes a view of its input or of
    what a convolution makes of it: then one that first brings it into the usual order.

    Args:
        module: takes the model's own input tensor.
        spec: how images go in.
    """
    if spec.layout != "NCHW":
        return module
    given = torch.zeros(spec.batch or 2, *spec.tensor_shape)
    first = next(module.parameters(), given)
    given = given.to(first.device).clone(memory_format=torch.channels_last)
    try:
        with torch.no_grad():
            module(given)
    except RuntimeError:
        return _InOrder(module)
    except Exception:  # noqa: BLE001 - theirs: who runs it next says what and where
        return module
    return module


class _InOrder(nn.Module):
    """A module that gets its input in the usual order in memory."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._module = module

    def forward(self, tensor: Tensor) -> Tensor:
        """Return what the module returns."""
        return cast("Tensor", self._module(tensor.clone(memory_format=torch.contiguous_format)))


def half_serves(twin: Twin, images: Images) -> bool:
    """Return whether the processor has bfloat16 and gradients in it point where they should.

    Args:
        twin: of the network.
        images: uint8, (N, H, W, C), a few.
    """
    return _has_bfloat16(twin.device) and _half_will_do(twin, images)


def _has_bfloat16(device: torch.device) -> bool:
    """Return whether the processor multiplies bfloat16 itself; emulated it is slower."""
    known: dict[str, object] = getattr(
        torch.cpu, "get_capabilities", dict
    )()  # newer than the oldest torch we take
    return device.type == "cpu" and any(known.get(k) for k in ("avx512_bf16", "amx_bf16"))


def _half_will_do(twin: Twin, images: Images) -> bool:
    """Return whether gradients in bfloat16 point where those in float32 do."""
    pixels = to_pixels(images, twin.device)
    try:
        exact, rough = (lead_slope(scores, pixels) for scores in (twin.logits, twin.half_logits))
    except (RuntimeError, TypeError, ValueError, TwinError):
        return False  # a module that fixes its types
    cosines = nn.functional.cosine_similarity(exact.flatten(1), rough.flatten(1))
    return bool(cosines.median() >= _HALF_COSINE)


def check_twin(how: str) -> None:
    """Raise TwinError unless `load_twin` knows what is meant, and finds what is lent."""
    if how not in {"auto", "none"}:
        _lent(how).find()


def _lent(how: str) -> Lent:
    if ":" not in how:
        raise TwinError(
            f"expected a twin of auto, none or package.module:function, got {how!r}"
            f"{did_you_mean(how, ('auto', 'none'))}"
        )
    return Lent(how, "twin", TwinError)


def _check(twin: Twin, production: Production, how: str, images: Images, tolerance: float) -> None:
    """Raise TwinError unless the twin answers as the model does and has a gradient to follow."""
    score = _scorer(production, twin.spec)
    wanted = score(images)
    try:
        found = twin.predict(images)
    except Exception as error:
        if how != "auto":  # their code: any error may come out of it
            raise Lent(how, "twin", TwinError).refused(
                error, f", given an input of shape {twin.spec.tensor_shape} per image"
            ) from error
        if not isinstance(error, RuntimeError | TypeError | ValueError):
            raise
        raise TwinError(f"the twin {how} failed to run: {error}") from error
    if found.shape == (len(wanted), 1) and wanted.shape[1] == 2:
        found = _as_two(twin, production, found, wanted, images)
    if found.shape != wanted.shape:
        raise TwinError(
            f"expected the twin {how} to return scores of shape {wanted.shape}, got {found.shape}"
        )
    unit = unit_of(production.proto)
    ending = "" if how == "auto" else production.ending
    unoptimised = _scorer(production, twin.spec, optimise=False)(images) if unit else None
    apart = difference(
        found, wanted, unit=unit, tolerance=tolerance, ending=ending, unoptimised=unoptimised
    )
    if not apart.is_small:
        raise TwinError(
            f"expected the twin {how} to answer as the model within {apart.allowed:.3g} "
            f"{apart.what}, got a difference of {apart.size:.3g}: check that it holds the same "
            "weights, is in evaluation mode and takes the same input, or lend the model's own code "
            "with a twin of package.module:function"
        )
    few = images[:_GRADIENT_SAMPLE]
    wrong = no_gradient(twin.logits, score, few, to_pixels(few, twin.device))
    if wrong is not None:
        raise TwinError(
            f"the twin {how} has no gradient that attacks can follow: {wrong}. Lend one with "
            "--twin yourmodule:function, whose rounding lets gradients through, or go without by "
            "--twin none"
        )


def _scorer(production: Production, spec: InputSpec, *, optimise: bool = True) -> Scorer:
    """Return the model's class scores before any softmax, of images."""
    proto, name = production.proto, production.logits
    if name not in {value.name for value in proto.graph.output}:
        proto = onnx.ModelProto()
        proto.CopyFrom(production.proto)
        proto.graph.output.append(onnx.ValueInfoProto(name=name))
    session = open_session(proto, optimise=optimise)

    def score(images: Images) -> NDArray[np.float32]:
        scores = in_batches(session, spec, spec.to_tensor(images), [name])[0]
        return scores.astype(np.float32)

    return score


class _Pair(nn.Module):
    """A lent module of one output as one of two classes."""

    def __init__(self, module: nn.Module, *, is_probability: bool) -> None:
        super().__init__()
        self._module, self._is_probability = module, is_probability

    def forward(self, tensor: Tensor) -> Tensor:
        """Return (N, 2): half the score against the first class and half for the second."""
        score = cast("Tensor", self._module(tensor)).reshape(-1, 1)
        score = torch.logit(score, 1e-7) if self._is_probability else score
        return torch.cat([-score / 2, score / 2], dim=1)


def _as_two(
    twin: Twin,
    production: Production,
    found: NDArray[np.float32],
    wanted: NDArray[np.float32],
    images: Images,
) -> NDArray[np.float32]:
    """Let the twin give two classes, whether it was lent with its sigmoid or without."""
    likely = bool(production.ending) and ((found >= 0) & (found <= 1)).all()
    module = twin.module
    tried = []
    for is_probability in (False, True) if likely else (False,):
        twin.module = _Pair(module, is_probability=is_probability)
        scores = twin.predict(images)
        tried.append((float(np.abs(scores - wanted).max()), is_probability, scores))
    _, is_probability, best = min(tried, key=lambda one: one[0])
    twin.module = _Pair(module, is_probability=is_probability)
    return best
