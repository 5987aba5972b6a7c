"""One request's way through the server, whatever its protocol: decode, queue, model, policy."""

import asyncio
import math
import secrets
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.captures import Raw
from reluguard.detector.errors import ImageError, ImageTooLargeError
from reluguard.detector.images import InputSpec, decode_image
from reluguard.service.captures.capture import Capture
from reluguard.service.decoding.decoders import Decoders
from reluguard.service.decoding.weight import weigh
from reluguard.service.edge import Call, request_id
from reluguard.service.errors import OverloadedError, RequestError
from reluguard.service.models.batching import Answer
from reluguard.service.models.models import Model
from reluguard.service.models.version import Version
from reluguard.service.monitoring.decisions import Decision, DecisionLog
from reluguard.service.monitoring.flagged import Flagged
from reluguard.service.monitoring.tracing import Tracing
from reluguard.service.protocols.policy import Detail, Rules, View
from reluguard.service.quotas import Quotas
from reluguard.service.security import Scope
from reluguard.service.watching.watch import Seen, Watch

__all__ = [
    "Encoded",
    "Inspection",
    "Inspector",
    "Limits",
    "PixelArray",
    "TensorArray",
    "check_rows",
]

_MARGIN = 8  # times the range of pixels: what augmentation or an odd normalisation may add
_NAME_BYTES = 16
# work that a thread of this process does: some 20 ms, less than a hop to a process with big files
_LIGHT = 2_000_000
_INLINE_BYTES = 64 * 1024  # below this a hop to a thread costs more than the work
_INLINE_QUESTIONS = 16  # the watch takes about .1 ms for each
_INLINE_TENSOR_BYTES = 1024 * 1024  # the same where nothing is to be done but to look at it


@dataclass(frozen=True, slots=True)
class TensorArray:
    """The model's own input tensor."""

    array: NDArray[Any]

    @property
    def rows(self) -> int:
        """Images."""
        return len(self.array) if self.array.ndim else 0

    def tensor(self, spec: InputSpec) -> NDArray[Any]:
        """Return the checked tensor."""
        spec.check_tensor(self.array)
        check_range(self.array, spec)
        return self.array


@dataclass(frozen=True, slots=True)
class PixelArray:
    """Images as uint8 (N, H, W, C)."""

    array: NDArray[Any]

    @property
    def rows(self) -> int:
        """Images."""
        return len(self.array) if self.array.ndim else 0

    def tensor(self, spec: InputSpec) -> NDArray[Any]:
        """Return the model's tensor for these pixels."""
        return spec.to_tensor(self.array)


@dataclass(frozen=True, slots=True)
class Encoded:
    """Whole JPEG, PNG or WebP files."""

    images: Sequence[bytes]

    @property
    def rows(self) -> int:
        """Images."""
        return len(self.images)

    def weight(self, limits: "Limits") -> int:
        """Return how much work they are to decode.

        `max_pixels` is for all of them together: a few kilobytes of PNG can claim megapixels each,
        and decoding them costs what they claim.
        """
        pixels = work = 0
        for image in self.images:
            weight = weigh(image)
            pixels += weight.pixels
            work += weight.work
            if pixels > limits.max_pixels:
                raise ImageTooLargeError(
                    f"expected at most {limits.max_pixels} pixels in one request's images, got more"
                )
        return work

    def decode(self, spec: InputSpec, limits: "Limits") -> PixelArray:
        """Return the pixels of these files in the size the model wants."""
        return PixelArray(
            np.stack(
                [decode_image(image, spec, max_pixels=limits.max_pixels) for image in self.images]
            )
        )


Input = TensorArray | PixelArray | Encoded


def check_range(tensor: NDArray[Any], spec: InputSpec) -> None:
    """Raise ImageError if a tensor lies far outside of what pixels can give.

    Such numbers overflow inside a network, or come from another preprocessing than the guard's:
    either way nothing that was learned from pixels holds for them.
    """
    if tensor.dtype.kind != "f":
        return
    ends = [(end * spec.scale - mean) / std
            for end in (0, 255) for mean in spec.mean for std in spec.std]  # fmt: skip
    low, high = min(ends), max(ends)
    margin = _MARGIN * (high - low)
    least, most = float(tensor.min()), float(tensor.max())
    if least < low - margin or most > high + margin:
        raise ImageError(
            f"expected values near [{low:.4g}, {high:.4g}], what pixels give this model,"
            f" got [{least:.4g}, {most:.4g}]"
        )


