"""Which channels an answer hangs on. N images, C channels, K classes.

A channel is silenced inside the graph and the change of the answer is read. Forward passes only, so
any ONNX model will do.

Source: the prediction difference of Zintgraf et al. 2017, as used by Dong et al. 2017.
"""

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from reluguard.detector.images import Images, InputSpec
from reluguard.detector.model import Production
from reluguard.detector.session import open_session, run_session
from reluguard.detector.taps import Tap
from reluguard.training.analysis.checks import Ints, check_rows
from reluguard.training.errors import ShapeError

__all__ = ["prediction_difference"]

_MASK = "reluguard_mask"


def prediction_difference(
    production: Production,
    spec: InputSpec,
    tap: Tap,
    images: Images,
    classes: Ints,
    *,
    batch: int = 128,
    threads: int | None = None,
) -> NDArray[np.float32]:
    """Return by how much the class's logit falls without each channel: float32, (N, C).

    Args:
        production: the network.
        spec: how images go into it.
        tap: whose channels are silenced, one by one.
        images: uint8, (N, H, W, C).
        classes: int64, (N,). Whose logit is watched, for example the answer.
        batch: channels silenced per run.
        threads: of ONNX Runtime.

    Raises:
        ShapeError: the model has a fixed batch, so channels can't be silenced side by side.
        ModelError: the model doesn't run.
    """
    check_rows(images, classes)
    if spec.batch is not None:
        raise ShapeError(f"expected a model with a free batch, got one fixed to {spec.batch}")
    session = open_session(_with_mask(production, tap), threads=threads)
    c = tap.channels
    out = np.empty((len(images), c), np.float32)
    ones = [1] * len(tap.shape)
    ones[tap.channel_axis] = c
    for i in range(len(images)):
        tensor = spec.to_tensor(images[i : i + 1])
        whole = np.ones((1, *ones), np.float32)
        feeds = {spec.name: tensor, _MASK: whole}
        before = run_session(session, feeds, [production.logits])[0][0, classes[i]]
        for start in range(0, c, batch):
            silenced = np.arange(start, min(c, start + batch))
            mask = np.ones((len(silenced), c), np.float32)
            mask[np.arange(len(silenced)), silenced] = 0
            feeds = {
                spec.name: np.repeat(tensor, len(silenced), axis=0),
                _MASK: mask.reshape(len(silenced), *ones),
            }
            after = run_session(session, feeds, [production.logits])[0][:, classes[i]]
            out[i, silenced] = before - after
    return out


def _with_mask(production: Production, tap: Tap) -> onnx.ModelProto:
    """Return the model with the tap multiplied by a second input before anyone reads it."""
    model = onnx.ModelProto()
    model.CopyFrom(production.proto)
    graph = model.graph
    masked = f"{_MASK}_output"
    maker = next(i for i, node in enumerate(graph.node) if tap.name in node.output)
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name == tap.name:
                node.input[i] = masked
    graph.node.insert(maker + 1, helper.make_node("Mul", [tap.name, _MASK], [masked]))
    shape: list[str | int] = ["mask_rows", *([1] * len(tap.shape))]
    shape[1 + tap.channel_axis] = tap.channels
    graph.input.append(helper.make_tensor_value_info(_MASK, TensorProto.FLOAT, shape))
    names = {value.name for value in graph.output}
    if production.logits not in names:
        graph.output.append(onnx.ValueInfoProto(name=production.logits))
    return model
