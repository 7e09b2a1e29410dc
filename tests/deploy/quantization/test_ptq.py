from __future__ import annotations

import copy
import operator
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from eqsat_deploy.deployment import (
    SAMPLES,
    InputSpec,
    PlacedKernel,
    Placement,
    Quantizer,
    deployment,
    fingerprint,
    record,
)
from eqsat_deploy.errors import InputError, QuantizationError, UnknownNameError
from eqsat_deploy.grid import IntegerGrid
from eqsat_deploy.quantization import FakeQuantize, MinMax, QuantizedConv2d, QuantizedLinear, ptq, quantize
from eqsat_deploy.quantization.biases import corrected, known
from eqsat_deploy.quantization.calibrate import SAMPLE
from eqsat_deploy.quantization.reconstruction import finished
from eqsat_deploy.quantization.rounding import Rounding
from eqsat_deploy.stages import listening
from tests.deploy.placing import ADDS, WEIGHTED, Attention, Residual, images, int8, shared, traced
from tests.deploy.test_build import Halves
from tests.support.stages import optimized


def sqnr(expected: Tensor, found: Tensor) -> float:
    return float(10 * torch.log10((expected**2).sum() / ((expected - found) ** 2).sum()))


@pytest.fixture
def residual() -> fx.GraphModule:
    torch.manual_seed(0)
    return int8(traced(Residual(), torch.zeros(1, 3, 32, 32)), WEIGHTED + ADDS)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 3), nn.Linear(5, 3)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.left(a) + self.right(b)


@pytest.fixture
def two() -> fx.GraphModule:
    torch.manual_seed(0)
    return int8(traced(TwoInputs(), torch.zeros(1, 4), torch.zeros(1, 5)))


@pytest.mark.parametrize("observer", [None, "minmax", "percentile", "entropy", "mse", MinMax])
@pytest.mark.parametrize("grid", [IntegerGrid(), IntegerGrid(unsigned=True, asymmetric=True)])
@pytest.mark.parametrize("model", [Residual, Attention])
def test_outputs_stay_close(model: type[nn.Module], grid: IntegerGrid, observer: Any) -> None:
    torch.manual_seed(0)
    module = int8(traced(model(), torch.zeros(1, 3, 32, 32)))
    quantized = quantize(module, images(4), observer=observer, grid=grid)
    x = images(1, seed=9)[0]
    with torch.no_grad():
        assert sqnr(module(x), quantized(x)) > 25
        assert not torch.equal(module(x), quantized(x))


def test_quantizers_stand_exactly_where_placed(residual: fx.GraphModule) -> None:
    quantized = quantize(residual, images(2), effort="fast")
    nodes = {node.name: node for node in quantized.graph.nodes}
    for quantizer in deployment(residual).placement.quantizers:
        inserted = nodes[f"{quantizer.tensor}_quantizer"]
        assert inserted.all_input_nodes == [nodes[quantizer.tensor]]
        assert {user.name for user in inserted.users} == set(quantizer.readers)
        assert isinstance(quantized.get_submodule(str(inserted.target)), FakeQuantize)
    assert len(nodes) == len(residual.graph.nodes) + len(deployment(residual).placement.quantizers)
    assert isinstance(quantized.stem, QuantizedConv2d)
    assert isinstance(quantized.head, QuantizedLinear)


def test_scales_are_the_greatest_magnitudes(residual: fx.GraphModule) -> None:
    batches = images(3)
    quantized = quantize(residual, batches, observer="minmax")
    peak = max(float(batch.abs().max()) for batch in batches)
    assert float(quantized.get_submodule("x_quantizer").amax) == pytest.approx(peak)  # type: ignore[arg-type]
    assert quantized.get_submodule("relu_quantizer").unsigned
    assert not quantize(residual, batches, grid=IntegerGrid()).get_submodule("relu_quantizer").unsigned


def test_the_module_is_not_changed(residual: fx.GraphModule) -> None:
    before, code = copy.deepcopy(residual.state_dict()), residual.code
    quantized = quantize(residual, images(2))
    with torch.no_grad():
        for parameter in quantized.parameters():
            parameter.zero_()
    assert residual.code == code
    assert type(residual.stem) is nn.Conv2d
    assert all(torch.equal(value, before[name]) for name, value in residual.state_dict().items())


