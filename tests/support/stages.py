"""Each stage on a tiny model, and what must hold of any optimized module."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

import eqsat_deploy
from eqsat_deploy.capture import Captured, capture
from eqsat_deploy.freeze import Space, freeze
from eqsat_deploy.inputs import example_arguments
from eqsat_deploy.lower import Lowered, lower
from eqsat_deploy.saturate import Saturation, saturate
from eqsat_deploy.selection import registered_rules
from eqsat_deploy.verify import relative_error


def captured(model: nn.Module, example: Any, **options: Any) -> Captured:
    args, kwargs = example_arguments(model, example)
    return capture(model, args, kwargs, **options)


def lowered(model: nn.Module, example: Any) -> Lowered:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return lower(captured(model, example))


def frozen(model: nn.Module, example: Any) -> tuple[Lowered, Saturation, Space]:
    low = lowered(model, example)
    saturation = saturate(low, registered_rules())
    return low, saturation, freeze(low, saturation)


def space(model: nn.Module, example: Any) -> Space:
    return frozen(model, example)[2]


def optimized(model: nn.Module, example: Any = None, **options: Any) -> eqsat_deploy.OptimizedModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return eqsat_deploy.optimize(model, example, **{"cost": "trt_int8", **options})


def outputs(module: Any, *args: Any, **kwargs: Any) -> list[Tensor]:
    with torch.no_grad():
        return [v for v in pytree.tree_leaves(module(*copy.deepcopy(args), **copy.deepcopy(kwargs)))
                if isinstance(v, Tensor)]  # fmt: skip


def assert_same(expected: Any, actual: Any, *args: Any, tolerance: float = 1e-5, **kwargs: Any) -> None:
    """Two modules compute the same, not all zero, as nested the same way."""
    a, b = outputs(expected, *args, **kwargs), outputs(actual, *args, **kwargs)
    assert len(a) == len(b) > 0
    assert any(bool(t.any()) for t in a), "outputs of zeros prove nothing"
    assert relative_error(a, b) <= tolerance


def kinds(low: Lowered) -> list[str]:
    return [row.operator.name for row in low.rows]


def called(module: nn.Module) -> list[str]:
    """Types of the submodules that the graph calls, in order."""
    return [
        type(module.get_submodule(str(n.target))).__name__
        for n in module.graph.nodes
        if n.op == "call_module"
    ]  # type: ignore[union-attr]
