from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import eqsat_deploy
from eqsat_deploy.deployment import DEFAULT_BATCH, deployment
from eqsat_deploy.engines import Batch, Layer, base, openvino_nodes
from eqsat_deploy.engines.base import realized
from eqsat_deploy.engines.openvino import OpenVINOEngine
from eqsat_deploy.errors import InputError, UnknownNameError
from eqsat_deploy.grid import IntegerGrid
from eqsat_deploy.processors import saturating
from eqsat_deploy.quantization import FakeQuantize, quantize
from tests.deploy.placing import (
    ADDS,
    POOLS,
    WEIGHTED,
    Attention,
    Residual,
    images,
    int8,
    torchvision_model,
    traced,
)
from tests.support.models import Fire, randomized
from tests.support.stages import optimized

OPTIONS = {"threads": 1}


def build(module: fx.GraphModule, batch: Batch = DEFAULT_BATCH) -> OpenVINOEngine:
    return OpenVINOEngine.build(module, batch=batch, options=OPTIONS)


def sqnr(expected: Tensor, found: Tensor) -> float:
    return float(10 * torch.log10((expected**2).sum() / ((expected - found) ** 2).sum()))


def kernels(layers: tuple[Layer, ...], *types: str) -> list[Layer]:
    return [layer for layer in layers if layer.type in types]


@pytest.fixture(params=[Residual, Attention])
def module(request: pytest.FixtureRequest) -> fx.GraphModule:
    torch.manual_seed(0)
    return traced(request.param(), torch.zeros(1, 3, 32, 32))


def test_a_float_module_comes_out_float_at_any_batch(module: fx.GraphModule) -> None:
    engine = build(module)
    for size in (1, 4, 3, 1):
        x = images(1, batch=size)[0]
        torch.testing.assert_close(engine(x), module(x), rtol=1e-4, atol=1e-5)
    assert {layer.precision for layer in kernels(engine.layers(), "Convolution", "FullyConnected")} == {
        "float32"
    }


def test_a_quantized_module_runs_in_int8_where_placed(module: fx.GraphModule) -> None:
    quantized = quantize(int8(module, WEIGHTED + ADDS), images(3))
    engine = build(quantized)
    for size in (1, 4):
        x = images(1, batch=size, seed=5)[0]
        with torch.no_grad():
            # Integer accumulation and rounding ties aside, this is what the quantized module computes.
            assert sqnr(quantized(x), engine(x)) > 30
    placed = {kernel.anchor for kernel in deployment(module).placement.kernels}
    found = {node: layer for layer in engine.layers() for node in layer.nodes}
    weighted = [node.name for node in module.graph.nodes if node.op == "call_module" and node.name in placed]
    weighted = [name for name in weighted if "norm" not in name]
    assert len(weighted) >= 4
    assert {found[name].precision for name in weighted} == {"int8"}


