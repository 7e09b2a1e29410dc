"""`nn.MultiheadAttention` as one operator: traced whole, so that decomposing it is a choice and not a given."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@torch.library.custom_op("eqsat_deploy::multihead_attention", mutates_args=())
def multihead_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    in_proj_weight: Tensor | None,
    q_proj_weight: Tensor | None,
    k_proj_weight: Tensor | None,
    v_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    key_padding_mask: Tensor | None,
    attn_mask: Tensor | None,
    embed_dim: int,
    num_heads: int,
    add_zero_attn: bool,
    batch_first: bool,
    need_weights: bool,
    average_attn_weights: bool,
    is_causal: bool,
) -> tuple[Tensor, Tensor]:
    """`nn.MultiheadAttention.forward` in eval mode; without weights the second result is empty."""
    if batch_first and query.dim() == 3:
        query, key, value = (t.transpose(0, 1) for t in (query, key, value))
    out, weights = F.multi_head_attention_forward(
        query, key, value, embed_dim, num_heads, in_proj_weight, in_proj_bias, bias_k, bias_v, add_zero_attn,
        0.0, out_proj_weight, out_proj_bias, training=False, key_padding_mask=key_padding_mask,
        need_weights=need_weights, attn_mask=attn_mask, use_separate_proj_weight=in_proj_weight is None,
        q_proj_weight=q_proj_weight, k_proj_weight=k_proj_weight, v_proj_weight=v_proj_weight,
        average_attn_weights=average_attn_weights, is_causal=is_causal,
    )  # fmt: skip
    if batch_first and query.dim() == 3:
        out = out.transpose(0, 1)
    return out.contiguous(), query.new_empty(0) if weights is None else weights.contiguous()


@multihead_attention.register_fake
def _fake(
    query: Tensor, key: Tensor, value: Tensor, in_proj_weight: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor]:
    bias_k, embed_dim, num_heads, add_zero_attn, batch_first, need_weights, average = (
        rest[4], rest[10], rest[11], rest[12], rest[13], rest[14], rest[15],
    )  # fmt: skip
    out = query.new_empty((*query.shape[:-1], embed_dim))
    if not need_weights:
        return out, query.new_empty(0)
    extra = int(bias_k is not None) + int(add_zero_attn)
    batch: tuple[Any, ...]
    if query.dim() == 2:
        batch, target, source = (), query.shape[0], key.shape[0] + extra
    elif batch_first:
        batch, target, source = (query.shape[0],), query.shape[1], key.shape[1] + extra
    else:
        batch, target, source = (query.shape[1],), query.shape[0], key.shape[0] + extra
    heads = () if average else (num_heads,)
    return out, query.new_empty((*batch, *heads, target, source))


class _WholeMultiheadAttention(nn.MultiheadAttention):
    """Calls the one operator instead of decomposing."""

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As `nn.MultiheadAttention.forward`."""
        out, weights = multihead_attention(
            query, key, value, self.in_proj_weight, self.q_proj_weight, self.k_proj_weight, self.v_proj_weight,
            self.in_proj_bias, self.bias_k, self.bias_v, self.out_proj.weight, self.out_proj.bias,
            key_padding_mask, attn_mask, self.embed_dim, self.num_heads, self.add_zero_attn, self.batch_first,
            need_weights, average_attn_weights, is_causal,
        )  # fmt: skip
        return out, weights if need_weights else None


def keep_attention_whole(model: nn.Module) -> None:
    """Make every plain `nn.MultiheadAttention` below `model` trace as one operator, in place."""
    for module in model.modules():
        if type(module) is nn.MultiheadAttention:
            module.__class__ = _WholeMultiheadAttention


def rebuild_attention(operands: dict[str, Any]) -> nn.MultiheadAttention:
    """An `nn.MultiheadAttention` from the operator's arguments by name (parameters as tensors)."""
    q_weight, k_weight, v_weight = (operands[f"{p}_proj_weight"] for p in "qkv")
    module = nn.MultiheadAttention(
        operands["embed_dim"], operands["num_heads"], bias=operands["in_proj_bias"] is not None,
        add_bias_kv=operands["bias_k"] is not None, add_zero_attn=operands["add_zero_attn"],
        kdim=None if k_weight is None else k_weight.shape[1], vdim=None if v_weight is None else v_weight.shape[1],
        batch_first=operands["batch_first"], device="meta",
    )  # fmt: skip
    values = {"in_proj_weight": operands["in_proj_weight"], "q_proj_weight": q_weight, "k_proj_weight": k_weight,
              "v_proj_weight": v_weight, "in_proj_bias": operands["in_proj_bias"], "bias_k": operands["bias_k"],
              "bias_v": operands["bias_v"]}  # fmt: skip
    for name, tensor in values.items():
        setattr(module, name, None if tensor is None else nn.Parameter(tensor))
    module.out_proj.weight = nn.Parameter(operands["out_proj_weight"])
    bias = operands["out_proj_bias"]
    module.out_proj.register_parameter("bias", None if bias is None else nn.Parameter(bias))
    return module.eval()
