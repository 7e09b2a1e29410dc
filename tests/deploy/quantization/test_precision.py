"""What stays in float: by worth, for a budget, and along the front."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from eqsat_deploy.deployment import Placement, deployment
from eqsat_deploy.errors import EqsatError, InputError, QuantizationError, UnknownNameError
from eqsat_deploy.grid import IntegerGrid
from eqsat_deploy.noise import decibels, ratio
from eqsat_deploy.pareto import pareto
from eqsat_deploy.quantization import (
    AccuracyBudget,
    FakeQuantize,
    precision,
    ptq,
    quantize,
    sensitivity,
)
from eqsat_deploy.quantization.fake_quantize import swapped
from eqsat_deploy.quantization.observers import Extremes
from eqsat_deploy.quantization.places import grid_groups
from eqsat_deploy.quantization.precision import (
    ENOUGH,
    LEAST,
    MOST,
    WORTH,
    Spending,
    affordable,
    economical,
    leading,
    leaving,
    with_floats,
    worth,
)
from eqsat_deploy.quantization.ptq import EFFORTS
from eqsat_deploy.quantization.sensitivity import Sensitivities, Sensitivity
from tests.support.models import randomized
from tests.support.stages import optimized, outputs

pytestmark = pytest.mark.filterwarnings("ignore:the calibration data", "ignore:in INT8, on calibration data")


class Gated(nn.Module):
    """A squeeze-excite block over channels of very different sizes, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.spread = nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1, groups=64)
        self.squeeze, self.excite = nn.Conv2d(64, 32, 1), nn.Conv2d(32, 64, 1)
        self.head = nn.Conv2d(64, 64, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.spread(torch.relu(self.stem(x))))
        gate = torch.sigmoid(self.excite(torch.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        return self.head(y * gate)  # type: ignore[no-any-return]


def batches(count: int = 4, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(8, 3, 24, 24, generator=generator) for _ in range(count)]


@pytest.fixture(scope="module")
def gated() -> fx.GraphModule:
    model = randomized(Gated())
    with torch.no_grad():
        model.spread.weight.mul_(10 ** torch.linspace(-1.5, 1.5, 64)[:, None, None, None])
    return optimized(model, batches()[0], cost="openvino_int8")


def found(*kernels: tuple[str, float, float | None], sqnr: float, total: float = 100.0) -> Sensitivities:
    return Sensitivities(
        tuple(Sensitivity(n, noise, 1.0, time) for n, noise, time in kernels), sqnr, total, "us"
    )


def chosen(found: Sensitivities, most: float = MOST, always: Sequence[str] = ()) -> list[str]:
    """`economical` where every kernel costs what it costs alone."""
    alone = {one.kernel: one.time or 0.0 for one in found.kernels}
    return economical(found, lambda names: sum(alone[name] for name in names) / found.total, most, always)


def test_only_what_is_worth_its_time_stays_in_float() -> None:
    half = 10 ** (-1.5) / 2  # 3 dB of 15
    assert chosen(found(("free", half, 0.0), ("dear", half, 8.0), sqnr=15)) == ["free"]
    assert chosen(found(("worth it", half, 2.0), sqnr=15)) == ["worth it"]
    assert chosen(found(("not enough", half / 100, 1.0), sqnr=15)) == []
    assert chosen(found(("free, for nothing", half / 100, 0.0), sqnr=15)) == []
    assert chosen(found(("unknown", half, None), sqnr=15)) == []
    assert chosen(found(sqnr=15)) == []


def test_no_more_than_most_of_the_time_is_spent_on_what_brings_most() -> None:
    part = 10 ** (-1.5) / 6
    many = found(*((f"k{i}", part, MOST * 40) for i in range(6)), sqnr=15)
    assert len(chosen(many)) == 2
    assert 10 * math.log10(6 / 5) > WORTH * 40 * MOST, "each of them alone is worth it"
    # The most noise for its time leaves no time for what has most of the noise.
    apart = found(("small", 1.5 * part, MOST * 25), ("great", 5 * part, MOST * 90), sqnr=15)
    assert apart.by_worth()[0].kernel == "small"
    assert chosen(apart) == ["great"]


def test_the_nearer_the_outputs_are_the_less_time_may_be_spent() -> None:
    assert affordable(15.0, MOST) == affordable(20.0, MOST) == MOST
    assert affordable((20.0 + ENOUGH) / 2, MOST) == pytest.approx(MOST / 2)
    assert affordable(ENOUGH, MOST) == affordable(40.0, MOST) == 0


def test_kernels_that_add_up_to_more_than_was_measured_share_it() -> None:
    both = found(("a", 0.03, 1.0), ("b", 0.03, 1.0), sqnr=20)
    assert sorted(chosen(both)) == ["a", "b"]
    assert chosen(found(("a", 0.03, MOST * 100), ("b", 0.03, MOST * 100), sqnr=20)) == ["a"]


def test_kernels_next_to_one_another_are_chosen_for_what_they_cost_together() -> None:
    apart = found(("a", 0.03, MOST * 60), ("b", 0.03, MOST * 60), ("c", 0.01, MOST * 40), sqnr=11)
    assert chosen(apart) == ["a", "c"]
    together = {frozenset("ab"): MOST * 70}
    alone = {one.kernel: one.time for one in apart.kernels}

    def spending(names: frozenset[str]) -> float:
        return together.get(names, sum(alone[name] or 0.0 for name in names)) / 100

    assert sorted(economical(apart, spending, MOST)) == ["a", "b"]
    assert sorted(chosen(apart, 2 * MOST, ["b", "c"])) == ["a", "b", "c"]
    assert [worth(0.0), worth(0.05)] == [LEAST, pytest.approx(5 * WORTH)]


def test_in_float_all_together_kernels_take_what_they_do_without_codes(gated: fx.GraphModule) -> None:
    placement, spending = deployment(gated).placement, spending_of(gated)
    total = sum(kernel.cost for kernel in placement.kernels)

    def time(*anchors: str) -> float:
        return spending(frozenset(anchors)) * total

    integers = [kernel for kernel in placement.kernels if kernel.precision == "int8"]
    stem, spread = (
        next(kernel for kernel in integers if kernel.anchor == name) for name in ("stem", "spread")
    )
    given = next(quantizer for quantizer in placement.quantizers if "stem" in quantizer.readers)
    assert given.cost > 0, "a pass of its own"
    assert time("stem") == pytest.approx(max(stem.float_cost - stem.cost - given.cost, 0))
    rounded = stem.float_wide_cost - stem.cost - given.cost + spread.float_cost - spread.cost
    assert time("stem", "spread") == pytest.approx(max(rounded, 0))
    assert time("stem", "spread") < time("stem") + time("spread")
    floats = sum(kernel.float_wide_cost or kernel.float_cost for kernel in integers)
    floats += sum(kernel.wide_cost or kernel.cost for kernel in placement.kernels if kernel not in integers)
    before = total + sum(quantizer.cost for quantizer in placement.quantizers)
    assert time(*(kernel.anchor for kernel in integers)) == pytest.approx(floats - before)


def anything_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """However near the outputs are, kernels in float are tried."""
    monkeypatch.setattr(precision, "ENOUGH", 60.0)


def spending_of(module: fx.GraphModule) -> Spending:
    return Spending(deployment(module).placement, {node.name: node for node in module.graph.nodes})


def test_the_first_kernels_are_tried_whatever_is_expected_of_them(
    gated: fx.GraphModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    anything_goes(monkeypatch)
    monkeypatch.setattr(ptq, "MOST", 1.0)
    spending = spending_of(gated)
    assert leading(spending, -1.0) == []
    monkeypatch.setattr(precision, "LEADING", spending(frozenset({"stem", "spread"})) + 1e-6)
    assert leading(spending, 1.0)[:2] == ["stem", "spread"]
    monkeypatch.setattr(precision, "LEAST", -30.0)
    monkeypatch.setattr(precision, "WORTH", 0.0)
    kept = {effort: _floats(quantize(gated, batches(), effort=effort)) - _floats(gated) for effort in EFFORTS}
    assert not kept["fast"]
    assert {"stem", "spread"} <= kept["balanced"] & kept["best"]


def test_enough_goes_to_float_for_a_part_of_the_noise_to_be_left() -> None:
    known = found(("a", 4.0, 1.0), ("b", 3.0, 3.0), ("c", 2.0, 1.0), ("d", 1.0, 1.0), sqnr=0)
    assert leaving(known, 1.0) == ["a"]
    assert leaving(known, 0.6) == ["a"]
    assert leaving(known, 0.5) == ["a", "c"]
    assert leaving(known, 0.0) == ["a", "c", "b", "d"]


def test_noise_is_what_each_kernel_alone_does(gated: fx.GraphModule) -> None:
    quantized = quantize(gated, batches(), effort="fast")  # whose biases take back nothing
    data = torch.cat(batches(1, seed=1))
    known = [sensitivity(quantized, [data], seed=seed) for seed in range(6)]
    exact = swapped(quantized, lambda quantizer: nn.Identity())
    compared = 0
    for kernel in deployment(quantized).placement.kernels:
        if kernel.precision != "int8":
            continue
        noise = [one.noise for found in known for one in found.kernels if one.kernel == kernel.anchor]
        own = _quantizers(quantized, kernel.anchor)
        if own is None:
            continue
        alone = swapped(
            quantized, lambda quantizer, own=own: quantizer if id(quantizer) in own else nn.Identity()
        )
        measured = decibels(outputs(exact, data)[0], outputs(alone, data)[0])
        assert ratio(1.0, sum(noise) / len(noise)) == pytest.approx(measured, abs=2), kernel.anchor
        compared += 1
    assert compared >= 4


def _quantizers(module: fx.GraphModule, anchor: str) -> set[int] | None:
    """What rounds the operands and the weight of a node; None where others read the same codes."""
    node = next(n for n in module.graph.nodes if n.name == anchor)
    if any(len(operand.users) > 1 for operand in node.all_input_nodes):
        return None
    owners = [n for n in (node, *node.all_input_nodes) if n.op == "call_module"]
    found = [child for n in owners for child in module.get_submodule(str(n.target)).modules()]
    return {id(child) for child in found if isinstance(child, FakeQuantize)}


def test_what_is_economical_stays_in_float(gated: fx.GraphModule, monkeypatch: pytest.MonkeyPatch) -> None:
    data = torch.cat(batches())
    expected, before = outputs(gated, data)[0], quantize(gated, batches())
    assert _floats(before) == _floats(gated), "accurate enough"
    anything_goes(monkeypatch)
    assert _floats(quantize(gated, batches())) == _floats(gated), "nothing is worth its time"
    monkeypatch.setattr(ptq, "MOST", 0.4)
    monkeypatch.setattr(precision, "WORTH", 0.05)
    with monkeypatch.context() as never:
        never.setattr(precision, "LEAST", 30.0)
        assert _floats(quantize(gated, batches())) == _floats(gated), "nothing brings as much"
    after = quantize(gated, batches())
    kept = _floats(after) - _floats(gated)
    assert "mul" in kept
    assert decibels(expected, outputs(after, data)[0]) > decibels(expected, outputs(before, data)[0]) + 1
    assert _floats(quantize(gated, batches(), effort="fast")) == _floats(gated)


def test_what_was_expected_to_help_and_does_not_stays_in_int8(
    gated: fx.GraphModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    anything_goes(monkeypatch)
    tried = []

    def hopeful(found: Sensitivities, *rest: Any) -> list[str]:
        tried.append(found.kernels[-1].kernel)
        return [tried[-1]]

    monkeypatch.setattr(ptq, "economical", hopeful)
    quantized = quantize(gated, batches())
    assert len(tried) == 1
    assert _floats(quantized) == _floats(gated)


class Branches(nn.Module):
    """Two branches that meet in a concatenation, so that what they are quantized from shares a grid."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.other = nn.Conv2d(3, 32, 3, 2, 1), nn.Conv2d(3, 32, 5, 2, 2)
        self.head = nn.Conv2d(64, 64, 3)

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.max_pool2d(F.relu(self.stem(x)), 3, 1, 1)
        return self.head(torch.cat([pooled, F.relu(self.other(x))], 1)).mean((2, 3))  # type: ignore[no-any-return]


def test_a_shared_grid_outlives_the_tensor_it_is_called_by(monkeypatch: pytest.MonkeyPatch) -> None:
    module = optimized(randomized(Branches()), batches()[0], cost="openvino_int8")
    placement = deployment(module).placement
    groups = grid_groups(placement, IntegerGrid())
    shared = next(group for group in groups if len(group) > 1)
    first = next(k.anchor for k in placement.kernels if set(shared[0].readers) & set(k.nodes))
    anything_goes(monkeypatch)
    tried = []

    def hopeful(*given: Any) -> list[str]:
        tried.append(first)
        return [first]

    monkeypatch.setattr(ptq, "economical", hopeful)
    quantize(module, batches())
    assert tried
    assert shared[1].tensor in {q.tensor for q in with_floats_of(module, first).quantizers}


def with_floats_of(module: fx.GraphModule, name: str) -> Placement:
    return with_floats(deployment(module).placement, [name], {n.name: n for n in module.graph.nodes})


def _floats(module: fx.GraphModule) -> set[str]:
    return {k.anchor for k in deployment(module).placement.kernels if k.precision != "int8"}


@pytest.mark.parametrize("limit", [25.0, 35.0])
def test_a_budget_is_kept(gated: fx.GraphModule, limit: float) -> None:
    quantized = quantize(gated, batches(), accuracy_budget=limit)
    data = torch.cat(batches())
    assert decibels(outputs(gated, data)[0], outputs(quantized, data)[0]) >= limit - 1
    kernels = deployment(quantized).placement.kernels
    assert any(kernel.precision == "int8" for kernel in kernels), "no more than has to be"


def test_a_budget_that_is_kept_anyway_changes_nothing(gated: fx.GraphModule) -> None:
    assert _floats(quantize(gated, batches(), effort="fast", accuracy_budget=1.0)) == _floats(gated)


def largest(expected: list[Tensor], found: list[Tensor]) -> float:
    return float((expected[0] - found[0]).abs().max() / expected[0].abs().max())


@pytest.mark.parametrize(("metric", "limit"), [("cosine", 0.999), ("kl", 0.01), (largest, 0.02)])
def test_budgets_have_metrics(
    gated: fx.GraphModule, metric: str | Callable[..., float], limit: float
) -> None:
    budget = AccuracyBudget(limit, metric)
    quantized = quantize(gated, batches(), accuracy_budget=budget)
    data = torch.cat(batches())
    assert budget.excess(budget.measure(outputs(gated, data), outputs(quantized, data))) < 1.3


def test_a_budget_that_nothing_keeps_is_an_error(gated: fx.GraphModule) -> None:
    with pytest.raises(QuantizationError, match="on never cannot be kept"):
        quantize(gated, batches(), accuracy_budget=AccuracyBudget(0.5, _never))
    with pytest.raises(UnknownNameError, match="kl"):
        AccuracyBudget(1.0, "k")
    with pytest.raises(InputError, match="limit"):
        AccuracyBudget(float("nan"))
    with pytest.raises(EqsatError, match="accuracy_budget"):
        quantize(gated, batches(), accuracy_budget="good")


def _never(expected: list[Tensor], found: list[Tensor]) -> float:
    return 1.0


_never.__name__ = "never"


def test_the_front_trades_time_for_accuracy(gated: fx.GraphModule) -> None:
    front = pareto(gated, batches(), points=4)
    times, ratios = [p.time for p in front.points], [p.sqnr for p in front.points]
    assert len(front.points) >= 3
    assert times == sorted(times)
    assert ratios == sorted(ratios)
    last = quantize(gated, batches(), precision=front.points[-1].precision)
    assert sum(k.cost for k in deployment(last).placement.kernels) == pytest.approx(times[-1])
    assert str(len(front.points[-1].floats)) in str(front)
    figure = front.plot()
    assert "us" in figure.axes[0].get_xlabel()


def test_vectors_get_room_for_what_calibration_has_not_shown() -> None:
    vectors, maps = Extremes(1), Extremes(1)
    for value in (1.0, 2.0, 3.0):
        vectors.update(torch.full((1, 4, 1, 1), value))
        maps.update(torch.full((1, 4, 2, 2), value))
    assert maps.whole == (1.0, 3.0)
    assert vectors.whole == (0.0, 4.0), (
        "as far beyond the greatest as that is beyond the mean, and not below zero"
    )
