"""The ONNX lanes: what each file holds, and that it computes what the fake-quantized module computes."""

from __future__ import annotations

import copy
import pickle
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from eqsat_deploy.deployment import Quantizer, deployment, record
from eqsat_deploy.engines import Batch
from eqsat_deploy.engines.onnx import ONNXRUNTIME, TENSORRT, export_onnx, nodes_of
from eqsat_deploy.errors import EngineError
from eqsat_deploy.grid import IntegerGrid
from eqsat_deploy.language.normalization import Standardize
from eqsat_deploy.quantization import FakeQuantize, QuantizedConv2d, quantize
from tests.deploy.placing import ADDS, WEIGHTED, Attention, Residual, images, int8, traced
from tests.support.models import image, randomized
from tests.support.stages import optimized

onnx = pytest.importorskip("onnx")
reference = pytest.importorskip("onnx.reference")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

LANES = {"tensorrt": TENSORRT, "onnxruntime": ONNXRUNTIME}


def module(make: Callable[[], nn.Module] = Residual) -> fx.GraphModule:
    torch.manual_seed(0)
    return traced(make(), torch.zeros(1, 3, 32, 32))


def quantized(
    make: Callable[[], nn.Module] = Residual, readers: Any = WEIGHTED, **settings: Any
) -> fx.GraphModule:
    return quantize(int8(module(make), readers), images(3), **settings)


def parsed(model: fx.GraphModule, lane: str, **settings: Any) -> Any:
    file = onnx.load_model_from_string(export_onnx(model, lane=LANES[lane], **settings).model)
    onnx.checker.check_model(file, full_check=True)
    return file


def counts(file: Any) -> Counter[str]:
    return Counter(node.op_type for node in file.graph.node)


def constants(file: Any) -> dict[str, np.ndarray]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in file.graph.initializer}


def nodes(file: Any, op_type: str) -> list[Any]:
    return [node for node in file.graph.node if node.op_type == op_type]


def execute(file: Any, *inputs: Tensor) -> list[Tensor]:
    """The file as written, without ONNX Runtime's rewriting: Q and DQ around operators in float."""
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    settings.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        file.SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )
    names = [value.name for value in session.get_inputs()]
    feeds = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
    return [torch.from_numpy(result) for result in session.run(None, feeds)]


def sqnr(expected: Tensor, found: Tensor) -> float:
    return float(10 * torch.log10((expected**2).sum() / ((expected - found) ** 2).sum().clamp_min(1e-30)))


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("make", [Residual, Attention])
def test_a_float_module_exports_with_any_batch(make: Callable[[], nn.Module], lane: str) -> None:
    model = module(make)
    file = parsed(model, lane)
    assert "QuantizeLinear" not in counts(file)
    for size in (1, 5):
        x = images(1, batch=size)[0]
        found = execute(file, x)[0]
        assert found.dtype == torch.float32
        with torch.no_grad():
            assert sqnr(model(x), found) > (50 if lane == "tensorrt" else 100)


@pytest.mark.parametrize("make", [Residual, Attention])
def test_the_onnxruntime_file_computes_what_the_module_computes(make: Callable[[], nn.Module]) -> None:
    model = quantized(make)
    file = parsed(model, "onnxruntime")
    x = images(1, batch=3, seed=5)[0]
    with torch.no_grad():
        assert sqnr(model(x), execute(file, x)[0]) > 60


@pytest.mark.parametrize("make", [Residual, Attention])
def test_the_tensorrt_file_differs_by_fp16_rounding(make: Callable[[], nn.Module]) -> None:
    """Codes flip where FP16 arithmetic moves a value over a rounding boundary, hence not more than 30 dB."""
    model = quantized(make, grid=IntegerGrid())
    file = parsed(model, "tensorrt")
    x = images(1, batch=3, seed=5)[0]
    with torch.no_grad():
        plain, rounded = module(make)(x), model(x)
    found = execute(file, x)[0]
    assert sqnr(rounded, found) > 30
    assert sqnr(rounded, found) > sqnr(plain, rounded)


def test_the_tensorrt_lane_is_symmetric_int8_with_everything_else_in_half() -> None:
    file = parsed(quantized(), "tensorrt")
    values = constants(file)
    for node in nodes(file, "QuantizeLinear") + nodes(file, "DequantizeLinear"):
        scale, zero_point = values[node.input[1]], values[node.input[2]]
        assert scale.dtype == np.float16
        assert (scale > 0).all()
        assert zero_point.dtype == np.int8
        assert not zero_point.any()
    assert np.float32 not in {value.dtype.type for value in values.values()}
    assert {i.type.tensor_type.elem_type for i in [*file.graph.input, *file.graph.output]} == {1}
    assert counts(file)["Cast"] == 2


