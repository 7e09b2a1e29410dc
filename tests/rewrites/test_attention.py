"""Attention: every configuration of `nn.MultiheadAttention`, chains recognized, masks merged, scales folded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
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


class Chain(nn.Module):
    """Attention written out, as told: where the scale stands, and what is added to the scores."""

    def __init__(self, scaled: str, bias: str, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.scaled, self.bias, self.heads, size = scaled, bias, heads, width // heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.dropout, self.scale, self.root = nn.Dropout(0.1), size**-0.5, size**0.5
        self.positions = nn.Parameter(torch.randn(heads, POSITIONS, POSITIONS))
        self.register_buffer("near", torch.eye(POSITIONS))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        match self.scaled:
            case "query":
                scores = (q * self.scale) @ k.transpose(-2, -1)
            case "key":
                scores = q @ (k / self.root).transpose(-2, -1)
            case "product":
                scores = (q @ k.permute(0, 1, 3, 2)) * self.scale
            case "quotient":
                scores = torch.matmul(q, k.mT) / self.root
        match self.bias:
            case "positions":
                scores = scores + self.positions.unsqueeze(0)
            case "both":
                scores = scores + self.positions + self.near
        attended = self.dropout(scores.softmax(-1)) @ v
        return self.out(attended.transpose(1, 2).flatten(2))


def functions(module: nn.Module) -> list[str]:
    """Names of the functions that the graph calls, in order."""
    return [
        getattr(n.target, "__name__", str(n.target)) for n in module.graph.nodes if n.op == "call_function"
    ]  # type: ignore[union-attr]


@pytest.mark.parametrize("bias", ["none", "positions", "both"])
@pytest.mark.parametrize("scaled", ["query", "key", "product", "quotient"])
def test_a_chain_of_products_is_attention(scaled, bias):
    model = randomized(Chain(scaled, bias))
    result = optimized(model, image(2, POSITIONS, 16), cost="openvino_fp32")
    called = functions(result)
    assert called.count("scaled_dot_product_attention") == 1
    assert not {"softmax", "matmul", "mul", "add"} & set(called)
    assert_same(model, result, image(3, POSITIONS, 16))


def test_the_weights_that_are_read_serve_the_values_as_well():
    model = randomized(Attending(Configuration(reads="memory", weights="averaged")))
    result = optimized(model, image(2, POSITIONS, 4), cost="kernels")
    assert functions(result).count("softmax") == 1
    assert_same(model, result, image(3, POSITIONS, 4))


def test_shifted_windows_attend_under_one_constant_mask():
    from torchvision.models import SwinTransformer

    import benchmarks._models  # noqa: F401  (declares what torchvision wants of torch)

    model = randomized(SwinTransformer([4, 4], 12, [2], [2], [3, 3], num_classes=5))
    result = optimized(model, image(2, 3, 24, 24), cost="openvino_fp32")
    attended = [n for n in result.graph.nodes if "scaled_dot_product" in str(n.target)]
    assert len(attended) == 2
    assert not {"softmax", "matmul", "mul"} & set(functions(result))
    assert {n.args[3].op for n in attended} == {"get_attr"}
    assert {"windows-as-heads", "masked-chain-is-attention"} <= set(result.report.used_rules())
    assert_same(model, result, image(3, 3, 24, 24))


@pytest.mark.parametrize("lane", ["tensorrt", "onnxruntime"])
def test_masked_attention_exports(lane):
    onnx = pytest.importorskip("onnx")
    from eqsat_deploy.engines.onnx import export_onnx
    from eqsat_deploy.targets import find_target

    result = optimized(randomized(Chain("query", "both")), image(2, POSITIONS, 16), cost="openvino_fp32")
    graph = onnx.load_from_string(export_onnx(result, lane=find_target(lane).lane).model).graph
    assert [n.op_type for n in graph.node].count("Softmax") == 1


def test_masked_attention_converts_for_openvino():
    openvino = pytest.importorskip("openvino")
    model, x = randomized(Chain("query", "both")), image(2, POSITIONS, 16)
    result = optimized(model, x, cost="openvino_fp32")
    converted = openvino.convert_model(torch.export.export(result, (x,)))
    compiled = openvino.compile_model(converted, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    actual = torch.from_numpy(compiled(x.numpy())[0])
    assert torch.allclose(actual, model(x), atol=1e-4)


class Masked(nn.Module):
    """Attention by its chain, a mask of booleans written into its scores: the kept positions are an input, or later
    positions are removed."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        self.spelling, self.project = spelling, nn.Linear(8, 24)
        self.register_buffer("later", torch.ones(POSITIONS, POSITIONS).triu(1).bool())

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        q, k, v = self.project(x).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        scores = q @ k.transpose(-2, -1) * 0.5
        kept = keep[:, None, None, :] > 0
        match self.spelling:
            case "masked_fill":
                scores = scores.masked_fill(~kept, -torch.inf)
            case "masked_fill_":
                scores.masked_fill_(torch.logical_not(kept), float("-inf"))
            case "where":
                scores = torch.where(kept, scores, -torch.inf)
            case "where of both":
                scores = torch.where(kept & ~self.later, scores, -torch.inf)
            case "added":
                scores = scores + torch.zeros_like(scores).masked_fill(~kept, -torch.inf)
            case "added number":
                scores = scores + (1.0 - kept[..., :].to(x.dtype)) * -1e4
            case "constant":
                scores = scores.masked_fill(self.later, -torch.inf)
            case "least":
                scores = scores.masked_fill(~kept, torch.finfo(x.dtype).min)
        return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def masked_inputs(batch: int) -> tuple[Tensor, Tensor]:
    keep = torch.ones(batch, POSITIONS, dtype=torch.int64)
    keep[1, 2:] = 0
    return image(batch, POSITIONS, 8, seed=batch), keep


