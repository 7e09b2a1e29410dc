"""Where scales of channels may move: what the rules say, and nothing else."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import eqsat_deploy as eqd
from eqsat_deploy import scales
from eqsat_deploy.deployment import FreeScale, deployment
from eqsat_deploy.language import (
    OPERATORS,
    adaptive_avg_pool2d,
    avg_pool2d,
    conv2d,
    linear,
    max_pool2d,
    mul,
    packed_attention,
    standardize,
    unary,
)  # fmt: skip
from eqsat_deploy.language.pointwise import UNARY
from eqsat_deploy.rules import constant, rule
from eqsat_deploy.scales import Applied, Read, free_scales, scale_rules

SHAPE = (2, 3, 8, 8)
WINDOW = ((1, 1), (0, 0), (1, 1), 1)
POOL = ((2, 2), (2, 2), (1, 1))


def read(node: str | None, *shape: int) -> Read:
    return Read(node, shape or SHAPE, torch.float32)


def convolution(of: str) -> Applied:
    return Applied(conv2d, (read(of), read(None, 3, 3, 1, 1), read(None, 3), *WINDOW))


def between(*applied: Applied, **more: Applied) -> FreeScale:
    """What takes in the scale of what a convolution writes and `applied` makes of it, which another convolution reads;
    each reads the one before it, called `x0`, `x1` and so on."""
    chain = {f"x{i}": known for i, known in enumerate((convolution("x"), *applied))}
    last = f"x{len(chain) - 1}"
    nodes = chain | {"reader": convolution(last)} | more
    users = {name: sum(r.node == name for known in nodes.values() for r in known.operands) for name in nodes}
    (free,) = free_scales(nodes, users, {last: ["reader"]})
    return free


def moved(free: FreeScale) -> dict[str, tuple[str, ...]]:
    """The rules by which each writer takes the scale in."""
    return {taking.node: taking.rules for taking in free.writers}


def scaled(function: Any) -> bool:
    """Whether channels that are multiplied by positive numbers multiply those of the result."""
    values = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)) * 3
    factor = torch.rand(1, SHAPE[1], 1, 1, generator=torch.Generator().manual_seed(1)) + 0.5
    return torch.allclose(function(values * factor), function(values) * factor, atol=1e-5, equal_nan=True)


FUNCTIONS = [*sorted({*UNARY} - {"clamp", "clamp_max", "clamp_min", "leaky_relu", "pow"}), "leaky_relu(0.1)"]


def test_scales_move_through_the_functions_that_let_them_and_no_others() -> None:
    nodes = {}
    for f in FUNCTIONS:
        before, after = f"before {f}", f"after {f}"
        nodes |= {before: convolution("x"), f: Applied(unary, (f, read(before))), after: convolution(f)}
    found = free_scales(nodes, dict.fromkeys(nodes, 1), {f: [f"after {f}"] for f in FUNCTIONS})
    through = {free.tensor for free in found if free.writers}
    assert through == {f for f in FUNCTIONS if scaled(lambda x, f=f: unary(f, x))}
    assert through == {"abs", "leaky_relu(0.1)", "neg", "relu"}


@pytest.mark.parametrize(
    ("operator", "attributes", "by"),
    [
        (max_pool2d, (*POOL, (1, 1), 0), "scale-after-max-pool"),
        (avg_pool2d, (*POOL, 0, 0), "scale-through-average-pool"),
        (adaptive_avg_pool2d, ((2, 2),), "per-channel-through-adaptive-pool"),
        (max_pool2d, (*POOL, (1, 1), 1), "scale-after-max-pool"),
    ],
)
def test_scales_move_through_pools(operator: Any, attributes: tuple[Any, ...], by: str) -> None:
    free = between(Applied(operator, (read("x0"), *attributes)))
    assert moved(free) == {"x0": (by, "scale-after-convolution")}
    assert scaled(lambda x: operator(x, *attributes))
    assert free.shape == (3, 1, 1)


def test_what_takes_a_scale_in_says_what_its_parameters_become() -> None:
    free = between(Applied(unary, ("relu", read("x0"))))
    (writer,), (reader,) = free.writers, free.readers
    weight, bias, scale = torch.randn(3, 3, 1, 1), torch.randn(3), torch.rand(3, 1, 1)
    given = {"weight": weight, "bias": bias, "scale": scale}
    assert reader.rules == ("scale-before-convolution",)
    assert torch.equal(writer.parameters["weight"].value(given), weight * scale[..., None])
    assert torch.equal(writer.parameters["bias"].value(given), bias * scale.flatten())
    assert torch.equal(reader.parameters["weight"].value(given), weight * scale)
    assert reader.parameters.keys() == {"weight"}


def test_no_scale_moves_without_its_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    relu = Applied(unary, ("relu", read("x0")))
    assert moved(between(relu)) == {"x0": ("scale-after-relu", "scale-after-convolution")}
    fewer = tuple(r for r in scale_rules() if r.name != "scale-after-relu")
    monkeypatch.setattr(scales, "scale_rules", lambda: fewer)
    assert not moved(between(relu))
    assert moved(between()) == {"x0": ("scale-after-convolution",)}


def test_rules_of_others_move_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    @rule("real", x="~ a b", s="~ b")
    def scale_after_hardswish(x: Any, s: Any) -> Any:
        """Not so, which its checks would say."""
        return mul(unary("hardswish", x), s), unary("hardswish", mul(x, s)), [constant(s)]

    hardswish = Applied(unary, ("hardswish", read("x0")))
    assert not moved(between(hardswish))
    known = scale_rules.__wrapped__
    monkeypatch.setattr(scales, "registered_rules", lambda: (*scale_rules(), scale_after_hardswish))
    more = known()
    assert scale_after_hardswish in more
    monkeypatch.setattr(scales, "scale_rules", lambda: more)
    assert moved(between(hardswish)) == {"x0": ("scale-after-hardswish", "scale-after-convolution")}


def test_clipping_is_left_to_the_rounding_where_it_comes_last_alone() -> None:
    relu6 = Applied(unary, ("clamp(0.0,6.0)", read("x0")))
    last = between(relu6)
    assert moved(last) == {"x0": ("scale-after-minimum", "scale-after-relu", "scale-after-convolution")}
    assert last.ceiling == 6.0
    pooled = between(relu6, Applied(avg_pool2d, (read("x1"), *POOL, 0, 0)))
    assert not pooled.writers
    assert pooled.ceiling is None
    for other in ("clamp(-1.0,6.0)", "clamp_max(6.0)"):
        assert not between(Applied(unary, (other, read("x0")))).writers


def test_what_something_else_reads_is_not_scaled() -> None:
    relu = Applied(unary, ("relu", read("x0")))
    assert not between(relu, other=Applied(unary, ("sigmoid", read("x0")))).writers


def test_the_way_back_ends_at_what_is_rounded() -> None:
    nodes = {"a": convolution("x"), "b": Applied(max_pool2d, (read("a"), *POOL, (1, 1), 0)), "c": convolution("b"),
             "d": convolution("a")}  # fmt: skip
    users = {"a": 1, "b": 1, "c": 0, "d": 0}
    (free,) = free_scales(nodes, users, {"b": ["c"]})
    assert moved(free)
    frees = {free.tensor: free for free in free_scales(nodes, users, {"a": ["b"], "b": ["c"]})}
    assert frees.keys() == {"b"}, "a pool has no weights"
    assert not frees["b"].writers


def test_no_scale_moves_where_it_would_cost() -> None:
    add = Applied(OPERATORS["binary"], ("add", read("x0"), read("y")))
    assert not between(add).writers
    constants = Applied(OPERATORS["binary"], ("mul", read("x0"), read(None, 3, 1, 1)))
    assert not between(constants).writers, "what no module holds stays as it is"


def test_features_are_scaled_along_the_last_axis() -> None:
    features = (2, 7, 5)
    nodes = {
        "a": Applied(linear, (read("x", *features), read(None, 5, 5), read(None, 5))),
        "b": Applied(linear, (read("a", *features), read(None, 4, 5), read(None, 4))),
    }
    (free,) = free_scales(nodes, {"a": 1, "b": 0}, {"a": ["b"]})
    assert free.shape == (5,)
    assert moved(free) == {"a": ("scale-after-linear",)}
    assert free.readers[0].rules == ("scale-before-linear",)


def test_scales_of_attended_values_are_those_of_the_values() -> None:
    width = (2, 7, 12)
    nodes = {
        "packed": Applied(linear, (read("x", *width[:2], 4), read(None, 12, 4), read(None, 12))),
        "attended": Applied(packed_attention, (read("packed", *width), 2, 0.5)),
        "out": Applied(linear, (read("attended", 2, 7, 4), read(None, 4, 4), read(None, 4))),
    }
    (free,) = free_scales(nodes, dict.fromkeys(nodes, 1), {"attended": ["out"]})
    assert moved(free) == {"packed": ("scale-after-packed-attention", "scale-after-linear")}
    scale = torch.rand(4)
    rows = free.writers[0].parameters["bias"].value({"bias": torch.ones(12), "scale": scale})
    assert torch.equal(rows, torch.cat([torch.ones(8), scale])), "neither queries nor keys"


def test_a_normalization_without_weights_gets_them() -> None:
    width = (2, 7, 5)
    norm = Applied.of(standardize, (read("x", *width), 6, 1e-5))
    nodes = {"norm": norm, "out": Applied(linear, (read("norm", *width), read(None, 4, 5), read(None, 4)))}
    (free,) = free_scales(nodes, {"norm": 1, "out": 0}, {"norm": ["out"]})
    assert moved(free) == {"norm": ("scale-into-layer-norm",)}
    along_channels = Applied.of(standardize, (read("x", *width), 5, 1e-5))
    assert (
        free_scales(nodes | {"norm": along_channels}, {"norm": 1, "out": 0}, {"norm": ["out"]})[0].writers
        == ()
    )


class Convolutions(nn.Module):
    """Two, and ReLU6 between them; one channel of the first is much greater than the others."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(64, 64, 1)
        with torch.no_grad():
            self.first.weight[1:] /= 100
            self.first.bias[1:] /= 100  # type: ignore[index]
            self.second.weight[:, 1:] *= 100

    def forward(self, x: Tensor) -> Tensor:
        return self.second(nn.functional.relu6(self.first(x)))  # type: ignore[no-any-return]


