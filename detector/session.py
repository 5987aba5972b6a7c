"""ONNX Runtime sessions, opened one way: no spinning, as many threads as we may use."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from reluguard.detector.allowance import available_cores
from reluguard.detector.errors import ModelError, SettingsError
from reluguard.detector.images import InputSpec

__all__ = ["at_once", "check_started", "in_batches", "open_session", "run_session"]

# of one run, whose memory grows with them: 196 images of 32 pixels, 4 of 224. EfficientNet-Lite0
# on one core: 10.2 ms an image of 224 pixels in runs of 4 or 8, 13.0 in runs of 16
_MOST_VALUES = 4 * 3 * 224 * 224

_FAILURES = (
    ort_errors.EPFail,
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
)


def open_session(
    model: onnx.ModelProto | bytes,
    *,
    providers: Sequence[str] | None = None,
    threads: int | None = None,
    optimise: bool = True,
    profile: str | None = None,
) -> ort.InferenceSession:
    """Return a session for a model with its weights inside.

    Args:
        model: the model, or its serialised bytes.
        providers: ONNX Runtime's names in order of preference; CPU by default.
        threads: for one run; by default as many as this process may use, see `allowance`.
        optimise: whether ONNX Runtime may rewrite the graph.
        profile: what the name of a file begins with that tells how long each operator took, which
            `end_profiling` of the session writes and names.

    Raises:
        ModelError: ONNX Runtime refuses the model.
        SettingsError: a provider is not in this build or can't start here, or threads is not
            positive.
    """
    chosen = list(providers or ["CPUExecutionProvider"])
    missing = sorted(set(chosen) - set(ort.get_available_providers()))
    if missing:
        there = ", ".join(ort.get_available_providers())
        raise SettingsError(
            f"no provider {', '.join(missing)} in this ONNX Runtime; it has {there}"
        )
    if threads is not None and threads < 1:
        raise SettingsError(f"expected 1 or more threads, got {threads}")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or available_cores()
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    # Spinning burns whole cores between requests for no throughput.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, profile
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    data = model if isinstance(model, bytes) else model.SerializeToString()
    try:
        session = ort.InferenceSession(data, options, providers=chosen)
    except _FAILURES as error:
        raise ModelError(f"ONNX Runtime can't load the model: {_first_line(error)}") from error
    check_started(chosen, session.get_providers())
    # It keeps the serialised model, to start anew on another provider where this one fails at a
    # run: nobody asked for that one. Of ViT-B/16 this is 340 MB for each session.
    session.disable_fallback()
    session._model_bytes = None  # noqa: SLF001 # nothing public lets go of it
    return session


def check_started(wanted: Sequence[str], started: Sequence[str]) -> None:
    """Raise SettingsError unless every provider that was asked for is in use.

    ONNX Runtime only warns where a provider's driver or libraries are missing, and computes on the
    processor instead: whoever asked for a GPU would never know.
    """
    missing = [provider for provider in wanted if provider not in started]
    if missing:
        raise SettingsError(
            f"the provider {', '.join(missing)} could not start here; its driver or libraries are "
            f"missing, ONNX Runtime went on with {', '.join(started)}"
        )


def run_session(
    session: ort.InferenceSession, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str]
) -> list[NDArray[Any]]:
    """Return the named outputs of one run, in that order.

    Raises:
        ModelError: the run failed.
    """
    try:
        return [np.asarray(value) for value in session.run(list(outputs), dict(feeds))]
    except (*_FAILURES, ValueError) as error:  # ValueError: an input is missing
        raise ModelError(f"the model failed to run: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def at_once(shape: Sequence[int]) -> int:
    """Return how many images of this shape go through a network together, at least one."""
    return max(1, _MOST_VALUES // max(1, int(np.prod(shape))))


def in_batches(
    session: ort.InferenceSession,
    spec: InputSpec,
    tensor: NDArray[Any],
    fetch: Sequence[str],
    beside: Mapping[str, NDArray[Any]] = MappingProxyType({}),
) -> list[NDArray[Any]]:
    """Return a session's outputs on any number of rows, whatever batch the model fixes.

    Args:
        session: of the model, or of one with more inputs.
        spec: how images go into it.
        tensor: its input tensor.
        fetch: names of the outputs.
        beside: further inputs by name, a row per row of the tensor.

    Raises:
        ModelError: the run failed, or an output does not have one row per image.
    """
    rows = spec.batch or at_once(tensor.shape[1:])
    parts = []
    for start in range(0, len(tensor), rows):
        feeds = {name: value[start : start + rows] for name, value in beside.items()}
        feeds[spec.name] = part = tensor[start : start + rows]
        missing = spec.batch - len(part) if spec.batch else 0
        if missing:
            feeds = {
                n: np.concatenate([v, v[-1:].repeat(missing, axis=0)]) for n, v in feeds.items()
            }
            part = feeds[spec.name]
        values = run_session(session, feeds, fetch)
        for name, value in zip(fetch, values, strict=True):
            if value.ndim == 0 or len(value) != len(part):
                raise ModelError(f"expected {len(part)} rows in {name}, got shape {value.shape}")
        parts.append([value[: len(part) - missing] for value in values])
    if len(parts) == 1:
        return parts[0]
    return [np.concatenate(values) for values in zip(*parts, strict=True)]