def check_rows(rows: int, limits: "Limits") -> None:
    """Raise ImageTooLargeError if a request brings too many images."""
    if rows > limits.max_rows:
        raise ImageTooLargeError(
            f"expected at most {limits.max_rows} images in one request, got {rows}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one request may bring."""

    max_rows: int
    max_message_bytes: int
    max_pixels: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What the caller may see, who answered, where the time went, and its name if captured."""

    view: View
    version: Version
    decode_s: float
    queue_s: float
    model_s: float
    capture: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspector:
    """Takes requests to the models.

    Attributes:
        decoder: a thread pool for what is too slow for the event loop.
        decoders: processes for what is too much work for this one.
        quotas: what each caller may use.
        limits: of one request.
        rules: the server's policy.
        flagged: what keeps the last flagged images.
        capture: what keeps a sample of the traffic; None for nothing.
        watch: what remembers who asked what; None for nothing.
        decisions: what writes down who was answered what; None for nothing.
        tracing: what writes spans; None for nothing.
    """

    decoder: Executor
    decoders: Decoders
    quotas: Quotas
    limits: Limits
    rules: Rules
    flagged: Flagged
    capture: Capture | None = None
    watch: Watch | None = None
    decisions: DecisionLog | None = None
    tracing: Tracing | None = None

    async def inspect(
        self, model: Model, call: Call, given: Input, *, rules: Rules | None = None
    ) -> Inspection:
        """Return one request's answer.

        Raises:
            ImageError: the images don't fit the model.
            ImageTooLargeError: too many of them.
            OverloadedError, ExpiredError, NotReadyError: as `Batcher.submit`; OverloadedError too
                where the caller asked too many near-equal questions and the server refuses them.
        """
        version = model.version
        check_rows(given.rows, self.limits)
        if given.rows == 0:
            raise RequestError("expected at least one image, got an empty batch")
        self.quotas.rows(call.who, given.rows, call.caller.quota)
        started = time.perf_counter()
        tensor, raw = await self._tensor(given, version.guard.spec, call.who)
        decode_s = time.perf_counter() - started
        model.metrics.stage("decode", decode_s)
        asked = time.time_ns()
        answer = await model.batcher.submit(tensor, version, deadline=call.deadline)
        if self.tracing is not None:
            self.tracing.inspected(
                decode_s=decode_s, asked=asked, model=model.name, rows=given.rows, timing=answer
            )
        seen = await self._seen(model, version, call, tensor, answer)
        if version.shadow is not None:
            version.shadow.add(answer.verdicts)
        name = ""
        if self.capture is not None:
            kind: Raw = "images" if isinstance(raw, PixelArray) else "tensors"
            name = secrets.token_hex(_NAME_BYTES)
            self.capture.offer(
                answer.verdicts,
                version.guard,
                name=name,
                request=request_id.get(),
                source=call.caller.name,
                raw=raw.array,
                kind=kind,
            )
        chosen = rules or self.rules
        is_flagged = bool(answer.verdicts.is_adversarial.any())
        if self.decisions is not None or is_flagged:
            decision = Decision(
                time=time.time(),
                request=request_id.get(),
                capture=name,
                caller=call.who or call.caller.name,
                model=model.name,
                guard=version.digest,
                policy=chosen.policy,
                fail=chosen.fail,
                latency_s=time.perf_counter() - started,
                verdicts=answer.verdicts,
                seen=seen,
            )
            if self.decisions is not None:
                self.decisions.add(decision)
            if is_flagged:
                taps = version.guard.artifact.manifest.taps
                self.flagged.add(decision, [tap.name for tap in taps])
        if seen is not None and seen.refused:
            raise OverloadedError(
                "expected fewer near-equal images of one caller: send others, or wait"
                f" {math.ceil(seen.wait_s):,} s",
                retry_after_s=seen.wait_s,
            )
        view = chosen.view(
            answer.verdicts,
            privileged=call.caller.may(Scope.PRIVILEGED),
            all_scored=answer.all_scored,
        )
        return Inspection(
            view=view,
            version=version,
            decode_s=decode_s,
            queue_s=answer.queue_s,
            model_s=answer.model_s,
            capture="" if view.detail is Detail.NONE else name,
        )

    async def _seen(
        self, model: Model, version: Version, call: Call, tensor: NDArray[Any], answer: Answer
    ) -> Seen | None:
        """Return what the watch says of a request, None where it is not asked."""
        watch, verdicts = self.watch, answer.verdicts
        if watch is None or verdicts.readings is None or not call.caller.watched:
            return None
        asked = (
            call.who or call.caller.name,
            version.guard.artifact,
            tensor,
            verdicts.readings.rates,
            verdicts.unscored,
        )
        if len(tensor) <= _INLINE_QUESTIONS:
            seen = watch.ask(*asked)
        else:
            loop = asyncio.get_running_loop()
            seen = await loop.run_in_executor(self.decoder, watch.ask, *asked)
        model.metrics.asked(seen)
        return seen

    async def _tensor(
        self, given: Input, spec: InputSpec, who: str
    ) -> tuple[NDArray[Any], PixelArray | TensorArray]:
        """Return the model's tensor, and what it was made from once it is decoded."""
        limit = _INLINE_TENSOR_BYTES if isinstance(given, TensorArray) else _INLINE_BYTES
        if not isinstance(given, Encoded) and given.array.nbytes <= limit:
            return given.tensor(spec), given
        loop = asyncio.get_running_loop()
        ready = await loop.run_in_executor(self.decoder, _prepare, given, spec, self.limits)
        if ready is not None:
            return ready
        assert isinstance(given, Encoded)
        plain = PixelArray(await self.decoders.decode(who, given.images, spec))
        tensor = await loop.run_in_executor(self.decoder, plain.tensor, spec)
        return tensor, plain


def _prepare(
    given: Input, spec: InputSpec, limits: Limits
) -> tuple[NDArray[Any], PixelArray | TensorArray] | None:
    """Return what `_tensor` does; None if it is too much work for this process."""
    if isinstance(given, Encoded):
        if given.weight(limits) > _LIGHT:
            return None
        given = given.decode(spec, limits)
    return given.tensor(spec), given