class Faint(nn.Module):
    """A residual block whose values are of the size `scale`, as in deep networks that nobody has trained."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1, bias=False)
        self.branch = nn.Sequential(nn.Conv2d(8, 16, 1, bias=False), nn.ReLU(), nn.Conv2d(16, 8, 1))
        with torch.no_grad():
            for parameter in (*self.first.parameters(), self.branch[2].bias):
                parameter *= scale

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.last(y + self.branch(y))


@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e-5, 1e-6, 1e-9])
def test_values_of_any_size_are_computed(scale: float) -> None:
    torch.manual_seed(0)
    quantized = quantize(
        int8(traced(Faint(scale), torch.zeros(1, 3, 8, 8)), WEIGHTED + ADDS), images(3, size=8)
    )
    nodes = {node.name: node for node in quantized.graph.nodes}
    nodes["branch_2_quantizer"].replace_all_uses_with(
        nodes["branch_2"]
    )  # the sum is the convolution's epilogue
    quantized.recompile()
    x = images(1, size=8, batch=2, seed=5)[0]
    with torch.no_grad():
        assert sqnr(quantized(x), build(quantized)(x)) > 30


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_every_convolution_of_a_torchvision_model_runs_in_int8(name: str) -> None:
    module = int8(traced(torchvision_model(name), torch.zeros(1, 3, 224, 224)), WEIGHTED + ADDS + POOLS)
    quantized = quantize(module, images(2, size=224, batch=1))
    engine = build(quantized)
    anchors = kernels(engine.layers(), "Convolution", "FullyConnected")
    convolutions = sum(isinstance(layer, nn.Conv2d) for layer in module.modules())
    assert len(anchors) == convolutions + 1
    assert {layer.precision for layer in anchors} == {"int8"}
    x = images(1, size=224, batch=2, seed=7)[0]
    with torch.no_grad():
        assert sqnr(quantized(x), engine(x)) > 15


@pytest.mark.slow
def test_every_linear_of_a_transformer_runs_in_int8() -> None:
    torch.manual_seed(0)
    model = Attention(width=192, heads=3, depth=4, size=64, patch=8)
    quantized = quantize(int8(traced(model, torch.zeros(1, 3, 64, 64))), images(2, size=64))
    layers = build(quantized).layers()
    products = kernels(layers, "FullyConnected", "Convolution")  # the latter on CPUs without dot products
    assert len(products) == 4 * 4 + 2  # and the patches
    assert {layer.precision for layer in products} == {"int8"}


def test_unsigned_asymmetric_and_trained_quantizers_convert() -> None:
    torch.manual_seed(0)
    module = int8(traced(Residual(), torch.zeros(1, 3, 32, 32)), WEIGHTED + ADDS)
    x = images(1, seed=5)[0]
    grids = (IntegerGrid(unsigned=unsigned, saturating=saturating()) for unsigned in (True, False))
    for settings in (*({"grid": grid} for grid in grids), {"learnable": True}):
        quantized = quantize(module, images(3), **settings)
        with torch.no_grad():
            assert sqnr(quantized(x), build(quantized)(x)) > 30
    for name, fake in list(quantized.named_children()):
        if isinstance(fake, FakeQuantize) and fake.axis is None:
            planted = FakeQuantize(fake.step * 1.1, low=0, high=255, zero_point=100)
            setattr(quantized, name, planted)
    with torch.no_grad():
        assert sqnr(quantized(x), build(quantized)(x)) > 30


def test_transposed_convolutions_run_in_int8() -> None:
    class Up(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down, self.up = nn.Conv2d(3, 16, 3, padding=1), nn.ConvTranspose2d(16, 8, 2, stride=2)

        def forward(self, x: Tensor) -> Tensor:
            return self.up(F.relu(self.down(x)))

    torch.manual_seed(0)
    quantized = quantize(int8(traced(Up(), torch.zeros(1, 3, 16, 16))), images(2, size=16))
    engine = build(quantized)
    x = images(1, size=16)[0]
    with torch.no_grad():
        assert sqnr(quantized(x), engine(x)) > 30
    assert {layer.precision for layer in kernels(engine.layers(), "Deconvolution")} == {"int8"}


@pytest.mark.parametrize(
    ("window", "stride", "precision"), [(4, 4, "float32"), (1, 2, "float32"), (3, 3, "int8")]
)
def test_a_transposed_convolution_that_converts_its_codes_is_reported_in_float(
    window: int, stride: int, precision: str
) -> None:
    torch.manual_seed(0)
    up = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.ConvTranspose2d(16, 16, window, stride))
    engine = build(quantize(int8(traced(up, torch.zeros(1, 3, 16, 16))), images(2, size=16)))
    assert [layer.precision for layer in kernels(engine.layers(), "Deconvolution")] == [precision]


class Dense(nn.Module):
    """Features that grow by concatenation, each read by a BatchNorm and the next concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, 32, 3, stride=2, padding=1), nn.Conv2d(32, 32, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(32 * n) for n in (1, 2, 3, 4))
        self.convolutions = nn.ModuleList(nn.Conv2d(32 * n, 32, 3, padding=1) for n in (1, 2, 3, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(F.relu(self.stem(x))))
        *grow, last = zip(self.norms, self.convolutions, strict=True)
        for norm, convolution in grow:
            x = torch.cat([x, convolution(F.relu(norm(x)))], 1)
        return last[1](F.relu(last[0](x)))


@pytest.mark.parametrize(
    ("make", "types"), [(Fire, {"Concatenation": 1, "Pooling": 1}), (Dense, {"Concatenation": 3})]
)
def test_concatenations_and_what_reads_them_run_in_int8(
    make: Callable[[], nn.Module], types: dict[str, int]
) -> None:
    model, x = randomized(make()), images(1, size=56)[0]
    module = eqsat_deploy.optimize(model, x, cost="openvino_int8").quantize(images(3, size=56), effort="fast")
    engine = build(module)
    layers = engine.layers()
    for kind, count in types.items():
        assert [layer.precision for layer in kernels(layers, kind)] == ["int8"] * count
    ran = realized(deployment(module).placement.kernels, layers)
    assert {
        kernel.anchor for kernel in deployment(module).placement.kernels if kernel.precision == "int8"
    } == {anchor for anchor, precision in ran.items() if precision == "int8"}
    with torch.no_grad():
        assert sqnr(module(x), engine(x)) > 30
        assert sqnr(model(x), module(x)) > 20


@pytest.mark.parametrize(
    ("size", "window", "stride", "padding", "dilation"),
    [(8, 3, 2, 0, 1), (8, 3, 2, 1, 1), (7, 2, 2, 0, 1), (9, 2, 3, 1, 1), (10, 3, 2, 1, 2)],
)
def test_pools_that_round_up_are_pools_that_round_down(
    size: int, window: int, stride: int, padding: int, dilation: int
) -> None:
    class Pool(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.max_pool2d(x, window, stride, padding, dilation, ceil_mode=True)

    engine = build(traced(Pool(), torch.zeros(1, 4, size, size)))
    x = torch.randn(2, 4, size, size) - 3  # zeros around it would be seen
    torch.testing.assert_close(engine(x), Pool()(x), rtol=0, atol=0)
    rounding = {
        op.get_attributes()["rounding_type"]
        for op in engine.model.get_ops()
        if op.get_type_name() == "MaxPool"
    }
    assert rounding == {"floor"}


class Structured(nn.Module):
    """Several inputs of several types; a dict with a nested tuple, a list, None, an input and a duplicate."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.layer = nn.Embedding(11, 4), nn.Linear(4, 3)

    def forward(self, ids: Tensor, shift: Tensor) -> dict[str, object]:
        hidden = self.table(ids) + shift
        scores = self.layer(hidden)
        return {"scores": scores, "more": (hidden, [scores, None]), "shift": shift}


class ChannelsLast(nn.Module):
    """A pool of one position, a slice, a join and a cast of what torch holds channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).permute(0, 2, 3, 1)
        y = torch.roll(y, (1, 1), (1, 2)).narrow(1, 2, 8).contiguous() * 2.0
        y = y.to(torch.float64).to(torch.float32).permute(0, 3, 1, 2)
        return F.adaptive_avg_pool2d(y, (1, 1)).flatten(1) + F.adaptive_avg_pool2d(y, (2, 1)).sum((2, 3))


@pytest.mark.parametrize("model", [ChannelsLast, Residual, Attention])
def test_what_the_language_knows_is_written_and_not_exported(
    model: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = optimized(model().eval(), torch.zeros(1, 3, 32, 32), cost="openvino_fp32")
    monkeypatch.setattr(openvino_nodes, "export_program", pytest.fail)
    engine = build(module)
    for size in (1, 3):
        x = images(1, batch=size)[0]
        with torch.no_grad():
            torch.testing.assert_close(engine(x), module(x), rtol=1e-4, atol=1e-4)


def test_inputs_and_outputs_keep_their_structure() -> None:
    module = traced(Structured(), torch.zeros(1, 5, dtype=torch.int64), torch.zeros(1, 5, 4))
    engine = build(module)
    ids, shift = torch.randint(0, 11, (3, 5)), torch.randn(3, 5, 4)
    found, expected = engine(ids, shift), module(ids, shift)
    assert found.keys() == expected.keys()
    assert isinstance(found["more"], tuple)
    assert found["more"][1][1] is None
    torch.testing.assert_close(found["scores"], expected["scores"])
    torch.testing.assert_close(found["more"][0], expected["more"][0])
    torch.testing.assert_close(found["more"][1][0], expected["scores"])
    assert torch.equal(found["shift"], shift)


def test_results_are_not_overwritten_by_the_next_call(module: fx.GraphModule) -> None:
    engine = build(module)
    first, second = images(2, batch=1)
    result = engine(first)
    kept = result.clone()
    engine(second)
    assert torch.equal(result, kept)


def test_later_training_does_not_reach_the_engine(module: fx.GraphModule) -> None:
    engine = build(module)
    x = images(1, batch=2)[0]
    expected = module(x).detach().clone()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    # Batch 2 is compiled only now.
    torch.testing.assert_close(engine(x), expected, rtol=1e-4, atol=1e-5)


def test_the_module_is_not_changed(module: fx.GraphModule) -> None:
    quantized = quantize(int8(module), images(1))
    code, state = quantized.code, copy.deepcopy(quantized.state_dict())
    meta = [dict(node.meta) for node in quantized.graph.nodes]
    build(quantized)
    assert quantized.code == code
    assert [dict(node.meta) for node in quantized.graph.nodes] == meta
    assert all(torch.equal(value, state[name]) for name, value in quantized.state_dict().items())


def test_saved_files_load_and_compute_the_same(module: fx.GraphModule, tmp_path: Path) -> None:
    quantized = quantize(int8(module, WEIGHTED + ADDS), images(2))
    engine = build(quantized)
    engine.save_files(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.bin", "model.xml"]
    loaded = OpenVINOEngine.load_files(tmp_path, engine.signature, engine.options)
    for size in (1, 3):
        x = images(1, batch=size)[0]
        assert sqnr(engine(x), loaded(x)) > 60
    before, after = engine.layers(), loaded.layers()
    pick = ("Convolution", "FullyConnected")
    assert [(layer.nodes, layer.precision) for layer in kernels(after, *pick)] == [
        (layer.nodes, layer.precision) for layer in kernels(before, *pick)
    ]


def test_the_same_module_gives_the_same_files(module: fx.GraphModule, tmp_path: Path) -> None:
    quantized = quantize(int8(module), images(1))
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        build(quantized).save_files(tmp_path / name)
    for file in ("model.xml", "model.bin"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (
            torch.zeros(1, 3, 16, 32),
            r"input 'x': shape \[batch, 3, 32, 32\] is expected, not \[1, 3, 16, 32\]",
        ),
        (torch.zeros(1, 3, 32, 32, dtype=torch.float64), "input 'x': torch.float32 is expected"),
        (torch.zeros(9, 3, 32, 32), "batch of 9: this engine was built for"),
    ],
)
def test_inputs_that_do_not_fit_are_an_error(x: Tensor, message: str) -> None:
    engine = build(traced(Residual(), torch.zeros(1, 3, 32, 32)), Batch(1, 2, 8))
    with pytest.raises(InputError, match=message):
        engine(x)
    with pytest.raises(InputError, match=r"too many positional arguments: call it as forward\(x\)"):
        engine(x, x)


def test_what_follows_a_call_that_fits_is_checked_as_the_first_was(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = build(traced(Residual(), torch.zeros(1, 3, 32, 32)), Batch(1, 2, 3))
    monkeypatch.setattr(base, "KINDS", 2)
    for size in (1, 2, 3, 1, 2):
        x = images(1, batch=size)[0]
        torch.testing.assert_close(engine(x), engine(x=x))
        assert engine(x).shape[0] == size
    bad = [torch.zeros(4, 3, 32, 32), torch.zeros(2, 3, 32, 31), torch.zeros(2, 3, 32, 32).int(), [1.0], None]
    for wrong in bad:
        with pytest.raises(InputError) as first:
            engine(x=wrong)
        with pytest.raises(InputError) as then:
            engine(wrong)
        assert str(first.value) == str(then.value)
    with pytest.raises(InputError, match="too many positional"):
        engine(x, x)


def test_unknown_options_and_missing_meta_are_errors() -> None:
    module = traced(Residual(), torch.zeros(1, 3, 32, 32))
    with pytest.raises(UnknownNameError, match=r"openvino option 'thread'.*'threads'"):
        OpenVINOEngine.build(module, options={"thread": 1})
    with pytest.raises(InputError, match="carries no record of how it is deployed"):
        OpenVINOEngine.build(fx.symbolic_trace(Residual()))


def test_whole_attention_modules_convert() -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x, need_weights=False)[0]

    module = traced(Whole(), torch.zeros(1, 6, 16))
    x = torch.randn(3, 6, 16)
    with torch.no_grad():
        torch.testing.assert_close(build(module)(x), module(x), rtol=1e-4, atol=1e-5)
    assert torch.backends.mha.get_fastpath_enabled()