def test_the_same_data_gives_the_same_scales(residual: fx.GraphModule) -> None:
    first, second = (quantize(residual, images(3), observer="entropy").state_dict() for _ in range(2))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_result_survives_copies_state_dicts_export_and_moves(residual: fx.GraphModule) -> None:
    quantized = quantize(residual, images(2), effort="fast")
    x = images(1, batch=3)[0]
    expected = quantized(x)
    twin = copy.deepcopy(quantized)
    assert deployment(twin).placement == deployment(residual).placement
    assert deployment(twin).inputs == deployment(residual).inputs
    assert torch.equal(twin(x), expected)

    other = quantize(residual, [0.3 * batch for batch in images(2)], effort="fast")
    assert not torch.equal(other(x), expected)
    other.load_state_dict(quantized.state_dict())
    assert torch.equal(other(x), expected)

    batch = torch.export.Dim.DYNAMIC
    program = torch.export.export(quantized, (images(1, batch=2)[0],), dynamic_shapes=({0: batch},))
    torch.testing.assert_close(program.module()(x), expected)

    assert quantized.to(torch.float64)(x.double()).dtype == torch.float64


def test_training_it_lowers_the_loss(residual: fx.GraphModule) -> None:
    quantized = quantize(residual, images(2), learnable=True).train()
    x = images(1)[0]
    target = torch.arange(4)
    fake = quantized.get_submodule("relu_quantizer")
    assert isinstance(fake, FakeQuantize)
    before, first = fake.step.clone(), F.cross_entropy(quantized(x), target).detach()
    optimizer = torch.optim.Adam(quantized.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(quantized(x), target).backward()
        optimizer.step()
    assert F.cross_entropy(quantized(x), target) < 0.5 * first
    assert fake.step != before


def test_batches_come_in_every_form_a_loader_has(two: fx.GraphModule) -> None:
    a, b, labels = torch.randn(6, 4), torch.randn(6, 5), torch.arange(6)
    forms: list[Any] = [
        (a, b),
        [a, b],
        (a, b, labels),
        ((a, b), labels),
        {"a": a, "b": b},
        {"b": b, "a": a, "labels": labels},
        ({"a": a, "b": b}, labels),
    ]
    states = [quantize(two, [form]).state_dict() for form in forms]
    assert all(torch.equal(state[name], states[0][name]) for state in states for name in state)


class Options(nn.Module):
    """Called by position and by name, nested, with a value that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(
        self, image: Tensor, text: Any, tab: Any = None, *, scale: float = 1.0, labels: Any = None
    ) -> Tensor:
        y = self.left(image) * scale + self.right(text[0] - text[1])
        return y if tab is None else y * tab["x"] - tab["y"]


def test_calibration_takes_the_model_s_own_structure() -> None:
    image, a, b, x, y = torch.randn(5, 6, 16).unbind(0)
    labels = torch.arange(6)
    model = Options().eval()
    example = {"image": image, "text": (a, b), "tab": {"x": x, "y": y}, "scale": 0.5}
    form = optimized(model, example, cost=Halves())
    assert [quantizer.tensor for quantizer in deployment(form).placement.quantizers] == ["sub"]
    forms: list[Any] = [
        example,
        {"scale": 0.5, "tab": {"y": y, "x": x}, "text": (a, b), "image": image, "labels": labels},
        (example, labels),
        [example, labels],
    ]
    states = [quantize(form, [each]).state_dict() for each in forms]
    assert all(torch.equal(state[name], states[0][name]) for state in states for name in state)
    other = quantize(form, [{**example, "text": (a, 3 * b)}]).state_dict()
    assert not all(torch.equal(other[name], states[0][name]) for name in other)
    for wrong, words in (
        ({**example, "scale": 2.0}, "batch 1: argument 'scale': the module was specialized to 0.5, not 2.0"),
        ({**example, "text": [a, b]}, "'text': it is nested otherwise"),
        ({**example, "tab": {"x": x}}, "'tab': it is nested otherwise"),
        ({**example, "text": (a, b[:3])}, "disagree on the batch size: 'image' has 6, 'text_1' has 3"),
        (
            {"image": image, "text_0": a, "text_1": b, "tab_x": x, "tab_y": y},
            "missing a required argument: 'text'",
        ),
        ((image, (a, b)), "'tab': it is nested otherwise"),
    ):
        with pytest.raises(QuantizationError, match=words):
            quantize(form, [wrong])


def test_positional_batches_have_labels_last() -> None:
    image, a, b = torch.randn(3, 6, 16).unbind(0)
    form = optimized(Options().eval(), (image, (a, b)), cost=Halves())
    labels = torch.arange(6)
    forms: list[Any] = [(image, (a, b)), [image, (a, b), labels], ((image, (a, b)), labels)]
    states = [quantize(form, [each]).state_dict() for each in forms]
    assert all(torch.equal(state[name], states[0][name]) for state in states for name in state)
    with pytest.raises(QuantizationError, match="'text': it is nested otherwise"):
        quantize(form, [(image, a, labels)])


def test_what_was_calibrated_on_is_what_engines_are_compared_on() -> None:
    module = int8(traced(Residual(), torch.zeros(1, 3, 32, 32)))
    batches = images(3, batch=2)
    (kept,) = deployment(quantize(module, batches)).samples
    assert torch.equal(kept, torch.cat([*batches[:2]]))


def test_quantizing_twice_is_an_error_that_says_so(residual: fx.GraphModule) -> None:
    quantized = quantize(residual, images(1))
    with pytest.raises(QuantizationError, match=r"quantized already: call quantize\(\) on what optimize"):
        quantize(quantized, images(1))


def test_quantizing_nothing_is_said() -> None:
    form = optimized(Options().eval(), (torch.randn(2, 16), (torch.randn(2, 16),) * 2), cost="openvino_fp32")
    with pytest.warns(UserWarning, match="makes nothing INT8.*optimized for openvino") as caught:
        quantized = form.quantize([(torch.randn(2, 16), (torch.randn(2, 16),) * 2)])
    assert caught[0].filename == __file__
    assert not any(isinstance(child, FakeQuantize) for child in quantized.modules())


def test_an_image_and_its_label_is_one_input(residual: fx.GraphModule) -> None:
    dataset = torch.utils.data.TensorDataset(torch.randn(8, 3, 32, 32), torch.zeros(8))
    loader = torch.utils.data.DataLoader(dataset, batch_size=4)
    quantized = quantize(residual, loader)
    peak = float(dataset.tensors[0].abs().max())
    assert float(quantized.get_submodule("x_quantizer").amax) == pytest.approx(peak)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "no calibration batches"),
        ([torch.full((2, 3, 32, 32), float("nan"))], "calibration batch 1: 'x' has NaN"),
        (
            [torch.ones(2, 3, 32, 32), torch.full((2, 3, 32, 32), float("inf"))],
            "calibration batch 2: 'x' has NaN",
        ),
        (
            [torch.ones(2, 3, 16, 32)],
            r"calibration batch 1: input 'x': shape \[batch, 3, 32, 32\] is expected",
        ),
        ([torch.ones(2, 3, 32, 32, dtype=torch.float64)], "torch.float32 is expected"),
        (
            [(torch.ones(2, 3, 32, 32),) * 3],
            r"too many positional arguments: call it as forward\(x\), with x \[batch",
        ),
        ([{"image": torch.ones(2, 3, 32, 32)}], "missing a required argument: 'x'"),
        (["image.png"], "calibration batch 1: it must be a tensor, .*not str"),
        ({"x": torch.ones(2, 3, 32, 32)}, "batches: an iterable of batches is expected.*not dict"),
    ],
)
def test_unusable_data_is_an_error(residual: fx.GraphModule, batches: list[Any], message: str) -> None:
    with pytest.raises(QuantizationError, match=message):
        quantize(residual, batches)


def test_no_batches_at_all_is_an_error(residual: fx.GraphModule) -> None:
    with pytest.raises(InputError, match="parameter batches="):
        quantize(residual, None)  # type: ignore[arg-type]


def test_a_module_that_overflows_is_an_error_naming_the_node(residual: fx.GraphModule) -> None:
    with torch.no_grad():
        residual.stem.weight.fill_(3e38)
    with pytest.raises(QuantizationError, match="'relu' has NaN or infinite values"):
        quantize(residual, [torch.ones(2, 3, 32, 32)])


def test_unknown_observers_list_the_known() -> None:
    with pytest.raises(UnknownNameError, match=r"'min_max'.*did you mean 'minmax'"):
        quantize(int8(traced(Residual(), torch.zeros(1, 3, 32, 32))), images(1), observer="min_max")


@pytest.mark.parametrize(
    ("placement", "message"),
    [
        (Placement((Quantizer("gone", ("stem",)),)), "no node 'gone'"),
        (Placement((Quantizer("x", ("head",)),)), "'head' does not read 'x'"),
        (Placement((Quantizer("x", ("stem",)), Quantizer("x", ("stem",)))), "'x' has 2 quantizers"),
        (Placement((), (PlacedKernel("gone", ("gone",), "int8", "int8", 0.0),)), "no node 'gone'"),
    ],
)
def test_a_placement_that_does_not_fit_is_an_error(
    residual: fx.GraphModule, placement: Placement, message: str
) -> None:
    record(residual, placement=placement)
    with pytest.raises(QuantizationError, match=message):
        quantize(residual, images(1))


def test_a_module_from_elsewhere_is_an_error() -> None:
    with pytest.raises(InputError, match="carries no record"):
        quantize(fx.symbolic_trace(Residual()), images(1))


class Joined(nn.Module):
    """Three branches concatenated pairwise, so that all three share a grid; one goes through a permute."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(12, 2)
        self.other = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b, c = F.relu(x), torch.tanh(x) * 3, torch.permute(torch.sigmoid(x), (0, 1))
        return self.last(torch.cat([a, b, c], 1)), self.other(torch.cat([a, c], 1))


def test_tensors_that_meet_in_a_concatenation_share_a_grid() -> None:
    module = traced(Joined(), torch.zeros(1, 4))
    readers = {"relu": ("cat", "cat_1"), "mul": ("cat",), "sigmoid": ("permute",)}
    quantizers = tuple(Quantizer(name, reads) for name, reads in readers.items())
    record(module, placement=Placement(quantizers, shared=shared(module, quantizers)))
    quantized = quantize(module, [torch.randn(16, 4)])
    targets = {node.target for node in quantized.graph.nodes if node.name.endswith("_quantizer")}
    assert targets == {"relu_quantizer"}
    assert not quantized.get_submodule("relu_quantizer").unsigned


@pytest.mark.parametrize(("channels", "grids"), [(True, 2), (False, 1)])
def test_parts_that_are_only_scaled_keep_their_grids_where_channels_have_scales(
    channels: bool, grids: int
) -> None:
    module = traced(Joined(), torch.zeros(1, 4))
    quantizers = (Quantizer("relu", ("cat",)), Quantizer("mul", ("cat",)))
    record(module, placement=Placement(quantizers, joined=(("relu", "mul"),)))
    grid = IntegerGrid(unsigned=True, channels=channels)
    quantized = quantize(module, [torch.randn(16, 4)], grid=grid)
    assert len({n.target for n in quantized.graph.nodes if n.name.endswith("_quantizer")}) == grids


def test_channels_of_what_a_concatenation_hands_on_are_not_scaled() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.one, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(16, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.stem(x)) * torch.logspace(-3, 0, 8).reshape(8, 1, 1)
            return self.last(torch.cat([x, F.relu(self.one(x))], 1))

    torch.manual_seed(0)
    module = traced(Both(), torch.zeros(1, 3, 8, 8))
    quantizers = (Quantizer("mul", ("one", "cat")), Quantizer("relu_1", ("cat",)))
    kernels = tuple(PlacedKernel(name, (name,), "int8", "float32", 0.0) for name in ("one", "last"))
    record(module, placement=Placement(quantizers, kernels))
    quantized = quantize(module, images(3, size=8), grid=IntegerGrid(unsigned=True, equalized=True))
    assert {node.name for node in quantized.graph.nodes if "divided" in node.name} == set()


def test_functional_calls_round_their_weights_per_channel() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = nn.Parameter(torch.randn(6, 3, 3, 3))
            self.matrix = nn.Parameter(torch.randn(6, 5))

        def forward(self, x: Tensor) -> Tensor:
            return torch.matmul(F.conv2d(x, self.kernel).mean((2, 3)), self.matrix)

    module = int8(traced(Functional(), torch.zeros(1, 3, 8, 8)), (*WEIGHTED, torch.conv2d, torch.matmul))
    quantized = quantize(module, [torch.randn(4, 3, 8, 8)])
    kernel, matrix = (
        quantized.get_submodule(str(node.target))
        for node in quantized.graph.nodes
        if node.name.endswith("_weight_quantizer")
    )
    assert isinstance(kernel, FakeQuantize)
    assert (kernel.axis, tuple(kernel.scale.shape)) == (0, (6,))
    assert isinstance(matrix, FakeQuantize)
    assert (matrix.axis, tuple(matrix.scale.shape)) == (1, (5,))


def test_float_readers_keep_the_float_tensor() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return operator.add(self.layer(x), x)

    module = traced(Two(), torch.zeros(1, 4))
    kernels = (PlacedKernel("layer", ("layer",), "int8", "float32", 0.0),)
    record(module, placement=Placement((Quantizer("x", ("layer",)),), kernels))
    quantized = quantize(module, [torch.randn(8, 4)])
    add = next(node for node in quantized.graph.nodes if node.target is operator.add)
    assert [node.name for node in add.all_input_nodes] == ["layer", "x"]


def test_integer_inputs_are_not_checked_for_nan() -> None:
    class Embed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.layer = nn.Embedding(10, 4), nn.Linear(4, 2)

        def forward(self, ids: Tensor) -> Tensor:
            return self.layer(self.table(ids))

    module = traced(Embed(), torch.zeros(1, 3, dtype=torch.int64))
    assert deployment(module).inputs == (InputSpec("ids", (None, 3), torch.int64),)
    quantized = quantize(int8(module), [torch.randint(0, 10, (5, 3))])
    assert quantized(torch.randint(0, 10, (2, 3))).shape == (2, 3, 2)


def test_a_biased_rounding_error_is_taken_back_also_without_a_bias() -> None:
    """Depthwise, no bias: the fast way's mean error per channel is gone, on data that calibration has not seen."""
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 8, 3, groups=8, bias=False)
    module = int8(traced(nn.Sequential(layer), torch.zeros(1, 8, 16, 16)), (nn.Conv2d,))
    data = [torch.rand(8, 8, 16, 16) * torch.linspace(0.01, 1, 8).reshape(1, -1, 1, 1) for _ in range(3)]
    offsets = []
    for effort in ("fast", "balanced"):
        quantized = quantize(module, data[:2], effort=effort)
        with torch.no_grad():
            offsets.append((quantized(data[2]) - module(data[2])).mean((0, 2, 3)).abs().max())
    assert offsets[1] < 0.5 * offsets[0]
    assert layer.bias is None