@pytest.mark.filterwarnings("ignore:the calibration data")
def test_the_report_names_the_rules_by_which_scales_moved() -> None:
    torch.manual_seed(0)
    data = [torch.randn(4, 3, 64, 64) for _ in range(4)]
    optimized = eqd.optimize(Convolutions().eval(), (data[0],), cost="openvino_int8")
    (free,) = [free for free in deployment(optimized).placement.scales if free.ceiling is not None]
    rules = ("scale-after-minimum", "scale-after-relu", "scale-after-convolution")
    assert moved(free) == {"first": rules}
    assert [taking.node for taking in free.readers] == ["second"]
    report = optimized.quantize(data).report
    (scaled,) = [scaled for scaled in report.scales if scaled.writers]
    assert (scaled.tensor, scaled.readers, scaled.writers) == (free.tensor, ("second",), ("first",))
    assert scaled.rules == (*rules, "scale-before-convolution")
    assert scaled.least < 0.2
    assert "scale-after-minimum" in repr(report)
    assert json.loads(json.dumps(report.to_dict()))["scales"][-1]["writers"] == ["first"]
    assert not optimized.report.scales


def test_rules_that_move_scales_are_those_that_find_a_product_with_a_constant() -> None:
    names = {r.name for r in scale_rules()}
    assert {"scale-after-linear", "scale-before-convolution", "scale-into-layer-norm"} <= names
    assert not {"shift-after-linear", "batch-norm-is-affine", "flatten-linear-as-convolution"} & names
    assert {r.family for r in scale_rules()} >= {"folding", "scaling", "equalization"}


def test_no_layer_takes_in_parameters_of_another_node(monkeypatch: pytest.MonkeyPatch) -> None:
    def moving(factor: Any) -> Any:
        @rule("real", x="n k h w", by="k 1 1", s="1... k 1 1")
        def scale_before_sigmoid(x: Any, by: Any, s: Any) -> Any:
            """Not so, but it moves a factor that is made of the scale, and perhaps of another."""
            before = unary("sigmoid", mul(mul(x, factor(s, by)), by))
            return mul(unary("sigmoid", mul(x, by)), s), before, [constant(s), constant(by)]

        return scale_before_sigmoid

    chain = (
        Applied(OPERATORS["binary"], ("mul", read("x0"), read(None, 3, 1, 1))),
        Applied(unary, ("sigmoid", read("x1"))),
    )
    known = scale_rules()
    for made_of, moves in ((lambda s, by: s, True), (mul, False)):
        monkeypatch.setattr(scales, "scale_rules", lambda made_of=made_of: (*known, moving(made_of)))
        assert bool(moved(between(*chain))) == moves
