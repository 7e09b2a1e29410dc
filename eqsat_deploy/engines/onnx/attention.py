"""Attention in ONNX operators, of which opset 23 has one; the table of each opset."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from eqsat_deploy.engines.onnx import functions, pointwise  # noqa: F401 - which fill the table
from eqsat_deploy.engines.onnx.writing import FUNCTIONS, made, permuted, value_of
from eqsat_deploy.engines.writing import FREE, Functions, refuse

# TensorRT's fusion asks for attention as MatMul, Softmax, MatMul with the scale on query and key; from opset 23 on it
# is one Attention node, which TensorRT reads from 10.14 on.
OPSET = 21
ATTENTION_OPSET = 23


def functions_of(opset: int) -> Functions:
    """What writes modules in `opset`."""
    return WHOLE_ATTENTION if opset >= ATTENTION_OPSET else FUNCTIONS


@FUNCTIONS.writes(F.scaled_dot_product_attention)
def _attention(
    query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0, is_causal: bool = False,
    scale: float | None = None, enable_gqa: bool = False,
) -> Any:  # fmt: skip
    """The form that TensorRT's fusion asks for: two products around a softmax, query and key scaled by the root."""
    refuse(dropout_p, enable_gqa)
    by = np.float32(math.sqrt(1 / math.sqrt(query.shape[-1]) if scale is None else scale))
    rows, columns = query.shape[-2], key.shape[-2]
    order = [*range(key.dim() - 2), key.dim() - 1, key.dim() - 2]
    turned = permuted(value_of(key), order)
    if by != 1:
        query, turned = made("Mul", query, by), made("Mul", turned, by)
    scores = made("MatMul", query, turned)
    if is_causal:
        refuse(FREE in (rows, columns))
        later = np.triu(np.ones((rows, columns), bool), 1)
        scores = made("Add", scores, np.where(later, np.float32(-np.inf), np.float32(0)))
    if attn_mask is not None:
        scores = made("Add", scores, _added(attn_mask))
    return made("MatMul", made("Softmax", scores, axis=-1), value)


def _added(mask: Any) -> Any:
    """What is added to scores; of a boolean mask, nothing where it is true."""
    if mask.dtype != torch.bool:
        return mask
    if isinstance(mask, Tensor):
        return torch.zeros(mask.shape).masked_fill(~mask, -math.inf)
    return made("Where", mask, np.float32(0), np.float32(-np.inf))


WHOLE_ATTENTION = Functions(FUNCTIONS.result)
WHOLE_ATTENTION.update(FUNCTIONS)


@WHOLE_ATTENTION.writes(F.scaled_dot_product_attention)
def _whole_attention(
    query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0, is_causal: bool = False,
    scale: float | None = None, enable_gqa: bool = False,
) -> Any:  # fmt: skip
    refuse(dropout_p, enable_gqa)
    # TensorRT takes keys and values of one shape, though ONNX has other widths of values, too.
    alike = query.dim() == 4 and query.shape[:1] == key.shape[:1] and key.shape == value.shape
    if not alike or (attn_mask is not None and attn_mask.dtype == torch.bool):
        return _attention(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    return made("Attention", query, key, value, attn_mask, is_causal=int(is_causal), scale=scale)
