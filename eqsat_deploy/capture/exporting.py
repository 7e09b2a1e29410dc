"""`torch.export`, without its noise, and with errors that say which line of the model stopped it."""

from __future__ import annotations

import contextlib
import io
import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

from eqsat_deploy.calling import Arguments, plain_signature
from eqsat_deploy.capture.copying import describe, described_line, model_line, quiet
from eqsat_deploy.errors import CaptureError, InputError


def exported(module: nn.Module, arguments: Arguments, dynamic_shapes: Any) -> ExportedProgram:
    """`module` through `torch.export`, the batch on axis 0 of every input unless `dynamic_shapes` says otherwise.

    Raises:
        CaptureError: it cannot be exported; the message names the line of the model.
        InputError: `dynamic_shapes` do not fit the arguments.
    """
    args, kwargs = arguments
    shapes = _batch_first(module, arguments) if dynamic_shapes is None else dynamic_shapes
    try:
        with torch.no_grad(), silent():
            return export(module, args, kwargs, dynamic_shapes=shapes, strict=False)
    except Exception as error:
        message = str(error).strip()
        name = type(module).__name__
        if "Constraints violated" in message:
            line = _fixing_line(module, arguments) if dynamic_shapes is None else ""
            raise CaptureError(
                f"{name} fixes a size that must be free: {_constraint(message)}{line}. Read sizes from the tensor "
                "(x.shape[0], or -1 in a reshape) in place of a number, and do not branch on them."
            ) from error
        if dynamic_shapes is not None and "dynamic_shapes" in message:
            raise InputError(
                f"dynamic_shapes do not fit the example inputs ({describe(args, kwargs)}): {message.splitlines()[0]}"
            ) from error
        raise CaptureError(
            f"torch.export cannot export {name}: {_reason(error, message)}{model_line(error)}. Make that line "
            "independent of tensor values, or move it out of forward."
        ) from error


def _batch_first(module: nn.Module, arguments: Arguments) -> dict[str, Any]:
    """By argument, as forward binds them: *args is one, a tuple."""
    dimension = Dim("batch")

    def batch(value: Any) -> Any:
        return {0: dimension} if isinstance(value, Tensor) and value.dim() else None

    args, kwargs = pytree.tree_map(batch, arguments)
    return dict(plain_signature(module.forward).bind(*args, **kwargs).arguments)


def _reason(error: Exception, message: str) -> str:
    first = message.splitlines()[0] if message else ""
    if "data-dependent" in first:
        return "its control flow depends on the values of a tensor"
    return f"{type(error).__name__}: {first}"


def _constraint(message: str) -> str:
    """torch's sentence on the constraint, without its advice on markers that nobody has set."""
    lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
    found = next((line for line in lines[1:] if line), lines[0])
    return found.partition(". If you're")[0].replace(
        "You marked batch as dynamic but your code", "the batch is free, but the code"
    )


def _fixing_line(module: nn.Module, arguments: Arguments) -> str:
    """Which line makes the batch a number, in words; nothing where it cannot be told.

    The model runs once more on fake tensors, in a shape environment that notes where a symbol gets a value.
    """
    # Here, and not above: they import sympy, which takes longer than everything else of this package together.
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

    lines: list[str] = []

    class Noting(ShapeEnv):
        def _set_replacement(self, *args: Any, **kwargs: Any) -> None:
            lines.append(described_line(traceback.extract_stack()))
            super()._set_replacement(*args, **kwargs)

    mode = FakeTensorMode(shape_env=Noting(), allow_non_fake_inputs=True)

    def fake(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        sizes = [DimDynamic.DYNAMIC, *[DimDynamic.STATIC] * value.dim()][: value.dim()]
        return mode.from_tensor(value, symbolic_context=StatelessSymbolicContext(dynamic_sizes=sizes))

    with contextlib.suppress(Exception), torch.no_grad(), silent(), mode:
        args, kwargs = pytree.tree_map(fake, arguments)
        module(*args, **kwargs)
    return next(filter(None, lines), "")


@contextmanager
def silent() -> Iterator[None]:
    """Inside, torch neither warns, logs nor prints its graphs to standard error."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with quiet(), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(disabled)