def test_unsigned_activations_keep_their_range_in_the_tensorrt_lane() -> None:
    model = quantized()
    unsigned = model.get_submodule("relu_quantizer")
    assert unsigned.unsigned  # type: ignore[union-attr]
    scale = constants(parsed(model, "tensorrt"))["relu_scale"]
    assert float(scale) * 127 == pytest.approx(float(unsigned.step) * 255, rel=1e-3)  # type: ignore[arg-type, operator]


def test_asymmetric_activations_become_symmetric_for_tensorrt_and_stay_for_onnxruntime() -> None:
    model = quantized()
    quantizer = FakeQuantize(torch.tensor(0.02), low=0, high=255, zero_point=100)
    model.x_quantizer = quantizer
    low, high = (float(quantizer.step) * (code - int(quantizer.zero_point)) for code in (0, 255))  # type: ignore[arg-type, operator]
    assert float(constants(parsed(model, "tensorrt"))["x_scale"]) * 127 == pytest.approx(
        max(-low, high), rel=1e-3
    )
    values = constants(parsed(model, "onnxruntime"))
    assert int(values["x_zero_point"]) == int(quantizer.zero_point) > 0  # type: ignore[arg-type]


@pytest.mark.parametrize("lane", LANES)
def test_weights_are_stored_as_int8_per_output_channel(lane: str) -> None:
    model = quantized()
    file = parsed(model, lane)
    values = constants(file)
    stem = model.get_submodule("stem")
    assert isinstance(stem, QuantizedConv2d)
    codes, scale = values["stem.weight_int8"], values["stem.weight_scale"].astype(np.float64)
    assert codes.dtype == np.int8
    assert scale.shape == (16,)
    expected = stem.weight_quantizer(stem.weight).detach().numpy()
    steps = np.abs(codes * scale[:, None, None, None] - expected) / scale[:, None, None, None]
    assert steps.max() <= (1.0 if lane == "tensorrt" else 1e-3)
    assert "stem.weight" not in values
    node = next(node for node in nodes(file, "DequantizeLinear") if node.input[0] == "stem.weight_int8")
    assert [attribute.i for attribute in node.attribute if attribute.name == "axis"] == [0]


@pytest.mark.parametrize("lane", LANES)
def test_a_weight_reaches_its_matmul_without_a_transpose(lane: str) -> None:
    file = parsed(quantized(Attention), lane)
    dequantized = {node.output[0]: node for node in nodes(file, "DequantizeLinear")}
    products = [node for node in nodes(file, "MatMul") if node.input[1] in dequantized]
    assert len(products) >= 4
    for product in products:
        weight = dequantized[product.input[1]]
        assert [attribute.i for attribute in weight.attribute if attribute.name == "axis"] == [1]


@pytest.mark.parametrize("lane", LANES)
def test_layer_norm_and_gelu_stay_whole(lane: str) -> None:
    found = counts(parsed(quantized(Attention), lane))
    assert found["LayerNormalization"] == 3
    assert found["Gelu"] == 1
    assert not {"Erf", "Pow", "Sqrt"} & set(found)


def test_attention_is_whole_from_opset_23_on_and_scaled_before_the_first_product_otherwise() -> None:
    model = quantized(Attention)
    assert counts(parsed(model, "tensorrt", opset=23))["Attention"] == 1
    file = parsed(model, "tensorrt", opset=21)
    assert "Attention" not in counts(file)
    softmax = nodes(file, "Softmax")[0]
    scores = next(node for node in file.graph.node if node.output[0] == softmax.input[0])
    assert scores.op_type == "MatMul"
    scaled = [node for node in file.graph.node if node.output[0] in scores.input]
    assert [node.op_type for node in scaled] == ["Mul", "Mul"]


def test_one_quantizer_serves_all_readers_of_a_tensor() -> None:
    file = parsed(quantized(readers=WEIGHTED + ADDS), "tensorrt")
    quantized_values = [node.input[0] for node in nodes(file, "QuantizeLinear")]
    assert len(quantized_values) == len(set(quantized_values))


