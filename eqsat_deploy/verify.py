"""Verification: the rebuilt module computes what the original computes, or an error says by how much it does not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from eqsat_deploy.capture import Captured
from eqsat_deploy.errors import VerificationError

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 4e-2, torch.float16: 5e-3}
ROUNDING_FACTOR = 10.0


@dataclass(frozen=True)
class Verified:
    """The largest relative error per batch size, the tolerance it stayed under, and whether the outputs that
    were compared were all zero (then they prove nothing)."""

    errors: dict[int, float]
    tolerance: float
    vacuous: bool

    @property
    def error(self) -> float:
        """The largest relative error."""
        return max(self.errors.values(), default=0.0)


def verify(captured: Captured, rebuilt: nn.Module) -> Verified:
    """Compare outputs on the example inputs and at a second batch size.

    Per output, max|a - b| <= r * max|a|, with r by dtype (1e-4 for float32). Where that fails, float64 decides:
    the original's own rounding error, times ten, is allowed.

    Raises:
        VerificationError: they differ; the message names the output, the batch size and the error.
    """
    errors: dict[int, float] = {}
    tolerance = 0.0
    peak = 0.0
    for arguments in (captured.example, _other_batch(captured)):
        expected, actual = _run(captured.module, arguments), _run(rebuilt, arguments)
        batch = _size(arguments)
        if len(expected) != len(actual):
            raise VerificationError(f"{len(actual)} outputs instead of {len(expected)}")
        error, allowed = relative_error(expected, actual), _tolerance(expected)
        if not error <= allowed:
            allowed = max(allowed, ROUNDING_FACTOR * _rounding(captured, arguments, expected))
        if not error <= allowed:
            worst = max(
                range(len(expected)), key=lambda i: relative_error(expected[i : i + 1], actual[i : i + 1])
            )
            raise VerificationError(
                f"output {worst} differs by {error:.3g} of its largest value at batch {batch} (allowed {allowed:.3g}): "
                "a rule or the rebuild is wrong for this model. check_egraph(model) names the rule; "
                "optimize(..., rules=...) without it gives a correct module."
            )
        errors[batch], tolerance = error, max(tolerance, allowed)
        peak = max(peak, *(float(t.abs().max()) if t.numel() else 0.0 for t in map(_real, expected)), 0.0)
    return Verified(errors, tolerance, vacuous=peak == 0.0)


def relative_error(expected: list[Tensor], actual: list[Tensor]) -> float:
    """The largest of max|a - b| / max|a| over outputs; infinite where shapes, dtypes or non-finite values differ."""
    worst = 0.0
    for a, b in zip(expected, actual, strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            return float("inf")
        a, b = _real(a), _real(b)
        finite = torch.isfinite(a)
        if not torch.equal(finite, torch.isfinite(b)) or not torch.equal(
            a[~finite].nan_to_num(), b[~finite].nan_to_num()
        ):
            return float("inf")
        difference = float((a - b)[finite].abs().max()) if finite.any() else 0.0
        scale = float(a[finite].abs().max()) if finite.any() else 0.0
        worst = max(worst, difference / scale if scale else (float("inf") if difference else 0.0))
    return worst


def _real(tensor: Tensor) -> Tensor:
    return tensor.detach().double()


def _run(module: Callable[..., Any], arguments: tuple[tuple[Any, ...], dict[str, Any]]) -> list[Tensor]:
    args, kwargs = copy.deepcopy(arguments)
    with torch.no_grad():
        leaves = pytree.tree_leaves(module(*args, **kwargs))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def _tolerance(outputs: list[Tensor]) -> float:
    return max((TOLERANCE.get(o.dtype, 0.0) for o in outputs), default=0.0)


def _rounding(captured: Captured, arguments: Any, expected: list[Tensor]) -> float:
    """The original's own rounding error: its outputs against those it computes in float64."""
    try:
        double = copy.deepcopy(captured.module).double()
        exact = _run(double, pytree.tree_map(_double, arguments))
    except RuntimeError:  # the model mixes in tensors of a fixed dtype
        return 0.0
    return relative_error([e.double() for e in exact], [e.double() for e in expected])


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _other_batch(captured: Captured) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The example inputs one sample longer, in another order, floats moved a little."""
    axes = iter(captured.batch_axes)

    def change(value: Any) -> Any:
        axis = next(axes) if isinstance(value, Tensor) else None
        if axis is None:
            return value
        longer = torch.cat([value.flip(axis), value.narrow(axis, 0, 1)], axis)
        return longer * 0.9 + 0.05 if value.is_floating_point() else longer

    leaves, structure = pytree.tree_flatten(captured.example)
    return pytree.tree_unflatten([change(leaf) for leaf in leaves], structure)  # type: ignore[no-any-return]


def _size(arguments: Any) -> int:
    return next(
        (int(v.shape[0]) for v in pytree.tree_leaves(arguments) if isinstance(v, Tensor) and v.dim()), 1
    )
