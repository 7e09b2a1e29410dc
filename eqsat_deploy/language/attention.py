"""Attention: whole as `nn.MultiheadAttention`, in three parts, and as scaled dot products."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from eqsat_deploy.language.expressions import maximum, replace, vec
from eqsat_deploy.language.operator import Ints, Unsupported, aten, operator


def _numel(shape: Ints) -> float:
    total = 1.0
    for dimension in shape:
        total *= dimension
    return total


def _scores_flops(out: Ints, q: Ints, k: Ints, *_: Any) -> float:
    return 4.0 * _numel(q) * k[-2]


def _attended(q: Any, v: Any) -> Any:
    return vec(*(maximum(q[i], v[i]) for i in range(5)), q[5], v[6])


@operator(shape=lambda q, k, v, scale: _attended(q, v), flops=_scores_flops)
def attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """softmax(scale * q @ k.T) @ v over the last two axes (positions, features)."""
    return F.scaled_dot_product_attention(q, k, v, scale=scale)


@operator(shape=lambda q, k, v, mask, scale: _attended(q, v), flops=_scores_flops)
def masked_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    """softmax(scale * q @ k.T + mask) @ v; a boolean mask keeps where it is true."""
    return F.scaled_dot_product_attention(q, k, v, mask, scale=scale)


@operator(shape=lambda q, k, v, scale: _attended(q, v), flops=_scores_flops)
def causal_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Attention of each position to itself and to those before it."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)


class PackedAttention(nn.Module):
    """Self-attention between its projections: (batch, positions, 3 x width) to (batch, positions, width).

    The last axis holds queries, keys and values, each split into `heads` contiguous heads, as the packed
    in-projection of `nn.MultiheadAttention` writes them. The scale is 1 / sqrt(width / heads).
    """

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, qkv: Tensor) -> Tensor:
        """The attended values, heads joined."""
        batch, positions, width = qkv.shape
        parts = qkv.reshape(batch, positions, 3, self.heads, width // (3 * self.heads))
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"heads={self.heads}"


@operator(
    shape=lambda qkv, heads: replace(qkv, 6, qkv[6] // 3),
    flops=lambda out, qkv, heads: 4.0 * _numel(out) * out[-2],
    module=lambda heads: PackedAttention(heads),
)
def packed_attention(qkv: Tensor, heads: int) -> Tensor:
    """Self-attention on packed queries, keys and values (batch, positions, 3 x width)."""
    return PackedAttention(heads)(qkv)  # type: ignore[no-any-return]


def _mha_module(in_w: Tensor, in_b: Tensor, out_w: Tensor, out_b: Tensor, heads: int) -> nn.Module:
    module = nn.MultiheadAttention(out_w.shape[0], heads, batch_first=True, device="meta")
    module.in_proj_weight, module.in_proj_bias = nn.Parameter(in_w), nn.Parameter(in_b)
    module.out_proj.weight, module.out_proj.bias = nn.Parameter(out_w), nn.Parameter(out_b)
    return SelfAttention(module)


class SelfAttention(nn.Module):
    """`nn.MultiheadAttention` attending to its own input, its weights not returned."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        """(batch, positions, width) to the same."""
        return self.attention(x, x, x, need_weights=False)[0]  # type: ignore[no-any-return]


def _mha_flops(out: Ints, x: Ints, *_: Any) -> float:
    return 8.0 * _numel(x) * x[-1] + 4.0 * _numel(x) * x[-2]


@operator(
    shape=lambda x, in_w, in_b, out_w, out_b, heads: x,
    flops=_mha_flops,
    module=_mha_module,
)
def self_attention(x: Tensor, in_w: Tensor, in_b: Tensor, out_w: Tensor, out_b: Tensor, heads: int) -> Tensor:
    """`nn.MultiheadAttention` on one batch-first tensor (batch, positions, width), without masks."""
    t = x.transpose(0, 1)
    return F.multi_head_attention_forward(
        t, t, t, x.shape[-1], heads, in_w, in_b, None, None, False, 0.0, out_w, out_b,
        training=False, need_weights=False,
    )[0].transpose(0, 1)  # fmt: skip


@aten("eqsat_deploy::multihead_attention")
def _multihead_attention(**call: Any) -> Any:
    """Self-attention without masks; everything else stays whole, and the reason is reported."""
    reasons = {
        "it attends to another tensor than its query": not call["query"] is call["key"] is call["value"],
        "its input is not batch-first": not call["batch_first"] or len(call["query"].shape) != 3,
        "it has a mask": call["attn_mask"] is not None or call["key_padding_mask"] is not None,
        "it is causal": call["is_causal"],
        "key and value have widths of their own": call["in_proj_weight"] is None,
        "it has no bias": call["in_proj_bias"] is None or call["out_proj_bias"] is None,
        "it appends bias_k and bias_v": call["bias_k"] is not None,
        "it has add_zero_attn": call["add_zero_attn"],
    }
    for reason, holds in reasons.items():
        if holds:
            raise Unsupported(f"nn.MultiheadAttention is left whole: {reason}")
    out = self_attention(
        call["query"], call["in_proj_weight"], call["in_proj_bias"], call["out_proj_weight"],
        call["out_proj_bias"], call["num_heads"],
    )  # fmt: skip
    return (out, None)


@aten("scaled_dot_product_attention.default")
def _sdpa(
    q: Any, k: Any, v: Any, mask: Any = None, dropout: float = 0.0, is_causal: bool = False, *,
    scale: float | None = None, enable_gqa: bool = False,
) -> Any:  # fmt: skip
    if dropout or enable_gqa or len(q.shape) < 3:
        raise Unsupported("attention with dropout, grouped queries or without batch")
    scale = float(q.shape[-1]) ** -0.5 if scale is None else float(scale)
    if is_causal:
        if mask is not None:
            raise Unsupported("attention both causal and masked")
        return causal_attention(q, k, v, scale)
    if mask is not None:
        return masked_attention(q, k, v, mask, scale)
    return attention(q, k, v, scale)