def test_the_onnxruntime_lane_is_unsigned_also_where_quantization_was_not() -> None:
    model = quantized(grid=IntegerGrid())
    values = constants(parsed(model, "onnxruntime"))
    assert {
        value.dtype.type for name, value in values.items() if name.endswith("_zero_point") and not value.ndim
    } == {np.uint8}
    assert (int(values["relu_zero_point"]), int(values["x_zero_point"])) == (0, 128)
    for name in ("relu", "x"):
        assert float(values[f"{name}_scale"]) == float(model.get_submodule(f"{name}_quantizer").step)  # type: ignore[arg-type]


class Unquantized(nn.Module):
    """A residual block whose second convolution is not quantized after it, as TensorRT likes it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(3 if i == 0 else 8, 8, 3, padding=1) for i in range(2))
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        return self.last(F.relu(x + self.second(x)))


def test_the_residual_edge_is_quantized_for_onnxruntime_alone_without_clipping() -> None:
    model = int8(module(Unquantized))
    placement = deployment(model).placement
    quantizers = (
        Quantizer(q.tensor, (*q.readers, "add") if q.tensor == "relu" else q.readers)
        for q in placement.quantizers
    )
    record(model, placement=replace(placement, quantizers=tuple(quantizers)))
    model = quantize(model, images(3))
    assert "second_quantize" not in {node.name for node in parsed(model, "tensorrt").graph.node}
    file = parsed(model, "onnxruntime")
    changes = export_onnx(model, lane=ONNXRUNTIME).changes
    assert changes == ("1 convolutions were quantized where they meet a residual sum",)
    values = constants(file)
    assert "second_quantize" in {node.name for node in file.graph.node}
    scale, zero_point = float(values["second_scale"]), int(values["second_zero_point"])
    high = {name: 255 * float(values[f"{name}_scale"]) for name in ("relu", "relu_1")}
    assert -zero_point * scale <= -high["relu"] + scale
    assert (255 - zero_point) * scale >= high["relu_1"] - scale
    x = images(1, batch=3, seed=5)[0]
    with torch.no_grad():
        assert sqnr(model(x), execute(file, x)[0]) > 25  # one rounding more than the module has


def test_a_gemm_is_split_for_onnxruntime() -> None:
    assert counts(parsed(quantized(), "tensorrt"))["Gemm"] == 1
    found = counts(parsed(quantized(), "onnxruntime"))
    assert "Gemm" not in found
    assert found["MatMul"] == 1


def test_bytes_are_the_same_every_time_and_hold_no_path() -> None:
    model = quantized(Attention)
    for lane in LANES:
        first = export_onnx(model, lane=LANES[lane]).model
        assert first == export_onnx(copy.deepcopy(model), lane=LANES[lane]).model
        assert b".py" not in first


def test_export_leaves_the_module_as_it_is() -> None:
    model = quantized()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    code = model.code
    export_onnx(model, lane=TENSORRT)
    assert model.code == code
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_nodes_and_values_are_named_after_graph_nodes() -> None:
    model = quantized()
    graph_nodes = {node.name for node in model.graph.nodes}
    file = parsed(model, "onnxruntime")
    named = [name for node in file.graph.node for name in nodes_of(node.name)]
    assert {"stem", "depthwise", "pointwise", "add", "head"} <= set(named) <= graph_nodes
    assert [value.name for value in file.graph.input] == ["x"]
    assert [value.name for value in file.graph.output] == ["output_0"]
    assert file.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


class Branches(nn.Module):
    """Two blocks, and operators of the model's own."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            [nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()) for _ in range(2)]
        )
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.blocks[0](x)
        return self.head(self.blocks[1](y) + y)


@pytest.mark.parametrize("lane", LANES)
def test_nodes_carry_the_path_of_the_models_module(lane: str) -> None:
    form = optimized(randomized(Branches()), image(2, 3, 8, 8), cost="kernels")
    file = parsed(pickle.loads(pickle.dumps(form)), lane)
    assert [(node.op_type, node.name) for node in file.graph.node if node.op_type != "Cast"] == [
        ("Conv", "blocks.0.0"), ("Relu", "blocks.0.1/relu"), ("Conv", "blocks.1.0"), ("Relu", "blocks.1.1/relu_1"),
        ("Add", "add"), ("MatMul", "head:MatMul"), ("Add", "head:Add"),
    ]  # fmt: skip
    found = [name for node in file.graph.node if node.op_type != "Cast" for name in nodes_of(node.name)]
    assert found == ["blocks_0_0", "relu", "blocks_1_0", "relu_1", "add", "head", "head"]
    assert set(found) <= {node.name for node in form.graph.nodes}
    assert "head.weight_transposed" in constants(file)


