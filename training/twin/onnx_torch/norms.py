"""Normalisations: by stored statistics, or by those of the tensor itself. C channels."""

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (torch's own name for it)

from reluguard.training.twin.onnx_torch.node import Node, Operator, table

__all__ = ["NORMS"]

NORMS: dict[str, Operator] = {}


@table(NORMS, "BatchNormalization")
def _batch_norm(
    node: Node, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor
) -> Tensor | tuple[Tensor, ...]:
    eps = node.get("epsilon", 1e-5)
    if not node.get("training_mode", 0):
        return F.batch_norm(x, mean, variance, scale, bias, training=False, eps=eps)
    others = tuple(axis for axis in range(x.ndim) if axis != 1)
    here, spread = x.mean(others), x.var(others, unbiased=False)
    y = F.batch_norm(x, None, None, scale, bias, training=True, eps=eps)
    keep = node.get("momentum", 0.9)
    return y, mean * keep + here * (1 - keep), variance * keep + spread * (1 - keep)


@table(NORMS, "InstanceNormalization")
def _instance_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return F.instance_norm(x, weight=scale, bias=bias, eps=node.get("epsilon", 1e-5))


@table(NORMS, "GroupNormalization")
def _group_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    groups = node.get("num_groups")
    if len(scale) == groups and groups != x.shape[1]:  # before opset 21: one value per group
        scale, bias = (v.repeat_interleave(x.shape[1] // groups) for v in (scale, bias))
    return F.group_norm(x, groups, scale, bias, node.get("epsilon", 1e-5))


@table(NORMS, "LayerNormalization")
def _layer_norm(
    node: Node, x: Tensor, scale: Tensor, bias: Tensor | None = None
) -> Tensor | tuple[Tensor, ...]:
    axis, eps = node.get("axis", -1), node.get("epsilon", 1e-5)
    shape = x.shape[axis:]
    offset = None if bias is None else bias.expand(shape)
    y = F.layer_norm(x, shape, scale.expand(shape), offset, eps)
    if len(node.outputs) == 1:
        return y
    axes = tuple(range(axis % x.ndim, x.ndim))
    mean, spread = x.mean(axes, keepdim=True), x.var(axes, unbiased=False, keepdim=True)
    return y, mean, (spread + eps).rsqrt()


@table(NORMS, "RMSNormalization", "SimplifiedLayerNormalization")
def _rms_norm(node: Node, x: Tensor, scale: Tensor) -> Tensor:
    axes = tuple(range(node.get("axis", -1) % x.ndim, x.ndim))
    eps: float = node.get("epsilon", 1e-5)
    return x * (x.square().mean(axes, keepdim=True) + eps).rsqrt() * scale


@table(NORMS, "SkipLayerNormalization", "SkipSimplifiedLayerNormalization")
def _skip_layer_norm(
    node: Node, x: Tensor, skip: Tensor, gamma: Tensor, *rest: Tensor | None
) -> Tensor | tuple[Tensor, ...]:
    """ONNX Runtime's own: an addition before the normalisation, which is an output as well."""
    eps: float = node.get("epsilon", 1e-12)
    given = list(rest)
    simple = node.op == "SkipSimplifiedLayerNormalization"
    beta = None if simple else next(iter(given[:1]), None)
    bias = next(iter(given[:1] if simple else given[1:]), None)
    added = x + skip
    added = added if bias is None else added + bias
    if simple:
        y = added * (added.square().mean(-1, keepdim=True) + eps).rsqrt() * gamma
    else:
        y = F.layer_norm(added, added.shape[-1:], gamma, beta, eps)
    if len(node.outputs) == 1:
        return y
    if any(node.outputs[1:3]):
        raise NotImplementedError(f"{node.op} with its mean or deviation as an output")
    return y, y, y, added


@table(NORMS, "MeanVarianceNormalization")
def _mean_variance(node: Node, x: Tensor) -> Tensor:
    axes = tuple(node.get("axes", [0, 2, 3]))
    centred = x - x.mean(axes, keepdim=True)
    return centred / (centred.square().mean(axes, keepdim=True).sqrt() + 1e-9)


@table(NORMS, "LRN")
def _local_response_norm(node: Node, x: Tensor) -> Tensor:
    alpha, beta, k = node.get("alpha", 1e-4), node.get("beta", 0.75), node.get("bias", 1.0)
    size: int = node.get("size")
    before, after = (size - 1) // 2, size // 2
    squares = F.pad(x.square(), [0, 0] * (x.ndim - 2) + [before, after])
    near = torch.stack([squares.narrow(1, i, x.shape[1]) for i in range(size)]).sum(0)
    return x / torch.pow(k + alpha / size * near, beta)


@table(NORMS, "LpNormalization")
def _lp_norm(node: Node, x: Tensor) -> Tensor:
    return F.normalize(x, float(node.get("p", 2)), node.get("axis", -1))