@pytest.mark.parametrize("spelling", ["masked_fill", "masked_fill_", "where", "where of both", "added",
                                      "added number", "constant"])  # fmt: skip
def test_a_mask_of_booleans_is_one_of_attention(spelling):
    model = randomized(Masked(spelling))
    result = optimized(model, masked_inputs(2), cost="openvino_fp32")
    called = functions(result)
    assert called.count("scaled_dot_product_attention") == 1
    assert not {"softmax", "matmul"} & set(called)
    assert not result.report.opaque
    assert_same(model, result, *masked_inputs(3))


def test_the_least_number_written_over_all_of_a_row_is_no_mask():
    model = randomized(Masked("least"))
    result = optimized(model, masked_inputs(2), cost="openvino_fp32")
    assert "scaled_dot_product_attention" not in functions(result)
    x, keep = masked_inputs(3)
    keep[2] = 0
    assert_same(model, result, x, keep)


def eager(name: str) -> nn.Module:
    """A model of transformers that computes attention by its chain."""
    transformers = pytest.importorskip("transformers")
    from benchmarks._models import TRANSFORMERS

    config, kind, options, _ = TRANSFORMERS[name]
    torch.manual_seed(0)
    configured = getattr(transformers, config)(**options | {"attn_implementation": "eager"})
    return randomized(getattr(transformers, kind)(configured))


@pytest.mark.parametrize("how", ["eager", "sdpa"])
def test_bert_reads_the_mask_of_its_padding_once_and_as_it_came(how):
    model, tokens = eager("bert"), bert_inputs(2)
    model.set_attn_implementation(how)
    result = optimized(model, tokens, cost="openvino_fp32")
    attended = [n for n in result.graph.nodes if "scaled_dot_product" in str(n.target)]
    masks = {n.args[3] for n in attended}
    assert len(attended) == 3
    assert len(masks) == 1
    assert not {"softmax", "matmul"} & set(functions(result))
    assert result.report.opaque == []
    seen: list[Any] = []
    module = torch.fx.Interpreter(result)
    module.run_node = lambda n, run=module.run_node: (seen.append((n, value := run(n))), value)[1]
    module.run(*tokens.values())
    (mask,) = (value for node, value in seen if node in masks)
    assert mask.shape == (2, 1, 1, 16)
    assert_same(model, result, **bert_inputs(3))


def bert_inputs(batch: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(batch)
    kept = torch.ones(batch, 16, dtype=torch.int64)
    kept[1, 9:] = 0
    return {"input_ids": torch.randint(0, 200, (batch, 16), generator=generator), "attention_mask": kept}


def test_eager_attention_of_bert_needs_no_mask_that_keeps_all():
    from benchmarks._models import inputs

    model, tokens = eager("bert"), inputs("transformers:bert")
    result = optimized(model, tokens, cost="openvino_fp32")
    attended = [n for n in result.graph.nodes if "scaled_dot_product" in str(n.target)]
    assert [len(n.args) for n in attended] == [3, 3, 3]
    assert not {"softmax", "matmul", "where"} & set(functions(result))
    assert not result.report.opaque
    assert_same(model, result, **tokens)


class Grouped(nn.Module):
    """Four heads of queries that share two of keys and values, which are repeated as models spell it."""

    def __init__(self, spelling: str, mask: str) -> None:
        super().__init__()
        self.spelling, self.mask = spelling, mask
        self.q, self.kv = nn.Linear(8, 16), nn.Linear(8, 16)
        self.register_buffer("near", torch.eye(POSITIONS)[None, None])

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        q = self.q(x).unflatten(2, (4, 4)).transpose(1, 2)
        k, v = self.kv(x).unflatten(2, (2, 2, 4)).permute(2, 0, 3, 1, 4)
        match self.mask:
            case "none":
                mask = None
            case "padding":
                mask = (keep > 0)[:, None, None, :]
            case "positions":
                mask = self.near
        match self.spelling:
            case "enable_gqa":
                y = F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True)
            case "interleaved":
                k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
                y = F.scaled_dot_product_attention(q, k, v, mask)
            case "expanded":
                k, v = (t[:, :, None].expand(-1, -1, 2, -1, -1).reshape(-1, 4, POSITIONS, 4) for t in (k, v))
                scores = q @ k.transpose(2, 3) / 2
                if self.mask == "padding":
                    mask = torch.where(mask, 0.0, -torch.inf)
                y = (scores if mask is None else scores + mask).softmax(-1) @ v
            case "causal":
                y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return y.transpose(1, 2).flatten(2)


@pytest.mark.parametrize("mask", ["none", "padding", "positions"])
@pytest.mark.parametrize("spelling", ["enable_gqa", "interleaved", "expanded"])
def test_keys_that_queries_share_are_not_repeated(spelling, mask):
    model = randomized(Grouped(spelling, mask))
    result = optimized(model, masked_inputs(2), cost="openvino_fp32")
    called = functions(result)
    assert called.count("scaled_dot_product_attention") == 1
    assert not {"softmax", "matmul", "expand"} & set(called)
    assert not [n for n in result.graph.nodes if n.target == "expand"]
    assert not result.report.opaque
    assert_same(model, result, *masked_inputs(3))


def test_causal_attention_of_grouped_queries_comes_through():
    model = randomized(Grouped("causal", "none"))
    result = optimized(model, masked_inputs(2), cost="openvino_fp32")
    assert not result.report.opaque
    assert_same(model, result, *masked_inputs(3))