def test_what_an_activation_clips_does_not_move_what_it_lets_pass() -> None:
    """Half of the positions are far under ReLU6's range, where the layer is wrong by much, half within, where it is
    right: nothing is to be taken back. Without the activation the mean error is."""
    layer = QuantizedConv2d.from_float(nn.Conv2d(1, 2, 1, bias=False))
    expected = torch.cat([torch.full((1, 2, 4, 8), -9.0), torch.rand(1, 2, 4, 8) + 1], dim=2)
    found = expected.clone()
    found[:, :, :4] += 2.0
    left, shifted = found.clone(), found.clone()
    corrected(layer, [known(expected, 1, F.relu6)], [left], F.relu6)
    assert torch.equal(left, found)
    corrected(layer, [known(expected, 1, None)], [shifted])
    assert torch.allclose(shifted, found - 1.0, atol=1e-6)


@given(st.floats(-0.4, 0.4), st.sampled_from([torch.relu, F.hardswish, F.silu, F.gelu, torch.log, F.relu6]))
def test_an_even_error_is_taken_back_whatever_comes_after(
    error: float, after: Callable[[Tensor], Tensor]
) -> None:
    layer = QuantizedConv2d.from_float(nn.Conv2d(1, 2, 1))
    expected = torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(0)) + 1
    found = expected + error
    corrected(layer, [known(part, 1, after) for part in expected.split(3)], found.split(3), after)
    assert (found - expected).abs().max() <= 0.01 * abs(error) + 1e-6


