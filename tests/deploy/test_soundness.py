from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from eqsat_deploy import check_egraph
from eqsat_deploy.errors import RuleError
from eqsat_deploy.freeze import EClass
from eqsat_deploy.kernels import ENode
from eqsat_deploy.language import conv2d, mul, relu, scalar, unary
from eqsat_deploy.rules import rule
from eqsat_deploy.soundness import check_space
from tests.support.models import (
    Aliasing,
    Attends,
    Opaque,
    Residual,
    Several,
    Tied,
    Transformer,
    image,
    randomized,
)
from tests.support.stages import frozen


class Layouts(nn.Module):
    """ConvNeXt's block: depthwise convolution, LayerNorm and Linears on channels-last, LayerScale, a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.norm = nn.LayerNorm(6)
        self.up, self.down = nn.Linear(6, 12), nn.Linear(12, 6)
        self.scale = nn.Parameter(torch.full((6,), 1e-6))

    def forward(self, x):
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.down(nn.functional.gelu(self.up(y))) * self.scale
        return x + y.permute(0, 3, 1, 2)


class Branches(nn.Module):
    """RepVGG's block in training form: 3x3, 1x1 and identity branches, each with BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.large, self.small = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.Conv2d(4, 4, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(3))

    def forward(self, x):
        return torch.relu(self.norms[0](self.large(x)) + self.norms[1](self.small(x)) + self.norms[2](x))


MODELS = {
    "residual": (Residual, lambda: image()),
    "transformer": (Transformer, lambda: image()),
    "layouts": (Layouts, lambda: image(2, 6, 5, 4)),
    "branches": (Branches, lambda: image(2, 4, 5, 5)),
    "aliasing": (Aliasing, lambda: image(2, 6)),
    "tied": (Tied, lambda: torch.randint(0, 11, (2, 7))),
    "several": (Several, lambda: {"a": image(2, 4), "b": image(2, 3)}),
    "opaque": (Opaque, lambda: image(2, 6)),
    "whole attention": (lambda: Attends("unknown"), lambda: image(4, 5, 8)),
    "masked attention": (lambda: Attends("mask"), lambda: image(2, 5, 8)),
    "attention with weights": (lambda: Attends("weights"), lambda: image(2, 5, 8)),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_e_node_of_every_class_agrees(name):
    make, example = MODELS[name]
    report = check_egraph(randomized(make()), example())
    assert report.ok, str(report)
    assert report.e_nodes >= report.e_classes > 3
    assert report.stopped == "saturated"
    assert 0 <= report.worst <= report.tolerance
    assert report.check() is report


@rule("real", x="n c")
def doubled(x):
    """relu(x) is 2 relu(x), which it is not."""
    return relu(x), mul(unary("relu", x), scalar(2.0))


def test_a_wrong_rule_is_named_with_the_e_nodes_it_joined():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    report = check_egraph(randomized(model), image(2, 4), rules=["folding", "movement", doubled])
    assert not report.ok
    assert report.suspects()[0] == "doubled"
    words = str(report.disagreements[0])
    assert "doubled" in words
    assert "relu" in words
    with pytest.raises(RuleError, match="doubled"):
        report.check()


def test_the_error_shows_where_it_was_made_and_not_in_what_reads_it():
    model = nn.Sequential(nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 4))
    report = check_egraph(randomized(model), image(2, 4), rules=[doubled])
    assert len({d.e_class for d in report.disagreements}) == 1


def test_a_wrong_e_node_in_one_class_is_found():
    low, saturation, found = frozen(randomized(Residual()), image())
    assert check_space(low, saturation, found).ok
    number, node = next(
        (c, n) for c, n in found.nodes if n.operator is conv2d and (c, n) not in found.original
    )
    x, weight, bias = node.operands
    stranger = ENode(conv2d, (x, weight, bias, (1, 1), (3, 3), (1, 1), 1))
    report = check_space(low, saturation, replace(found, nodes=(*found.nodes, (number, stranger))))
    assert [d.e_class for d in report.disagreements] == [number, number]
    assert all("conv2d" in d.e_node for d in report.disagreements)


def test_a_node_that_is_never_reached_is_reported():
    low, saturation, found = frozen(randomized(Residual()), image())
    classes = (*found.classes, EClass(shape=(1,), dtype=torch.float32))
    lost = (found.row_class[0], ENode(unary, ("relu", len(found.classes))))
    report = check_space(low, saturation, replace(found, classes=classes, nodes=(*found.nodes, lost)))
    assert not report.ok
    assert "relu" in report.unreached[0]


def test_inputs_of_zeros_hide_nothing():
    report = check_egraph(nn.Sequential(nn.ReLU()), torch.zeros(2, 4), rules=[doubled])
    assert not report.ok


def test_both_batch_sizes_are_reported():
    report = check_egraph(nn.Sequential(nn.ReLU()), image(2, 4), rules=[doubled])
    assert {d.batch for d in report.disagreements} == set(report.batches)
