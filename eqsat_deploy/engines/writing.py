"""Tensors that an engine is to compute, on which torch functions write its operators.

An engine has a table of `Functions`. Calls run on `Written` tensors, each of which adds operators; what the table does
not have, or is called in a way that it does not know, raises `Unwritten`: nothing is guessed, `writer` has the node
exported by itself, which takes a hundred times as long.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from eqsat_deploy.language.shapes import BATCH

FREE = -1
"""A size that is not known: the batch, or a multiple of it. A reshape infers it; nothing may be computed with it."""


class Unwritten(Exception):
    """A function, or a way to call one, that nothing writes."""


class Functions(dict[Any, Callable[..., Any]]):
    """What writes each torch function, by the function, and by the name of the tensor's method.

    A body has the function's parameters, and returns an operator of the engine, a list of them, or a number.

    Args:
        result: the value of an operator that `Written` holds.
        shape: the sizes of such a value, `FREE` where one is not known; None where the engine does not tell, so that
            torch has to, which takes a millisecond a call.
        dtype: likewise, its dtype.
    """

    def __init__(
        self,
        result: Callable[[Any], Any],
        shape: Callable[[Any], tuple[int, ...]] | None = None,
        dtype: Callable[[Any], torch.dtype] | None = None,
    ) -> None:
        super().__init__()
        self.result, self.shape, self.dtype = result, shape, dtype

    def writes(self, *functions: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Register what writes these functions, or methods by their names."""

        def register(body: Callable[..., Any]) -> Callable[..., Any]:
            self.update(dict.fromkeys(functions, body))
            return body

        return register

    def write(self, function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """The result of a torch function, or of the method of that name, on what is written."""
        known = self.get(function)
        if known is None:
            raise Unwritten(f"{function}")
        try:
            made = known(*args, **kwargs)
        except (TypeError, RuntimeError) as error:  # other arguments than it knows
            raise Unwritten(f"{function}: {error}") from error
        if isinstance(made, Written | int | torch.dtype):
            return made
        call = _Call(function, tuple(args), kwargs)
        if isinstance(made, list):
            return tuple(self._written(part, replace(call, part=i)) for i, part in enumerate(made))
        return self._written(made, call)

    def _written(self, made: Any, call: _Call) -> Written:
        found = Written(self, self.result(made), call)
        if self.shape is None and found.like is None:
            raise Unwritten(f"{call.function}: torch does not compute that")
        return found


@dataclass(frozen=True)
class _Call:
    """What a tensor is the result of, or one of the results."""

    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    part: int | None = None

    @property
    def operands(self) -> list[Written]:
        return [value for value in pytree.tree_leaves((self.args, self.kwargs)) if isinstance(value, Written)]


@dataclass(eq=False)
class Written:
    """A tensor that an engine is to compute: torch functions on it write more of the model.

    Attributes:
        functions: of the engine.
        value: the engine's.
        known: what `like` is, or the call that tells it.
    """

    functions: Functions
    value: Any
    known: Any

    @property
    def like(self) -> Any:
        """A tensor without values, whose shape has `BATCH` for the batch; the number itself of a size; None where torch
        refuses."""
        pending = [self]
        while pending:
            call = pending[-1].known
            if not isinstance(call, _Call):
                pending.pop()
            elif waiting := [operand for operand in call.operands if isinstance(operand.known, _Call)]:
                pending += waiting
            else:
                pending.pop().known = _like(call)
        return self.known

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes, `FREE` where one is not known."""
        if self.functions.shape is not None:
            return self.functions.shape(self.value)
        return tuple(map(size_of, self.like.shape)) if isinstance(self.like, Tensor) else (1,)

    @property
    def is_readable(self) -> bool:
        """Whether it is a tensor whose sizes are known, or multiples of the batch."""
        return isinstance(self.like, Tensor) and not any(map(comes_of_batch, self.like.shape))

    @property
    def dtype(self) -> torch.dtype:
        """Its dtype."""
        if self.functions.dtype is not None:
            return self.functions.dtype(self.value)
        return self.like.dtype if isinstance(self.like, Tensor) else torch.int64

    def dim(self) -> int:
        """How many axes it has."""
        return len(self.shape)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = next(v for v in pytree.tree_leaves((args, kwargs)) if isinstance(v, Written))
        return given.functions.write(function, args, kwargs or {})

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name not in self.functions:
            raise Unwritten(f"{name} of a tensor")
        return lambda *args, **kwargs: self.functions.write(name, (self, *args), kwargs)

    def __add__(self, other: Any) -> Any:
        return self.functions.write(operator.add, (self, other), {})

    def __sub__(self, other: Any) -> Any:
        return self.functions.write(operator.sub, (self, other), {})

    def __mul__(self, other: Any) -> Any:
        return self.functions.write(operator.mul, (self, other), {})


def _like(call: _Call) -> Any:
    """What a function returns, or the method of that name, of tensors without values; None where torch refuses."""

    def bare(value: Any) -> Any:
        if isinstance(value, Written):
            return value.like
        return value.to("meta") if isinstance(value, Tensor) else value

    args, kwargs = pytree.tree_map(bare, (call.args, call.kwargs))
    function = getattr(args[0], call.function) if isinstance(call.function, str) else call.function
    try:
        found = function(*(args[1:] if isinstance(call.function, str) else args), **kwargs)
    except (TypeError, RuntimeError):
        return None
    return found if call.part is None else found[call.part]


def size_of(size: int) -> int:
    """A size as `FREE` where it is the batch, or a multiple of it."""
    if comes_of_batch(size):
        raise Unwritten("a size that comes of the batch's")
    return FREE if size and size % BATCH == 0 else size


def comes_of_batch(size: int) -> bool:
    """Whether it is no multiple of it: half of the batch, or one more, is great, too."""
    return size > BATCH // 64 and size % BATCH != 0


# -- for bodies --------------------------------------------------------------------------------------------------------


def listed(values: Sequence[Any]) -> Sequence[Any]:
    """What may be given as one sequence or one by one."""
    return values[0] if len(values) == 1 and isinstance(values[0], list | tuple | torch.Size) else values


def spread(value: Any, axes: int) -> list[int]:
    """A window's size along as many axes."""
    if isinstance(value, str):
        raise Unwritten(f"padding {value!r}")
    return [value] * axes if isinstance(value, int) else list(value) * (axes if len(value) == 1 else 1)


def pair(value: Any) -> list[int]:
    """A window's size along both axes of an image."""
    return spread(value, 2)


def axes_of(x: Written, dims: Any) -> list[int]:
    """One axis, or several, from the front."""
    return [axis_of(x, dim) for dim in ([dims] if isinstance(dims, int) else dims)]


def exchanged(x: Written, dim0: int, dim1: int) -> list[int]:
    """The order of the axes with two of them in each other's place."""
    order = list(range(x.dim()))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return order


def flat(x: Written, start: int, end: int) -> list[int]:
    """The sizes with the axes from `start` to `end` joined."""
    first, last, shape = axis_of(x, start), axis_of(x, end), x.shape
    middle = shape[first : last + 1]
    return [*shape[:first], FREE if FREE in middle else math.prod(middle), *shape[last + 1 :]]


def widths(x: Written, pad: Sequence[int]) -> tuple[list[int], list[int]]:
    """What padding adds before and after each axis."""
    before, after = [0] * x.dim(), [0] * x.dim()
    for place, width in enumerate(pad):
        (after if place % 2 else before)[-1 - place // 2] = width
    return before, after


def with_one_free(sizes: Sequence[Any]) -> list[Any]:
    """The sizes of a reshape, which can infer one."""
    if sum(size == FREE for size in sizes if isinstance(size, int)) > 1:
        raise Unwritten("a reshape to more than one size that is not known")
    return list(sizes)


def index_of(index: Any) -> tuple[int, Any]:
    """The axis and the integers of `x[:, :, integers]`."""
    if not isinstance(index, tuple) or not index:
        raise Unwritten("an index")
    *before, integers = index
    whole = all(isinstance(part, slice) and part == slice(None) for part in before)
    refuse(not whole, getattr(integers, "dtype", None) not in (torch.int64, torch.int32))
    return len(before), integers


def axis_of(x: Written, dim: int) -> int:
    """`dim` from the front."""
    return dim % x.dim()


def refuse(*unusual: Any) -> None:
    """Only for calls in which these are absent, 0 or False."""
    if any(unusual):
        raise Unwritten(f"an argument {unusual}")


def is_float(*values: Any) -> None:
    """Only for tensors of float32."""
    for value in values:
        if isinstance(value, Written) and value.dtype != torch.float32:
            raise Unwritten(f"a function of {value.dtype}")


def alike(*values: Any) -> list[Any]:
    """Tensors and numbers in the dtype that a function of them computes in; only where what is written has it."""
    dtype = torch.result_type(*map(_typed, values))

    def cast(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(dtype)
        if isinstance(value, int | float):
            return torch.tensor(value, dtype=dtype)
        if not isinstance(value, Written) or value.dtype != dtype:
            raise Unwritten(f"a function of {dtype} on {getattr(value, 'dtype', type(value))}")
        return value

    return list(map(cast, values))


def _typed(value: Any) -> Any:
    """What torch finds dtypes of."""
    return torch.empty([1] * value.dim(), dtype=value.dtype) if isinstance(value, Written) else value
