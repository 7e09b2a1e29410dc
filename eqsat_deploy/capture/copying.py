"""Running somebody else's model without changing it: on a copy, whose parameters must not be written to."""

from __future__ import annotations

import copy
import traceback
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils._python_dispatch import TorchDispatchMode

from eqsat_deploy.errors import CaptureError, InputError

CPU = torch.device("cpu")
CHANGES = (
    "only models whose forward leaves parameters, buffers and inputs alone can be optimized. Compute the new value "
    "out of place, and take state as an argument and return it"
)


def check_model(model: object) -> None:
    """Check that `model` is one: a module with values, not compiled to TorchScript, or an exported program.

    Raises:
        InputError: it is not; the message says what to pass.
    """
    if isinstance(model, ExportedProgram):
        return
    if isinstance(model, type) and issubclass(model, nn.Module):
        raise InputError(
            f"model: the class {model.__name__} is given, not an instance: {model.__name__}(...)"
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError(
            "model: a ScriptModule has no Python source to trace; pass the nn.Module it was made from"
        )
    if not isinstance(model, nn.Module):
        raise InputError(
            f"model: an nn.Module, fx.GraphModule or ExportedProgram is expected, not {type(model).__name__}"
        )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if nn.parameter.is_lazy(tensor):
            raise InputError(f"model: {name!r} has no shape yet; call the model once before it is optimized")
        if tensor.is_meta:
            raise InputError(
                f"model: {name!r} is on the meta device and has no values; load_state_dict(..., assign=True) gives it "
                "some"
            )


def shared_copy(model: nn.Module) -> nn.Module:
    """A copy of the module tree on the CPU, where a kernel takes every batch, that shares every parameter with `model`
    that is there; buffers are copied, since forward may write to them.

    Raises:
        CaptureError: something in it cannot be copied.
    """
    memo: dict[int, Any] = {id(p): p if p.device == CPU else _parameter(p) for p in model.parameters()}
    memo |= {id(b): b.detach().cpu() for b in model.buffers() if b.device != CPU}
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not (value.is_leaf and value.device == CPU):
                # as torch.nn.utils.weight_norm leaves behind, or as is neither a parameter nor a buffer
                memo[id(value)] = value.detach().clone().cpu()
            elif isinstance(value, torch.device):
                memo[id(value)] = CPU
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:  # whatever an attribute of somebody else's model raises
        raise CaptureError(
            f"{type(model).__name__} cannot be copied, and it is a copy that is traced: {type(error).__name__}: "
            f"{error}. Move what cannot be copied (locks, files, generators) out of the model."
        ) from error


def _parameter(given: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(given.detach().cpu(), requires_grad=given.requires_grad)


def run(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """What `module` returns for copies of the arguments; buffers of `module` may change, parameters may not.

    Raises:
        CaptureError: it writes to a parameter, which is still as it was.
        InputError: it does not run on these arguments.
    """
    args, kwargs = pytree.tree_map(_fresh, (args, dict(kwargs)))
    try:
        with torch.no_grad(), quiet(), _Unwritten(module.named_parameters()):
            return module(*args, **kwargs)
    except _WriteError as error:
        raise CaptureError(
            f"the model changes parameter {error.name!r} when it runs{model_line(error)}; {CHANGES}"
        ) from error
    except Exception as error:
        raise InputError(
            f"the model does not run on the example inputs ({describe(args, kwargs)}): {type(error).__name__}: {error}"
            f"{model_line(error)}. {_remedy(error)}"
        ) from error


def _remedy(error: Exception) -> str:
    if "same device" in str(error):
        return "It is traced on the CPU: take the device from a tensor (x.device) where forward names one."
    return "Pass example_inputs= that its forward accepts."


def _fresh(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)


class _WriteError(Exception):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class _Unwritten(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside, an operator that would write to the memory of one of the named tensors raises instead."""

    def __init__(self, named: Iterable[tuple[str, Tensor]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: dict[int | None, str] = {
            memory: name for name, tensor in named if (memory := _memory(tensor)) is not None
        }

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | (kwargs or {})
        for argument in func._schema.arguments:
            if argument.is_write:
                for tensor in pytree.tree_leaves(given.get(argument.name)):
                    if isinstance(tensor, Tensor) and (name := self.names.get(_memory(tensor))) is not None:
                        raise _WriteError(name)
        return func(*args, **(kwargs or {}))


def _memory(tensor: Tensor) -> int | None:
    """The address of what a tensor is a view of; None where it has no memory of its own (sparse, empty)."""
    return tensor.untyped_storage().data_ptr() or None if tensor.layout == torch.strided else None


def model_line(error: BaseException) -> str:
    """Where in the model's own source the error arose: the innermost frame outside torch and this package."""
    return described_line(traceback.extract_tb(error.__traceback__))


def described_line(frames: Iterable[traceback.FrameSummary]) -> str:
    """The innermost frame of somebody else's code, if it is in a `forward` or called by one, in words."""
    foreign = [
        f for f in frames
        if not f.filename.startswith("<") and "/torch/" not in f.filename and "/eqsat_deploy/" not in f.filename
    ]  # fmt: skip
    if not any(f.name == "forward" for f in foreign):
        return ""
    return f" (at {foreign[-1].filename}:{foreign[-1].lineno}, in {foreign[-1].name}: {foreign[-1].line})"


def describe(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """Dtypes and shapes of the tensors among arguments, and the other values."""
    return ", ".join(
        f"{str(v.dtype).removeprefix('torch.')}{list(v.shape)}" if isinstance(v, Tensor) else repr(v)
        for v in pytree.tree_leaves((args, dict(kwargs)))
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, no warning is shown."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
