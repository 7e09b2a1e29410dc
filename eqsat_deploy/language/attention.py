"""Attention: whole as `nn.MultiheadAttention`, in three parts, and as scaled dot products."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eqsat_deploy.language.expressions import maximum, replace, vec
from eqsat_deploy.language.leaves import scalar, zeros_like
from eqsat_deploy.language.linear import linear, matmul
from eqsat_deploy.language.logic import mask_bias
from eqsat_deploy.language.movement import concat, cut, expand_to, pad, to_order, to_shape
from eqsat_deploy.language.normalization import reduce_, softmax
from eqsat_deploy.language.operator import IMPORTERS, Ints, Unsupported, aten, operator
from eqsat_deploy.language.pointwise import add, mul
from eqsat_deploy.language.shapes import SLOTS, elements
from eqsat_extraction.kernel import Kind


def _scores_flops(out: Ints, q: Ints, k: Ints, *_: Any) -> float:
    return 4.0 * elements(q) * k[-2]


def _attended(q: Any, v: Any) -> Any:
    return vec(*(maximum(q[i], v[i]) for i in range(5)), q[5], v[6])


@operator(Kind.ATTENTION, shape=lambda q, k, v, scale: _attended(q, v), flops=_scores_flops)
def attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """softmax(scale * q @ k.T) @ v over the last two axes (positions, features)."""
    return F.scaled_dot_product_attention(q, k, v, scale=scale)


@operator(
    Kind.ATTENTION,
    called=lambda *_: "attention",
    shape=lambda q, k, v, mask, scale: _attended(q, v),
    flops=_scores_flops,
)
def masked_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    """softmax(scale * q @ k.T + mask) @ v; a boolean mask keeps where it is true."""
    return F.scaled_dot_product_attention(q, k, v, mask, scale=scale)


@operator(
    Kind.ATTENTION,
    called=lambda *_: "attention",
    shape=lambda q, k, v, scale: _attended(q, v),
    flops=_scores_flops,
)
def causal_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Attention of each position to itself and to those before it."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)


def attended(qkv: Tensor, heads: int, scale: float | None = None) -> Tensor:
    """What `PackedAttention` computes; without a scale, with that of `nn.MultiheadAttention`."""
    batch, positions, width = qkv.shape
    parts = qkv.reshape(batch, positions, 3, heads, width // (3 * heads))
    q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
    return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2).flatten(2)


class PackedAttention(nn.Module):
    """Self-attention between its projections: (batch, positions, 3 x width) to (batch, positions, width).

    The last axis holds queries, keys and values, each split into `heads` contiguous heads, as the packed
    in-projection of `nn.MultiheadAttention` writes them.
    """

    def __init__(self, heads: int, scale: float) -> None:
        super().__init__()
        self.heads, self.scale = heads, scale

    def forward(self, qkv: Tensor) -> Tensor:
        """The attended values, heads joined."""
        return attended(qkv, self.heads, self.scale)

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"heads={self.heads}, scale={self.scale:.6g}"


@operator(
    Kind.WHOLE_ATTENTION,
    shape=lambda qkv, heads, scale: replace(qkv, 6, qkv[6] // 3),
    flops=lambda out, qkv, heads, scale: 4.0 * elements(out) * out[-2],
    module=lambda heads, scale: PackedAttention(heads, scale),
)
def packed_attention(qkv: Tensor, heads: int, scale: float) -> Tensor:
    """Self-attention on packed queries, keys and values (batch, positions, 3 x width)."""
    return PackedAttention(heads, scale)(qkv)  # type: ignore[no-any-return]


def _mha_module(in_w: Tensor, in_b: Tensor, out_w: Tensor, out_b: Tensor, heads: int) -> nn.Module:
    bias = bool(in_b.any() or out_b.any())
    module = nn.MultiheadAttention(out_w.shape[0], heads, bias=bias, batch_first=True, device="meta")
    module.in_proj_weight, module.out_proj.weight = nn.Parameter(in_w), nn.Parameter(out_w)
    if bias:
        module.in_proj_bias, module.out_proj.bias = nn.Parameter(in_b), nn.Parameter(out_b)
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
    return 8.0 * elements(x) * x[-1] + 4.0 * elements(x) * x[-2]


@operator(
    Kind.WHOLE_ATTENTION,
    called=lambda *_: "multihead_attention",
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
    """Plain self-attention whole, so that taking it apart is a choice; any other configuration in its parts."""
    query, key, value = (_batch_first(call[name], call["batch_first"]) for name in ("query", "key", "value"))
    masks = call["attn_mask"], call["key_padding_mask"]
    parts = _Parts(call, query, key, value)
    plain = (
        query is key is value
        and call["in_proj_weight"] is not None
        and masks == (None, None)
        and call["bias_k"] is None
        and not call["add_zero_attn"]
    )
    if not call["need_weights"]:
        return parts.like(parts.whole() if plain else parts.output(parts.attended())), None
    out = parts.whole() if plain else parts.output(parts.weighted())
    return parts.like(out), parts.returned_weights()


class _Parts:
    """What `nn.MultiheadAttention` computes (torch.nn.functional.multi_head_attention_forward), batch first."""

    def __init__(self, call: dict[str, Any], query: Any, key: Any, value: Any) -> None:
        self.call, self.query, self.key, self.value = call, query, key, value
        self.width, self.heads = call["embed_dim"], call["num_heads"]
        self.scale = float(self.width // self.heads) ** -0.5

    @cached_property
    def heads_apart(self) -> tuple[Any, Any, Any]:
        """Queries, keys and values as (batch, heads, positions, width / heads)."""
        q, k, v = self._projected()
        k, v = self._extended(k, self.call["bias_k"]), self._extended(v, self.call["bias_v"])
        return self._split_heads(q), self._split_heads(k), self._split_heads(v)

    def whole(self) -> Any:
        """Self-attention as one operator."""
        out_bias = self._bias("out_proj_bias", self.width)
        return self_attention(
            self.query, self.call["in_proj_weight"], self._bias("in_proj_bias", 3 * self.width),
            self.call["out_proj_weight"], out_bias, self.heads,
        )  # fmt: skip

    def attended(self) -> Any:
        """The attended values of every head, by one operator."""
        if self.call["is_causal"] and self.call["key_padding_mask"] is None:
            return causal_attention(*self.heads_apart, self.scale)
        mask = self._mask()
        if mask is None:
            return attention(*self.heads_apart, self.scale)
        return masked_attention(*self.heads_apart, mask, self.scale)

    def weighted(self) -> Any:
        """The attended values of every head, by the weights."""
        return matmul(self.weights(), self.heads_apart[2])

    def weights(self) -> Any:
        """What attention multiplies the values by: (batch, heads, queries, keys)."""
        q, k, _ = self.heads_apart
        scores = matmul(mul(q, scalar(self.scale)), to_order(k, (0, 1, 3, 2)))
        mask = self._mask()
        return softmax(scores if mask is None else add(scores, mask), 6)

    def output(self, attended: Any) -> Any:
        """The heads joined and projected."""
        joined = to_shape(to_order(attended, (0, 2, 1, 3)), (*self.query.shape[:2], self.width))
        return linear(joined, self.call["out_proj_weight"], self._bias("out_proj_bias", self.width))

    def like(self, out: Any) -> Any:
        """`out` with its axes as the query came."""
        if len(self.call["query"].shape) == 2:
            return to_shape(out, out.shape[1:])
        return out if self.call["batch_first"] else to_order(out, (1, 0, 2))

    def returned_weights(self) -> Any:
        """The weights as the module returns them."""
        weights = self.weights()
        kept = list(weights.shape)
        if self.call["average_attn_weights"]:
            weights, kept = reduce_("mean", weights, (0, 0, 0, 0, 1, 0, 0)), [kept[0], *kept[2:]]
        return to_shape(weights, kept[1:] if len(self.call["query"].shape) == 2 else kept)

    def _bias(self, name: str, size: int) -> Any:
        bias = self.call[name]
        return zeros_like(self.call["out_proj_weight"], size) if bias is None else bias

    def _projected(self) -> tuple[Any, ...]:
        """Queries, keys and values; where the inputs are one tensor, one Linear computes them and slices part them."""
        packed, width = self.call["in_proj_weight"], self.width
        bias = self._bias("in_proj_bias", 3 * width)

        def project(x: Any, first: int, count: int) -> list[Any]:
            rows = first * width, (first + count) * width
            y = linear(x, cut(packed, 0, *rows), cut(bias, 0, *rows))
            return [cut(y, 2, i * width, (i + 1) * width) for i in range(count)]

        if packed is None:
            inputs = zip((self.query, self.key, self.value), "qkv", range(3), strict=True)
            return tuple(linear(x, self.call[f"{p}_proj_weight"], cut(bias, 0, i * width, (i + 1) * width))
                         for x, p, i in inputs)  # fmt: skip
        if self.query is self.key is self.value:
            return tuple(project(self.query, 0, 3))
        if self.key is self.value:
            return (*project(self.query, 0, 1), *project(self.key, 1, 2))
        return (*project(self.query, 0, 1), *project(self.key, 1, 1), *project(self.value, 2, 1))

    def _extended(self, x: Any, row: Any) -> Any:
        """Keys or values with the learned position and the one of zeros behind them, where the module has them."""
        if row is not None:
            x = concat(5, x, expand_to(row, (x.shape[0], 1, self.width)))
        return _padded(x, 5, 1) if self.call["add_zero_attn"] else x

    def _split_heads(self, x: Any) -> Any:
        batch, positions, width = x.shape
        return to_order(to_shape(x, (batch, positions, self.heads, width // self.heads)), (0, 2, 1, 3))

    def _mask(self) -> Any:
        """The masks as one sum that broadcasts to the scores, None without masks; appended positions are kept."""
        mask, padding = (self._additive(self.call[name]) for name in ("attn_mask", "key_padding_mask"))
        batch = self.query.shape[0]
        if mask is not None and len(mask.shape) == 3:
            mask = to_shape(mask, (batch, self.heads, *mask.shape[1:]))
        if padding is not None:
            padding = to_shape(padding, (batch, 1, 1, padding.shape[-1]))
        merged = padding if mask is None else mask if padding is None else add(mask, padding)
        appended = self.heads_apart[1].shape[2] - self.key.shape[1]
        return _padded(merged, 6, appended) if merged is not None and appended else merged

    def _additive(self, mask: Any) -> Any:
        dtype = self.query.dtype
        if mask is None or mask.dtype == dtype:
            return mask
        if mask.dtype != torch.bool:
            raise Unsupported(
                f"nn.MultiheadAttention is left whole: a mask of {mask.dtype} and a query of {dtype}"
            )
        return mask_bias(mask, self.query)


def _padded(x: Any, slot: int, count: int) -> Any:
    """`count` zeros behind `x` along the axis in `slot`."""
    return pad(x, (0,) * SLOTS, tuple(count * (i == slot) for i in range(SLOTS)), 0.0)


def _batch_first(x: Any, batch_first: bool) -> Any:
    """(batch, positions, width) of what `nn.MultiheadAttention` accepts."""
    if len(x.shape) == 2:
        return to_shape(x, (1, *x.shape))
    return x if batch_first else to_order(x, (1, 0, 2))


def _for_every_query(x: Any, heads: int) -> Any:
    """Keys or values with each head repeated for the query heads that share it (Ainslie et al. 2023)."""
    if x.shape[-3] == heads:
        return x
    return IMPORTERS["repeat_interleave.self_int"](x, heads // x.shape[-3], -3)


@aten("scaled_dot_product_attention.default")
def _sdpa(
    q: Any, k: Any, v: Any, mask: Any = None, dropout: float = 0.0, is_causal: bool = False, *,
    scale: float | None = None, enable_gqa: bool = False,
) -> Any:  # fmt: skip
    if dropout or len(q.shape) < 3:
        raise Unsupported("attention with dropout or without batch")
    if enable_gqa:
        k, v = (_for_every_query(x, q.shape[-3]) for x in (k, v))
    scale = float(q.shape[-1]) ** -0.5 if scale is None else float(scale)
    if is_causal:
        if mask is not None:
            raise Unsupported("attention both causal and masked")
        return causal_attention(q, k, v, scale)
    if mask is not None:
        return masked_attention(q, k, v, mask, scale)
    return attention(q, k, v, scale)