def test_a_mean_error_is_taken_over_values_from_all_over_a_map() -> None:
    """Of 64 x 64 maps every fourth value is looked at: an error that lies in some columns alone counts as it should."""
    layer = QuantizedConv2d.from_float(nn.Conv2d(1, 2, 1))
    expected = torch.zeros(2, 2, 64, 64)
    for column in range(64):
        found = expected.clone()
        found[..., column] = 64.0
        corrected(layer, [known(expected, 1, None)], [found])
        assert found[0, 0, 0, column - 1] == pytest.approx(-1.0, abs=0.1)


def test_a_zero_point_is_taken_where_it_pays_and_the_target_reads_it() -> None:
    module = int8(traced(nn.Sequential(nn.Linear(16, 16)), torch.zeros(1, 16)))
    data = [torch.rand(64, 16) - 0.1]
    points = [
        int(quantize(module, data, grid=grid).get_submodule("input_1_quantizer").zero_point)
        for grid in (IntegerGrid(unsigned=True, asymmetric=True), IntegerGrid(unsigned=True))
    ]
    assert points[0] > 0
    assert points[1] == 0


def test_the_float_epilogue_of_a_kernel_reads_float() -> None:
    module = traced(Residual(), torch.zeros(1, 3, 32, 32))
    kernels = (PlacedKernel("pointwise", ("pointwise", "add"), "int8", "float32", 0.0),)
    record(module, placement=Placement((Quantizer("relu", ("depthwise", "add")),), kernels))
    quantized = quantize(module, images(1))
    assert deployment(quantized).placement.quantizers == (Quantizer("relu", ("depthwise",)),)
    add = next(node for node in quantized.graph.nodes if node.name == "add")
    assert "relu" in {node.name for node in add.all_input_nodes}


