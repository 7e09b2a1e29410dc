"""Verification: the rebuilt module computes what the original computes, or an error says by how much it does not."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn

from eqsat_deploy.calling import Arguments
from eqsat_deploy.capture import Captured
from eqsat_deploy.capture.functional import argument, schema_of
from eqsat_deploy.errors import VerificationError
from eqsat_extraction.cautions import caution

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 4e-2, torch.float16: 5e-3}
ROUNDING_FACTOR = 10.0
SWITCHES = frozenset({"train", "training", "dropout_p"})  # where these are false or zero, no number is drawn
UNSTABLE = 0.1  # a verification that lets outputs differ by more shows little


@dataclass(frozen=True)
class Verified:
    """The largest relative error per batch size, the largest tolerance that an output was allowed, and `notes` on
    what the comparison does not show."""

    errors: dict[int, float]
    tolerance: float
    notes: tuple[str, ...] = ()

    @property
    def error(self) -> float:
        """The largest relative error."""
        return max(self.errors.values(), default=0.0)


def verify(captured: Captured, rebuilt: nn.Module) -> Verified:
    """Compare outputs on the example inputs and at a second batch size.

    Per output, max|a - b| <= r * max|a|, with r by its dtype (1e-4 for float32, 0 for integers). Where that fails,
    float64 decides: the original's own rounding error, times ten, is allowed, if that is finite. Random operators draw
    from one seed in both. Warns where the comparison shows little or nothing.

    Raises:
        VerificationError: they differ; the message names the output, the batch size and the error.
    """
    errors: dict[int, float] = {}
    tolerance = 0.0
    seen: list[Tensor] = []
    random = random_calls(captured.graph)
    for arguments in (captured.example, _other_batch(captured)):
        expected, actual = _run(captured.module, arguments), _run(rebuilt, arguments)
        if len(expected) != len(actual):
            raise VerificationError(f"{len(actual)} outputs instead of {len(expected)}")
        found = relative_errors(expected, actual)
        allowed = [TOLERANCE.get(o.dtype, 0.0) for o in expected]
        if not _within(found, allowed):
            if random:
                return _warned(Verified({}, 0.0, (_not_compared(random),)))
            _check_repeatable(captured, arguments, expected, allowed)
            rounding = _rounding(captured, arguments, expected)
            allowed = [max(a, ROUNDING_FACTOR * r) for a, r in zip(allowed, rounding, strict=True)]
        if not _within(found, allowed):
            worst = max(
                range(len(found)), key=lambda i: found[i] - allowed[i] if found[i] > allowed[i] else -1.0
            )
            raise VerificationError(
                f"output {worst} differs by {found[worst]:.3g} of its largest value at batch {_size(arguments)} "
                f"(allowed {allowed[worst]:.3g}): a rule or the rebuild is wrong for this model. check_egraph(model) "
                "names the rule; optimize(..., rules=...) without it gives a correct module."
            )
        errors[_size(arguments)] = max(found, default=0.0)
        tolerance = max([tolerance, *allowed])
        seen += expected
    return _warned(Verified(errors, tolerance, tuple(_notes(seen, tolerance))))


def relative_error(expected: Sequence[Tensor], actual: Sequence[Tensor]) -> float:
    """The largest of `relative_errors`, 0 where there is no output."""
    return max(relative_errors(expected, actual), default=0.0)


def relative_errors(expected: Sequence[Tensor], actual: Sequence[Tensor]) -> list[float]:
    """max|a - b| / max|a| per output; infinite where shapes, dtypes or non-finite values differ."""
    return [_relative_error(a, b) for a, b in zip(expected, actual, strict=True)]


def _relative_error(a: Tensor, b: Tensor) -> float:
    if a.shape != b.shape or a.dtype != b.dtype:
        return math.inf
    a, b = _real(a), _real(b)
    finite = torch.isfinite(a)
    if not torch.equal(finite, torch.isfinite(b)) or not torch.equal(
        a[~finite].nan_to_num(), b[~finite].nan_to_num()
    ):
        return math.inf
    difference = float((a - b)[finite].abs().max()) if finite.any() else 0.0
    scale = float(a[finite].abs().max()) if finite.any() else 0.0
    return difference / scale if scale else (math.inf if difference else 0.0)


def random_calls(graph: fx.Graph) -> list[str]:
    """Nodes that draw random numbers, with what they call; a dropout that is switched off draws none."""
    return [f"{node.name} ({node.target})" for node in graph.nodes if _draws(node)]


def _draws(node: fx.Node) -> bool:
    if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
        return False
    names = {declared.name for declared in schema_of(node.target).arguments}
    return all(argument(node, name) for name in SWITCHES & names)


def _within(errors: Sequence[float], allowed: Sequence[float]) -> bool:
    return all(error <= bound for error, bound in zip(errors, allowed, strict=True))


def _not_compared(random: list[str]) -> str:
    return (
        f"the verification shows nothing: {', '.join(random)} draw random numbers, in another order than in the model. "
        "Take them out of forward, or pass their values as an input"
    )


def _check_repeatable(
    captured: Captured, arguments: Arguments, expected: list[Tensor], allowed: list[float]
) -> None:
    again = relative_errors(expected, _run(captured.module, arguments))
    if not _within(again, allowed):
        raise VerificationError(
            f"output {again.index(max(again))} of the model itself differs by {max(again):.3g} of its largest value "
            "from one call to the next, so nothing can be verified: its forward reads what changes beside its arguments"
        )


def _notes(outputs: list[Tensor], tolerance: float) -> Iterator[str]:
    """What the comparison of these outputs does not show."""
    values = [_real(o) for o in outputs if o.numel()]
    wrong = sum(int((~torch.isfinite(v)).sum()) for v in values)
    if not any(bool(v[torch.isfinite(v)].any()) for v in values):
        what = "NaN or infinite" if wrong else "zero"
        yield (
            f"all outputs compared were {what}, so the verification shows nothing; use trained parameters and inputs "
            "like those of the application"
        )
    elif wrong:
        yield (
            f"{wrong} of {sum(v.numel() for v in values)} output values compared were NaN or infinite, in the original "
            "too; of these the verification shows only where they are"
        )
    if tolerance > UNSTABLE:
        yield (
            f"the model's own rounding error lets outputs differ by {tolerance:.2g} of their largest value, so the "
            "verification shows little; optimize model.double() to see whether the form is right"
        )


def _warned(verified: Verified) -> Verified:
    for note in verified.notes:
        caution(note)
    return verified


def _real(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return torch.view_as_real(tensor).double() if tensor.is_complex() else tensor.double()


def _run(module: Callable[..., Any], arguments: Arguments) -> list[Tensor]:
    args, kwargs = copy.deepcopy(arguments)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        leaves = pytree.tree_leaves(module(*args, **kwargs))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def _rounding(captured: Captured, arguments: Arguments, expected: list[Tensor]) -> list[float]:
    """The original's own rounding error per output: its outputs against those it computes in float64. None, where that
    is not finite: then it says nothing."""
    try:
        double = copy.deepcopy(captured.module).double()
        exact = _run(double, pytree.tree_map(_double, arguments))
        errors = relative_errors([e.double() for e in exact], [e.double() for e in expected])
    except (RuntimeError, ValueError):  # the model mixes in tensors of a fixed dtype
        return [0.0] * len(expected)
    return [error if math.isfinite(error) else 0.0 for error in errors]


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _other_batch(captured: Captured) -> Arguments:
    """The example inputs one sample longer, in another order; floats moved a little, each sample otherwise."""
    axes = iter(captured.batch_axes)

    def change(value: Any) -> Any:
        axis = next(axes) if isinstance(value, Tensor) else None
        if axis is None:
            return value
        longer = torch.cat([value.flip(axis), value.narrow(axis, 0, 1)], axis)
        if not value.is_floating_point():
            return longer
        count = longer.shape[axis]
        factors = torch.linspace(0.9, 1.0, count, dtype=torch.float64).to(value.device, value.dtype)
        return longer * factors.reshape([-1 if i == axis else 1 for i in range(value.dim())]) + 0.05

    leaves, structure = pytree.tree_flatten(captured.example)
    return pytree.tree_unflatten([change(leaf) for leaf in leaves], structure)  # type: ignore[no-any-return]


def _size(arguments: Arguments) -> int:
    return next(
        (int(v.shape[0]) for v in pytree.tree_leaves(arguments) if isinstance(v, Tensor) and v.dim()), 1
    )