class Oddly(nn.Module):
    """Modules of names that no graph node can have, one of them called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module("1-a", nn.Conv2d(3, 3, 1))
        self.Second = nn.Sequential(nn.Conv2d(3, 3, 1))
        self.x = nn.Conv2d(3, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        first = self.get_submodule("1-a")
        return self.x(first(self.Second(first(x).sigmoid()).sigmoid()).tanh())


def test_names_that_differ_from_graph_nodes_lead_back_to_them() -> None:
    form = optimized(randomized(Oddly()), image(2, 3, 8, 8), cost="kernels")
    called = [node.name for node in form.graph.nodes if node.op == "call_module"]
    file = parsed(form, "onnxruntime")
    convolutions = [node.name for node in nodes(file, "Conv")]
    assert [name.partition("/")[0] for name in convolutions] == ["1_a", "Second.0", "1_a", "x"]
    assert len(set(convolutions)) == 4
    assert [found for name in convolutions for found in nodes_of(name)] == called


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        ("stem + relu", ("stem", "relu")),
        ("stem_token_24", ("stem",)),
        ("x_quantize", ()),
        ("layer4_0_relu_1_dequantize/duplicated", ()),
        ("head:MatMul", ("head",)),
        ("stem.weight_dequantize + stem:Add:1", ("stem",)),
        ("head:Add_quantize", ()),
        ("head_nchwc", ("head",)),
        ("layer1.0/avg_pool2d_1_divided_mul_nchwc", ("avg_pool2d_1_divided",)),
        ("layer1.0.conv1 + layer1.0/add_3", ("layer1_0_conv1", "add_3")),
        ("blocks.0.attn.qkv:MatMul_token_7", ("blocks_0_attn_qkv",)),
        ("Reformatting CopyNode for Input Tensor 0 to layer1.0/add_3", ()),
        ("__myl_Fc\x1e[ONNX Layer: up]\x1f[ONNX Layer: mlp.act/gelu:Mul]", ("__myl_Fc", "up", "gelu")),
    ],
)
def test_layer_names_lead_back_to_graph_nodes(layer: str, expected: tuple[str, ...]) -> None:
    assert nodes_of(layer) == expected


class Many(nn.Module):
    """Several inputs, nested outputs, a returned input, and a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(3, 6, 2, stride=2)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Any]:
        up = self.up(x)
        return {"sum": (x + y, [up]), "again": up, "input": y}


@pytest.mark.parametrize("lane", LANES)
def test_inputs_outputs_and_transposed_convolutions(lane: str) -> None:
    torch.manual_seed(0)
    example = torch.zeros(1, 3, 8, 8)
    model = int8(traced(Many(), example, example, fold=False))
    batch = [tuple(images(2, size=8, seed=1))]
    model = quantize(model, batch)
    file = parsed(model, lane)
    values = constants(file)
    assert values["up.weight_scale"].shape == (6,)
    assert [value.name for value in file.graph.input] == ["x", "y"]
    found = execute(file, *batch[0])
    with torch.no_grad():
        expected = model(*batch[0])
    assert len(found) == 3
    for value, reference in zip(
        found, (expected["sum"][0], expected["again"], expected["input"]), strict=True
    ):
        assert sqnr(reference, value) > 35


class Functional(nn.Module):
    """Weights that are parameters of the model and not of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 3, 3, 3))
        self.matrix = nn.Parameter(torch.randn(4, 5))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.conv2d(x, self.weight).mean((2, 3)), self.matrix)


@pytest.mark.parametrize("lane", LANES)
def test_weights_of_functional_calls_are_stored_as_int8(lane: str) -> None:
    model = quantized(Functional)
    file = parsed(model, lane)
    stored = [value for value in constants(file).values() if value.dtype == np.int8 and value.size > 1]
    assert sorted(value.size for value in stored if value.ndim > 1) == [20, 135]
    x = images(1, seed=5)[0]
    with torch.no_grad():
        assert sqnr(model(x), execute(file, x)[0]) > 30


class Masked(nn.Module):
    """A mask value beyond the range of FP16, and weights below it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.conv.weight.data[1] *= 1e-7
        self.conv.weight.data[2] = 0
        self.register_buffer("mask", torch.tensor([0.0, -1e9]).repeat(2))

    def forward(self, x: Tensor) -> Tensor:
        return F.softmax(self.conv(x).mean((2, 3)) + self.mask, -1)