def test_an_unknown_effort_is_an_error(residual: fx.GraphModule) -> None:
    with pytest.raises(UnknownNameError, match="effort"):
        quantize(residual, images(1), effort="bset")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("data", "doubt"),
    [
        ([torch.zeros(32, 3, 32, 32)], "'x' is 0 everywhere"),
        ([torch.full((32, 3, 32, 32), 0.5)], "'x' is 0.5 everywhere"),
        ([1e30 * torch.randn(32, 3, 32, 32)], "is it normalized"),
        ([torch.randn(2, 3, 32, 32)], "2 samples are few"),
    ],
)
def test_data_that_cannot_be_real_is_warned_of(
    residual: fx.GraphModule, data: list[Tensor], doubt: str
) -> None:
    with pytest.warns(UserWarning, match=doubt):
        quantize(residual, data, effort="fast")


def test_real_data_is_not_warned_of(residual: fx.GraphModule) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="the calibration data")
        quantize(residual, [torch.randn(32, 3, 32, 32)])


def test_an_interruption_ends_the_data_and_keeps_what_was_read(residual: fx.GraphModule) -> None:
    data = images(3)

    def interrupted(after: int) -> Iterator[Tensor]:
        yield from data[:after]
        raise KeyboardInterrupt

    with pytest.warns(UserWarning, match="interrupted: calibrated on the first 2 batches"):
        found = quantize(residual, interrupted(2))
    expected = quantize(residual, data[:2])
    assert torch.equal(found(data[2]), expected(data[2]))
    with pytest.raises(KeyboardInterrupt):
        quantize(residual, interrupted(0))


