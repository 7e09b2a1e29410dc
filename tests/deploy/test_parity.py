"""Engines compute what their modules compute, or another way of compiling is taken, or it is an error."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from eqsat_deploy import parity
from eqsat_deploy.build import build
from eqsat_deploy.deployment import Signature, deployment, fingerprint, record
from eqsat_deploy.engines import Batch
from eqsat_deploy.engines.openvino import OpenVINOEngine
from eqsat_deploy.errors import EngineError, InputError
from eqsat_deploy.noise import decibels
from eqsat_deploy.parity import Parity, _as_near, compare, first_departure, inputs_of
from eqsat_deploy.quantization import quantize
from eqsat_deploy.quantization.reconstruction import finished
from tests.deploy.placing import WEIGHTED, Residual, images, int8, torchvision_model, traced
from tests.deploy.test_build import Eager, Halves
from tests.support.models import randomized
from tests.support.stages import optimized

ONE = {"threads": 1}
HALVES = Halves()


class Attention(nn.Module):
    """Self-attention written out, without a mask."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, positions, width = x.shape
        parts = self.qkv(x).reshape(batch, positions, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(q, k, v)
        return self.out(attended.transpose(1, 2).reshape(batch, positions, width))


@pytest.mark.parametrize(
    ("width", "heads", "positions"), [(48, 4, 4), (64, 8, 8), (384, 6, 6), (768, 12, 12), (48, 4, 5)]
)
def test_attention_with_as_many_positions_as_heads_is_right_at_every_batch(
    width: int, heads: int, positions: int
) -> None:
    """OpenVINO 2026.4.1, compiled for a static batch of 1, answers at 2 to 6 dB where the two numbers are equal."""
    torch.manual_seed(0)
    model = Attention(width, heads).eval()
    form = optimized(model, torch.randn(2, positions, width), cost="openvino_fp32")
    with pytest.warns(UserWarning, match="computes in float"):
        engine = build(form, OpenVINOEngine, options=ONE)
    for size in (1, 2, 3):
        x = torch.randn(size, positions, width)
        with torch.no_grad():
            assert decibels(model(x), engine(x)) > 100
    notes = engine.report["engine"]["notes"]
    if positions == heads and "2026.4.1" in engine.version:
        assert any("refused, it departs from its module: output 0 at batch 1" in note for note in notes)
        assert engine.options["shapes"] == "dynamic"
    if positions != heads:
        assert not any("refused" in note for note in notes)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_a_network_that_amplifies_rounding_is_measured_against_itself(name: str) -> None:
    module = int8(traced(torchvision_model(name), torch.zeros(1, 3, 96, 96)), WEIGHTED)
    module = quantize(module, images(2, size=96))
    assert compare(OpenVINOEngine.build(module, options=ONE), module, integer=True).holds


class Off(Eager):
    """Eager, but off by a share of the largest value at one batch size, unless told not to be."""

    name = "off"
    fallbacks = ({"right": True},)
    wrong_at, share, curable = 1, 0.1, True

    @classmethod
    def build(cls, built: fx.GraphModule, *, batch: Any = None, options: Any = None) -> Off:
        engine = cls(Signature.of(built, batch or Batch()), options=options)
        engine.module = built
        return engine

    def run(self, inputs: Any, batch: int) -> Any:
        results = super().run(inputs, batch)
        if batch != self.wrong_at or (self.curable and self.options.get("right")):
            return results
        return [value + self.share * value.abs().max() for value in results]


@pytest.fixture
def off(monkeypatch: pytest.MonkeyPatch) -> type[Off]:
    for name, value in (("wrong_at", 1), ("share", 0.1), ("curable", True)):
        monkeypatch.setattr(Off, name, value)
    return Off


@pytest.fixture(scope="module")
def quantized() -> Any:
    from tests.support.models import Residual as Small
    from tests.support.models import image

    return optimized(randomized(Small()), image(), cost=HALVES).quantize([image(4, 3, 8, 8)])


@pytest.mark.parametrize("wrong_at", [1, 2])
def test_another_way_of_compiling_is_taken_where_the_first_departs(
    off: type[Off], quantized: Any, monkeypatch: pytest.MonkeyPatch, wrong_at: int
) -> None:
    monkeypatch.setattr(off, "wrong_at", wrong_at)
    engine = build(quantized, off)
    assert engine.options == {"right": True}
    notes = engine.report["engine"]["notes"]
    assert any(f"output 0 at batch {wrong_at}" in note and "where 40.0 are needed" in note for note in notes)


def test_the_plain_form_is_shipped_where_the_chosen_one_never_holds(
    off: type[Off], quantized: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(off, "curable", False)
    original = off.run
    monkeypatch.setattr(
        off,
        "run",
        lambda self, i, b: original(self, i, b) if self.module is quantized else Eager.run(self, i, b),
    )
    for baseline in (True, False):
        engine = build(quantized, off, baseline=baseline)
        assert fingerprint(engine.module) == fingerprint(finished(deployment(quantized).plain))
        assert engine.report["engine"]["shipped"] == "plain"
        assert sum("chosen" in note and "refused" in note for note in engine.report["engine"]["notes"]) == 2


def test_where_nothing_holds_it_is_an_error_that_names_the_node(
    off: type[Off], quantized: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(off, "curable", False)
    with pytest.raises(
        EngineError, match=r"does not compute what the module computes, from node '\w+' on.*output 0"
    ):
        build(quantized, off)


def test_a_contestant_that_crashes_in_the_race_is_not_shipped(
    quantized: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0
    run = Eager.run

    def crash(self: Eager, inputs: Any, batch: int) -> Any:
        nonlocal calls
        calls += self.module is quantized
        if calls > 8 and self.module is quantized:
            raise RuntimeError("out of memory")
        return run(self, inputs, batch)

    monkeypatch.setattr(Eager, "run", crash)
    engine = build(quantized, Eager)
    assert engine.report["engine"]["shipped"] == "plain"
    calls = 0
    monkeypatch.setattr("eqsat_deploy.build.finished", lambda plain: fx.GraphModule({}, fx.Graph()))
    with pytest.raises(EngineError, match="chosen: out of the race"):
        build(quantized, Eager)


@pytest.mark.parametrize(("share", "holds"), [(0.02, False), (0.001, True)])
def test_int8_needs_forty_decibels(
    off: type[Off], quantized: Any, monkeypatch: pytest.MonkeyPatch, share: float, holds: bool
) -> None:
    monkeypatch.setattr(off, "share", share)
    assert compare(off.build(quantized), quantized, integer=True).holds is holds


def test_the_first_node_that_departs_is_found() -> None:
    module = traced(Residual(), torch.zeros(1, 3, 32, 32))
    names = [node.name for node in module.graph.nodes if node.op == "call_module"]

    class FromThird(Eager):
        def run(self, inputs: Any, batch: int) -> Any:
            computed = {node.name for node in self.module.graph.nodes}
            return [value * (2 if names[2] in computed else 1) for value in super().run(inputs, batch)]

        @classmethod
        def build(cls, built: fx.GraphModule, **_: Any) -> FromThird:
            engine = cls(Signature.of(built, Batch()))
            engine.module = built
            return engine

    assert first_departure(FromThird.build, module, integer=False) == names[2]
    assert first_departure(Off.build, module, integer=False) is not None


def test_inputs_are_the_samples_that_the_record_keeps() -> None:
    module = traced(Residual(), torch.zeros(1, 3, 32, 32))
    first, second = inputs_of(module, 2), inputs_of(module, 2)
    assert torch.equal(first[0], second[0])
    assert first[0].shape == (2, 3, 32, 32)
    kept = torch.arange(3.0).reshape(3, 1, 1, 1).expand(3, 3, 32, 32)
    record(module, samples=(kept,))
    assert inputs_of(module, 5)[0][:, 0, 0, 0].tolist() == [0, 1, 2, 0, 1]
    assert inputs_of(module, 2)[0][:, 0, 0, 0].tolist() == [0, 1]


@pytest.mark.parametrize("wrong", [0, 3])
def test_every_sample_that_is_kept_is_compared_at_each_batch_size(
    quantized: Any, monkeypatch: pytest.MonkeyPatch, wrong: int
) -> None:
    """Wrong for a single sample, wherever in the batch it is, and whatever the batch."""
    (samples,) = deployment(quantized).samples
    assert len(samples) == 4

    class WrongFor(Eager):
        sizes: tuple[int, ...] = (1, 2)

        def run(self, inputs: Any, batch: int) -> Any:
            found = [bool(torch.equal(x, samples[wrong])) and batch in self.sizes for x in inputs[0]]
            return [value * (2 if any(found) else 1) for value in super().run(inputs, batch)]

    for sizes in ((1,), (2,)):
        monkeypatch.setattr(WrongFor, "sizes", sizes)
        found = compare(WrongFor.build(quantized), quantized, integer=True)
        assert {departure.batch for departure in found.departures} == set(sizes)


class Masked(nn.Module):
    """Self-attention over the positions that `mask` keeps."""

    def __init__(self, width: int = 64, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        batch, positions, width = x.shape
        parts = self.qkv(x).reshape(batch, positions, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        scores = q @ k.transpose(-1, -2) / (width // self.heads) ** 0.5
        attended = torch.softmax(scores + (1.0 - mask)[:, None, None, :] * -1e4, -1) @ v
        return self.out(attended.transpose(1, 2).reshape(batch, positions, width))


def sequences(*lengths: int) -> tuple[Tensor, Tensor]:
    mask = (torch.arange(16) < torch.tensor(lengths)[:, None]).float()
    return torch.randn(len(lengths), 16, 64) * mask[..., None], mask


def test_padded_attention_agrees_at_every_length_and_short_sequences_need_calibration() -> None:
    """A sequence of one position attends to itself alone: nothing is averaged, and its values are the greatest.

    What a calibration on longer ones clips is the data's doing: the engine agrees with its module all the same.
    """
    torch.manual_seed(0)
    model, long = Masked().eval(), [sequences(8, 16, 12, 10, 9, 14) for _ in range(4)]
    test = [sequences(length) for length in (1, 1, 16, 5)]
    form = optimized(model, sequences(4, 16), cost=HALVES)
    worst = []
    for batches in (long, [*long, *test]):
        quantized = form.quantize(batches, effort="fast")
        engine = OpenVINOEngine.build(quantized, batch=Batch(1, 1, 8), options=ONE)
        assert compare(engine, quantized, integer=True).decibels > 100
        with torch.no_grad():
            for x, mask in test:
                assert decibels(quantized(x, mask), engine(x, mask)) > 100
            kept = [(model(*t)[t[1] > 0], quantized(*t)[t[1] > 0]) for t in test]
        worst.append(min(decibels(a, b) for a, b in kept))
    assert worst[0] < 25
    assert worst[1] > 33


def test_what_differs_in_shape_or_in_what_is_not_finite_never_agrees() -> None:
    a = torch.tensor([1.0, float("inf"), 3.0])
    assert decibels(a, a.clone()) == float("inf")
    assert decibels(a, torch.tensor([1.0, 2.0, 3.0])) == -float("inf")
    assert decibels(a, a[:2]) == -float("inf")
    assert decibels(torch.zeros(2), torch.ones(2)) == -float("inf")
    assert Parity((), 1.0).holds


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_module_in_half_precision_builds_and_returns_what_it_did(dtype: torch.dtype) -> None:
    pytest.importorskip("onnxruntime")
    from eqsat_deploy.engines.onnxruntime import ONNXRuntimeEngine

    torch.manual_seed(0)
    module = traced(Residual().to(dtype), torch.zeros(1, 3, 32, 32, dtype=dtype), fold=False)
    x = images(1)[0].to(dtype)
    for maker in (OpenVINOEngine, ONNXRuntimeEngine):
        engine = maker.build(module, options=ONE)
        found = engine(x)
        assert found.dtype == dtype
        assert decibels(module(x).detach(), found) > 35
        assert compare(engine, module, integer=False).holds
        assert engine.layers()
        assert Signature.from_json(engine.signature.to_json()) == engine.signature


@pytest.mark.parametrize("batch", ["8", 2.0, True, None, (1, 2)])
def test_a_batch_that_is_no_number_is_refused(quantized: Any, batch: Any) -> None:
    with pytest.raises(InputError, match="batch="):
        build(quantized, Eager, batch=batch)


@pytest.mark.parametrize("sizes", [(1, -1, None), (1, 0, None), (1, 1, 0), (1, "8", None), (1, 2, 2.5)])
def test_sizes_of_a_batch_are_whole_numbers_in_order(sizes: Any) -> None:
    with pytest.raises(InputError, match="batch="):
        Batch(*sizes)


def test_what_amplifies_much_still_has_a_floor_down_to_what_it_agrees_with_itself_at() -> None:
    wanted = torch.ones(100)
    noise = torch.randn(100, generator=torch.Generator().manual_seed(0))
    for own, needed in ((0.05, "15.8"), (0.15, "12.0"), (0.28, "8.8"), (1.0, "-2.2")):
        itself = [wanted + own * noise]
        assert parity._departs(wanted, wanted + own * noise, (), itself, True, torch.float32) is None
        found = str(parity._departs(wanted, wanted + 3 * noise, (), itself, True, torch.float32))
        assert f"where {needed}" in found


def test_float64_is_asked_only_where_the_module_without_rounding_does_not_tell():
    generator = torch.Generator().manual_seed(0)
    exact, one, other = (torch.randn(1000, generator=generator) for _ in range(3))
    module, asked = exact + 0.05 * one, []

    def itself():
        asked.append(True)
        yield module

    near = parity._departs(module, module + 0.03 * other, [exact], itself(), True, torch.float32)
    assert (near, asked) == (None, [])
    assert parity._departs(module, module + 0.1 * other, [exact], itself(), True, torch.float32)
    assert asked == [True]


def test_rounding_of_an_engine_s_own_is_right_where_it_is_less_than_that_of_the_module():
    generator = torch.Generator().manual_seed(0)
    exact, one, other = (torch.randn(1000, generator=generator) for _ in range(3))
    assert _as_near(exact, exact + 0.05 * one, exact + 0.05 * one + 0.03 * other)
    assert not _as_near(exact, exact + 0.05 * one, exact + 0.05 * one + 0.1 * other)
    assert not _as_near(exact, exact + 0.05 * one, other)
    assert _as_near(exact, exact + 0.5 * one, exact + 0.5 * other)
    assert not _as_near(exact, exact + 0.5 * one, exact + 0.8 * other)
