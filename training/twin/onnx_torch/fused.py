"""What ONNX Runtime and newer opsets write as one node where others write several.

B images, T tokens, H heads, D features of a head.
"""

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (torch's own name for it)

from reluguard.training.twin.onnx_torch.node import Node, Operator, table

__all__ = ["FUSED"]

FUSED: dict[str, Operator] = {}


@table(FUSED, "BiasGelu")
def _bias_gelu(_node: Node, x: Tensor, bias: Tensor) -> Tensor:
    return F.gelu(x + bias)


@table(FUSED, "FastGelu")
def _fast_gelu(_node: Node, x: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.gelu(x if bias is None else x + bias, approximate="tanh")


@table(FUSED, "QuickGelu")
def _quick_gelu(node: Node, x: Tensor) -> Tensor:
    return x * torch.sigmoid(node.get("alpha", 1.702) * x)


@table(FUSED, "BiasAdd")
def _bias_add(_node: Node, x: Tensor, bias: Tensor, skip: Tensor) -> Tensor:
    return x + bias + skip


@table(FUSED, "Attention")
def _attention(
    node: Node, query: Tensor, key: Tensor, value: Tensor, *rest: Tensor | None
) -> Tensor:
    """The standard's, and ONNX Runtime's own of the same name, told apart by its attribute."""
    if "num_heads" in node.attributes:
        return _packed_attention(node, query, key, value, *rest)
    mask, *past = [*rest, None]
    known = {"q_num_heads", "kv_num_heads", "scale", "softcap", "is_causal"}
    others = sorted(set(node.attributes) - known)
    if others or any(item is not None for item in past) or len(node.outputs) > 1:
        what = ", ".join(others) or "past keys or several outputs"
        raise NotImplementedError(f"Attention with {what}")
    flat = query.ndim == 3
    if flat:
        query = _heads(query, node.get("q_num_heads"))
        key, value = (_heads(x, node.get("kv_num_heads")) for x in (key, value))
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
    y = _attend(
        query,
        key,
        value,
        scale=node.get("scale"),
        mask=mask,
        cap=node.get("softcap", 0.0),
        causal=bool(node.get("is_causal", 0)),
    )
    return y.transpose(1, 2).flatten(2) if flat else y


def _packed_attention(
    node: Node, x: Tensor, weight: Tensor, bias: Tensor, *rest: Tensor | None
) -> Tensor:
    if any(item is not None for item in rest) or node.get("qkv_hidden_sizes"):
        raise NotImplementedError("com.microsoft.Attention with a mask or of uneven sizes")
    heads = node.get("num_heads")
    parts = [_heads(part, heads) for part in (x @ weight + bias).chunk(3, -1)]
    return _attend(*parts, scale=node.get("scale")).transpose(1, 2).flatten(2)


@table(FUSED, "MultiHeadAttention")
def _multi_head(
    node: Node,
    query: Tensor,
    key: Tensor | None = None,
    value: Tensor | None = None,
    bias: Tensor | None = None,
    *rest: Tensor | None,
) -> Tensor:
    if key is None or value is None or any(item is not None for item in rest):
        raise NotImplementedError("MultiHeadAttention packed, or with a mask")
    if key.ndim != 3 or value.ndim != 3 or len(node.outputs) > 1:
        raise NotImplementedError("MultiHeadAttention of past keys")
    given = [query, key, value]
    if bias is not None:
        sizes = [part.shape[-1] for part in given]
        given = [part + b for part, b in zip(given, bias.split(sizes), strict=True)]
    parts = [_heads(part, node.get("num_heads")) for part in given]
    return _attend(*parts, scale=node.get("scale")).transpose(1, 2).flatten(2)


def _heads(x: Tensor, heads: int) -> Tensor:
    """Return (B, T, H * D) as (B, H, T, D)."""
    rows, tokens, features = x.shape
    return x.reshape(rows, tokens, heads, features // heads).transpose(1, 2)


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float | None = None,
    mask: Tensor | None = None,
    cap: float = 0.0,
    causal: bool = False,
) -> Tensor:
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    weights = query @ key.transpose(-1, -2) * factor
    if cap:
        weights = cap * torch.tanh(weights / cap)
    if causal:
        rows, columns = weights.shape[-2:]
        allowed = torch.ones(rows, columns, dtype=torch.bool, device=weights.device).tril()
        weights = weights.masked_fill(~allowed, -torch.inf)
    if mask is not None:
        missing = weights.shape[-1] - mask.shape[-1]
        if missing:
            mask = F.pad(
                mask, [0, missing], value=False if mask.dtype == torch.bool else -torch.inf
            )
        weights = (
            weights.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else weights + mask
        )
    shares = torch.softmax(weights, -1)
    if mask is not None:  # a token that may see none sees nothing
        shares = torch.where((weights == -torch.inf).all(-1, keepdim=True), 0.0, shares)
    return shares @ value