def test_what_half_cannot_hold_is_clamped_and_scales_stay_positive() -> None:
    model = quantized(Masked)
    file = parsed(model, "tensorrt")
    scale = constants(file)["conv.weight_scale"]
    assert (scale > 0).all()
    assert np.isfinite(scale).all()
    x = images(1, seed=5)[0]
    with torch.no_grad():
        torch.testing.assert_close(execute(file, x)[0], model(x), atol=5e-3, rtol=0)


class Normed(nn.Module):
    def __init__(self, norm: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x * 500)


def _global_response(x: Tensor) -> Tensor:
    norms = torch.sqrt(torch.sum(x * x, (2, 3), keepdim=True))
    return x * (norms / (torch.mean(norms, 1, keepdim=True) + 1e-6))


def _unit(x: Tensor) -> Tensor:
    return x / torch.clamp(torch.sqrt(torch.sum(x * x, 1, keepdim=True)), 1e-12)


NORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "layer norm along channels": Standardize(-3, 1e-6),
    "root mean square": lambda x: F.rms_norm(x, x.shape[-1:], eps=1e-6),
    "unit vectors": _unit,
    "unit vectors of zeros": lambda x: _unit(x * 0),
    "global response": _global_response,
    "root of a sum as result": lambda x: torch.sqrt(torch.sum(x**2, 1)),
    "log of a sum": lambda x: torch.logsumexp(x / 50, 1),
}


def in_half(file: Any, x: Tensor) -> Tensor:
    """With every FP16 rounded and overflowing: ONNX Runtime leaves casts to FP16 and back out."""
    evaluator = reference.ReferenceEvaluator(file)
    return torch.from_numpy(evaluator.run(None, {file.graph.input[0].name: x.numpy()})[0])


@pytest.mark.parametrize("norm", NORMS)
def test_norms_are_float32_in_the_half_graph(norm: str) -> None:
    model = traced(Normed(NORMS[norm]), torch.zeros(1, 3, 8, 8))
    x = images(1, seed=5)[0][..., :8, :8]
    assert (x * 500).pow(2).max() > 65504
    found = in_half(parsed(model, "tensorrt"), x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, model(x), rtol=1e-2, atol=2e-3)


def test_a_norm_of_the_input_reads_it_as_it_is() -> None:
    model = traced(nn.Sequential(Standardize(-3, 1e-6)), torch.zeros(1, 3, 8, 8))
    file = parsed(model, "tensorrt")
    x = images(1, seed=5)[0][..., :8, :8] * 1000
    torch.testing.assert_close(in_half(file, x), model(x), rtol=1e-2, atol=5e-3)
    squares = [node.input[0] for node in nodes(file, "Mul") if node.input[0] == node.input[1]]
    assert len(squares) == 1
    assert counts(file)["Cast"] == 4  # the input, what is squared, the root, the result


def test_a_resize_keeps_its_float32_scales_in_the_half_graph() -> None:
    class Resize(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)

    model = module(Resize)
    x = images(1)[0]
    torch.testing.assert_close(execute(parsed(model, "tensorrt"), x)[0], model(x), atol=5e-3, rtol=5e-3)


def test_multihead_attention_exports() -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(32, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            x = x.flatten(1).reshape(-1, 96, 32)
            return self.attention(x, x, x, need_weights=False)[0]

    model = module(Whole)
    x = images(1)[0]
    with torch.no_grad():
        assert sqnr(model(x), execute(parsed(model, "onnxruntime"), x)[0]) > 100


def test_refusals() -> None:
    class Sorted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.svdvals(x)

    with pytest.raises(EngineError, match=r"no ONNX form.*svd"):
        export_onnx(module(Sorted), lane=TENSORRT, batch=Batch(1, 1, 4))


def test_a_lane_says_what_it_changes_on_purpose() -> None:
    readers = WEIGHTED + ADDS
    same = quantized(Attention, readers, grid=IntegerGrid())
    assert export_onnx(same, lane=TENSORRT).changes == ()
    assert export_onnx(same, lane=ONNXRUNTIME).changes == ()
    (grids,) = export_onnx(quantized(Residual, readers), lane=TENSORRT).changes
    assert "grids became symmetric int8" in grids
    assert export_onnx(quantized(Residual, readers), lane=ONNXRUNTIME).changes == ()

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", torch.tensor([0.0, -1e9, float("-inf")]))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.mask

    masked = traced(Masked(), torch.zeros(1, 3))
    assert export_onnx(masked, lane=TENSORRT).changes == ("1 constants were clipped to the range of FP16",)
    assert export_onnx(masked, lane=ONNXRUNTIME).changes == ()
