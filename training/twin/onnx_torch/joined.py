"""Nodes that are one in torch: padding before a convolution is the convolution's own."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace

from torch import Tensor

from reluguard.training.twin.onnx_torch.node import Node, ints

__all__ = ["with_pads_joined"]

_Value = Callable[[str], Tensor | None]


def with_pads_joined(nodes: list[Node], value: _Value, outputs: Iterable[str]) -> list[Node]:
    """Return the nodes with each Pad of zeros that only a convolution reads made part of it.

    Exporters of TensorFlow's networks write every padding apart; as a step of its own it is a
    seventh of the time of EfficientNet-Lite0, there and back.

    Args:
        nodes: sorted.
        value: what is known of a tensor before the input is, None where nothing is.
        outputs: tensors that must stay.
    """
    readers = Counter(name for node in nodes for name in node.inputs) + Counter(outputs)
    pads = {node.outputs[0]: node for node in nodes if node.op == "Pad"}
    joined: dict[str, Node] = {}
    kept = []
    for node in nodes:
        name = node.inputs[0] if node.inputs else ""
        if node.op == "Conv" and name in pads and readers[name] == 1:
            sides = _zeros(pads[name], value, len(node.get("kernel_shape", ())))
            if sides is not None and node.get("auto_pad", "NOTSET") in {"NOTSET", "VALID"}:
                own = node.get("pads", [0] * len(sides))
                own = [0] * len(sides) if node.get("auto_pad") == "VALID" else own
                sums = [a + b for a, b in zip(own, sides, strict=True)]
                attributes = {**node.attributes, "pads": sums, "auto_pad": "NOTSET"}
                inputs = (pads[name].inputs[0], *node.inputs[1:])
                joined[name] = node
                kept.append(replace(node, inputs=inputs, attributes=attributes))
                continue
        kept.append(node)
    return [node for node in kept if not (node.op == "Pad" and node.outputs[0] in joined)]


def _zeros(pad: Node, value: _Value, spatial: int) -> list[int] | None:
    """Return how many zeros a Pad adds to each side of the spatial axes, None if it does more."""
    names = [*pad.inputs[1:], "", "", ""][:3]
    given = [value(name) if name else None for name in names]
    if any(name and one is None for name, one in zip(names, given, strict=True)) or names[2]:
        return None
    sides = ints(given[0]) if names[0] else pad.get("pads")
    fill = pad.get("value", 0.0) if given[1] is None else float(given[1])
    if not sides or not spatial or fill or pad.get("mode", "constant") != "constant":
        return None
    half = len(sides) // 2
    before, after = sides[:half], sides[half:]
    if half != spatial + 2 or any((*before[:2], *after[:2])) or min(sides) < 0:
        return None
    return [*before[2:], *after[2:]]
