"""Branches and loops. Their bodies run node by node, as the graph itself does.

A body sees the tensors around it: they come as further inputs of the node, behind its own.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from reluguard.training.twin.onnx_torch.node import Node, Operator, table

__all__ = ["CONTROL", "Body"]

CONTROL: dict[str, Operator] = {}

Body = Callable[[Mapping[str, Tensor], tuple[Tensor, ...]], tuple[Tensor, ...]]
"""Called with the tensors around it by name, and its own inputs in order."""


def _around(node: Node, values: tuple[Tensor | None, ...]) -> dict[str, Tensor]:
    named = zip(node.inputs, values, strict=True)
    return {name: value for name, value in named if name and value is not None}


@table(CONTROL, "If")
def _if(node: Node, condition: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
    body: Body = node.get("then_branch" if bool(condition) else "else_branch")
    return body(_around(node, (condition, *rest)), ())


@table(CONTROL, "Loop")
def _loop(
    node: Node, most: Tensor | None, going: Tensor | None, *rest: Tensor
) -> tuple[Tensor, ...]:
    body: Body = node.get("body")
    carried_count = node.get("inputs_of_body") - 2
    carried, around = rest[:carried_count], _around(node, (most, going, *rest))
    scanned: list[tuple[Tensor, ...]] = []
    keep = torch.tensor(True) if going is None else going
    turn = 0
    while bool(keep) and (most is None or turn < int(most)):
        keep, *values = body(around, (torch.tensor(turn), keep, *carried))
        carried = tuple(values[:carried_count])
        scanned.append(tuple(values[carried_count:]))
        turn += 1
    if len(node.outputs) > carried_count and not scanned:
        raise NotImplementedError("Loop that never runs and collects outputs")
    return (*carried, *(torch.stack(column) for column in zip(*scanned, strict=True)))


@table(CONTROL, "Scan")
def _scan(node: Node, *rest: Tensor) -> tuple[Tensor, ...]:
    if node.opset < 9:
        raise NotImplementedError("Scan of opset 8")
    body: Body = node.get("body")
    count, inputs = node.get("num_scan_inputs"), node.get("inputs_of_body")
    states, around = rest[: inputs - count], _around(node, rest)
    axes = node.get("scan_input_axes", [0] * count)
    back = node.get("scan_input_directions", [0] * count)
    columns = [
        (x.flip(axis) if turned else x).movedim(axis, 0)
        for x, axis, turned in zip(rest[inputs - count : inputs], axes, back, strict=True)
    ]
    scanned: list[tuple[Tensor, ...]] = []
    for slices in zip(*columns, strict=True):
        values = body(around, (*states, *slices))
        states = values[: len(states)]
        scanned.append(values[len(states) :])
    joined = [torch.stack(column) for column in zip(*scanned, strict=True)]
    out_axes = node.get("scan_output_axes", [0] * len(joined))
    out_back = node.get("scan_output_directions", [0] * len(joined))
    outputs = [
        (y.flip(0) if turned else y).movedim(0, axis)
        for y, axis, turned in zip(joined, out_axes, out_back, strict=True)
    ]
    return (*states, *outputs)
