"""Attention: every configuration of `nn.MultiheadAttention`, chains recognized, masks merged, scales folded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.support.models import image, randomized
from tests.support.stages import assert_same, optimized

POSITIONS, OTHERS, HEADS = 4, 3, 2


@dataclass(frozen=True)
class Configuration:
    """How an `nn.MultiheadAttention` is made and called."""

    reads: str = "self"
    layout: str = "batch first"
    mask: str = "none"
    padding: str = "none"
    causal: bool = False
    weights: str = "none"
    bias: bool = True
    appended: bool = False
    zero: bool = False
    widths: bool = False


class Attending(nn.Module):
    """Attention of (batch, positions, width) to itself, or to other positions computed from it."""

    def __init__(self, how: Configuration, width: int = 4) -> None:
        super().__init__()
        self.how, own = how, how.widths
        self.other, self.third = nn.Linear(POSITIONS, OTHERS), nn.Linear(width, width)
        self.key, self.value = nn.Linear(width, 6 if own else width), nn.Linear(width, 5 if own else width)
        self.attention = nn.MultiheadAttention(
            width, HEADS, bias=how.bias, add_bias_kv=how.appended, add_zero_attn=how.zero,
            kdim=6 if own else None, vdim=5 if own else None, batch_first=how.layout == "batch first",
        )  # fmt: skip

    def forward(self, x: Tensor) -> Any:
        how = self.how
        query, key, value = self.inputs(x.mean(0, keepdim=True) if how.layout == "unbatched" else x)
        mask, padding = self.masks(query, key)
        if how.layout == "unbatched":
            query, key, value = query[0], key[0], value[0]
            padding = padding[0] if padding is not None else None
        elif how.layout == "batch second":
            query, key, value = (t.transpose(0, 1) for t in (query, key, value))
        if how.reads == "self" and not how.widths:
            key = value = query
        elif how.reads == "memory" and not how.widths:
            value = key
        result = self.attention(
            query, key, value, padding, how.weights != "none", mask, how.weights == "averaged", how.causal
        )
        return result if how.weights in ("averaged", "per head") else result[0]

    def masks(self, query: Tensor, key: Tensor) -> tuple[Any, Any]:
        """Never all of a row: there is no answer where nothing is attended to."""
        later = torch.ones(POSITIONS, key.shape[1]).tril() == 0
        mask: Any = None
        match self.how.mask:
            case "bool":
                mask = later
            case "float":
                mask = later * -2.5
            case "float per head":
                mask = (later * -2.5 + query[:, :1, :1]).repeat_interleave(HEADS, 0)
            case "bool per head":
                mask = (later & (query[:, :1, :1] > 0)).repeat_interleave(HEADS, 0)
        if self.how.padding == "none":
            return mask, None
        padding = key[:, :, 0] > key[:, :1, 0] + 0.1
        return mask, padding * -1.5 if self.how.padding == "float" else padding

    def inputs(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.how.reads == "self" and not self.how.widths:
            return x, x, x
        memory = self.other(x.transpose(1, 2)).transpose(1, 2)
        if self.how.reads == "memory" and not self.how.widths:
            return x, memory, memory
        return x, self.key(memory), self.value(memory)


configurations = st.builds(
    Configuration,
    reads=st.sampled_from(("self", "memory", "key and value")),
    layout=st.sampled_from(("batch first", "batch second", "unbatched")),
    mask=st.sampled_from(("none", "bool", "float", "float per head", "bool per head")),
    padding=st.sampled_from(("none", "bool", "float")),
    causal=st.booleans(),
    weights=st.sampled_from(("none", "unread", "averaged", "per head")),
    bias=st.booleans(), appended=st.booleans(), zero=st.booleans(), widths=st.booleans(),
).filter(lambda how: how.mask != "none" or not how.causal)  # fmt: skip
EACH = [
    Configuration(),
    Configuration(reads="memory"),
    Configuration(reads="key and value"),
    Configuration(layout="batch second"),
    Configuration(layout="unbatched"),
    Configuration(mask="bool"),
    Configuration(mask="float per head"),
    Configuration(padding="bool"),
    Configuration(mask="bool", causal=True),
    Configuration(mask="bool", causal=True, padding="bool"),
    Configuration(mask="bool", causal=True, weights="averaged"),
    Configuration(weights="averaged"),
    Configuration(weights="per head", reads="memory"),
    Configuration(bias=False),
    Configuration(widths=True),
    Configuration(appended=True, zero=True, mask="float", padding="bool"),
]


def check(how: Configuration) -> None:
    model = randomized(Attending(how))
    result = optimized(model, image(2, POSITIONS, 4))
    assert not any("multihead" in name for name in result.report.opaque)
    assert_same(model, result, image(2, POSITIONS, 4, seed=1))
    assert_same(model, result, image(3, POSITIONS, 4, seed=2))


@pytest.mark.parametrize("how", EACH, ids=str)
def test_a_configuration_of_multihead_attention_is_taken_apart(how):
    check(how)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(configurations)
def test_any_configuration_of_multihead_attention_is_taken_apart(how):
    check(how)