def test_answers_that_change_are_warned_of(residual: fx.GraphModule) -> None:
    scores = residual.get_submodule("head")
    with torch.no_grad():
        scores.weight[1:] = scores.weight[0] + 1e-4 * torch.randn_like(scores.weight[1:])
        scores.bias.zero_()
    with pytest.warns(UserWarning, match="the greatest score is another one in"):
        quantized = quantize(residual, images(3), grid=ptq.ANY_GRID)  # on every CPU
    fidelity = deployment(quantized).fidelity
    assert fidelity is not None
    assert fidelity.changed


def test_stages_are_heard_of(residual: fx.GraphModule) -> None:
    heard: list[str] = []
    with listening(lambda stage, seconds: heard.append(stage)):
        quantize(residual, images(3))
    assert list(dict.fromkeys(heard)) == ["calibrate", "quantize"]


def test_the_plain_form_is_repaired_when_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Rounding] = []
    doubted = Rounding.doubted
    monkeypatch.setattr(
        Rounding, "doubted", lambda self, *a, **k: asked.append(self) or doubted(self, *a, **k)
    )
    alone = int8(traced(Residual(), torch.zeros(1, 3, 32, 32)), WEIGHTED + ADDS)
    expected = quantize(alone, images(3))
    once = len(asked)
    both = copy.deepcopy(alone)
    record(both, plain=copy.deepcopy(alone), fingerprint=fingerprint(both))
    quantized = quantize(both, images(3))
    assert len(asked) == 2 * once > 0
    plain = deployment(quantized).plain
    assert plain is not None
    assert fingerprint(quantized) == fingerprint(expected) != fingerprint(plain)
    done = finished(plain)
    assert fingerprint(done) == fingerprint(expected)
    assert deployment(done).fidelity == deployment(expected).fidelity
    assert finished(done) is done
    assert fingerprint(deployment(quantized).plain) == fingerprint(plain)


def test_the_plain_form_sees_all_data_only_where_it_is_not_to_be_repaired(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    form = int8(traced(Residual(), torch.zeros(1, 3, 32, 32)), WEIGHTED)
    record(form, plain=copy.deepcopy(form), fingerprint=fingerprint(form))
    seen: list[int] = []
    shown = ptq._Watched.shown

    def counted(self: ptq._Watched, inputs: Sequence[Tensor]) -> None:
        if self.source is not form:
            seen.append(len(inputs[0]))
        shown(self, inputs)

    monkeypatch.setattr(ptq._Watched, "shown", counted)
    for options, count in (({}, SAMPLES), ({"effort": "fast"}, 12), ({"observer": "mse"}, 12)):
        seen.clear()
        assert deployment(quantize(form, images(3), **options)).plain is not None
        assert sum(seen) == count


def test_how_samples_come_in_batches_does_not_matter(residual: fx.GraphModule) -> None:
    data = torch.cat(list(images(10)))
    found = {fingerprint(quantize(residual, data.split(size))) for size in (1, 3, 40)}
    assert len(found) == 1


def test_of_great_images_few_show_as_much(monkeypatch: pytest.MonkeyPatch) -> None:
    form = int8(traced(Residual(), torch.zeros(1, 3, 32, 32)), WEIGHTED)
    for great, count in ((3 * 32 * 32, SAMPLE // 2), (3 * 32 * 32 + 1, SAMPLE)):
        monkeypatch.setattr("eqsat_deploy.quantization.calibrate.GREAT", great)
        fidelity = deployment(quantize(form, images(10))).fidelity
        assert fidelity is not None
        assert fidelity.samples == count


def test_of_great_inputs_few_are_kept_with_the_plain_form(monkeypatch: pytest.MonkeyPatch) -> None:
    form = int8(traced(Residual(), torch.zeros(1, 3, 32, 32)), WEIGHTED)
    record(form, plain=copy.deepcopy(form), fingerprint=fingerprint(form))
    for kept, count in ((1, SAMPLES), (6 * 3 * 32 * 32 * 4, 6), (2**30, 12)):
        monkeypatch.setattr(ptq, "KEPT", kept)
        plain = deployment(quantize(form, images(3))).plain
        assert plain is not None
        draft = deployment(plain).draft
        assert draft is not None
        assert len(draft.inputs[0]) == count
