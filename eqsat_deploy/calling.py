"""How a model is called, in its own structure: by position or by name, nested, with arguments that are no tensors.

The graph of a rebuilt module takes the tensors alone, flat; a `CallSpec` is what turns a call of the model into them,
for the module, for calibration and for engines.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from eqsat_deploy.errors import InputError

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class InputSpec:
    """One tensor that a rebuilt module takes. `shape` has None where the batch stands; `dtype` is torch's."""

    name: str
    shape: tuple[int | None, ...]
    dtype: torch.dtype

    def check(self, value: object) -> Tensor:
        """`value`, if it is a tensor of this shape and of this kind of dtype.

        Raises:
            InputError: it is not; the message says which sizes are fixed.
        """
        if not isinstance(value, Tensor):
            raise InputError(f"input {self.name!r}: a tensor is expected, not {_shown(value)}")
        fits = len(value.shape) == len(self.shape) and all(
            expected is None or isinstance(size, torch.SymInt) or expected == size
            for expected, size in zip(self.shape, value.shape, strict=True)
        )
        if not fits:
            wanted = ", ".join("batch" if size is None else str(size) for size in self.shape)
            raise InputError(
                f"input {self.name!r}: shape [{wanted}] is expected, not {list(value.shape)}. Sizes beside the batch "
                "are those of the example inputs; for others, optimize again with example_inputs= of that size"
            )
        if value.dtype != self.dtype and value.dtype.is_floating_point != self.dtype.is_floating_point:
            raise InputError(f"input {self.name!r}: {self.dtype} is expected, not {value.dtype}")
        return value


@dataclass(frozen=True)
class Fixed:
    """An argument, or a part of one, that is no tensor: the module computes for this value and no other."""

    name: str
    value: Any

    def check(self, value: object) -> None:
        """Raises `InputError` where `value` is another one."""
        if not same_value(self.value, value):
            raise InputError(
                f"argument {self.name!r}: the module was specialized to {_shown(self.value)}, not {_shown(value)}; for "
                "another value, optimize the model again with example_inputs= that have it"
            )


@dataclass(frozen=True)
class Argument:
    """One parameter of `forward`: how what it is given is nested, and every leaf of that in order."""

    name: str
    structure: pytree.TreeSpec
    leaves: tuple[InputSpec | Fixed, ...]

    def tensors(self, value: Any) -> Iterator[Tensor]:
        """The tensors in `value`, checked; `InputError` where it is nested otherwise or a leaf does not fit."""
        try:
            found = self.structure.flatten_up_to(value)
        except ValueError as error:
            raise InputError(
                f"argument {self.name!r}: it is nested otherwise than in the example inputs "
                f"({str(error).strip().splitlines()[0]})"
            ) from error
        for leaf, part in zip(self.leaves, found, strict=True):
            if isinstance(leaf, Fixed):
                leaf.check(part)
            else:
                yield leaf.check(part)


@dataclass(frozen=True)
class CallSpec:
    """How a model is called: its parameters with their defaults, what each is given, and how results are nested."""

    signature: inspect.Signature
    arguments: tuple[Argument, ...]
    outputs: pytree.TreeSpec

    @classmethod
    def of(
        cls, signature: inspect.Signature, arguments: Arguments, outputs: pytree.TreeSpec,
        leaves: Iterator[InputSpec | Fixed],
    ) -> Self:  # fmt: skip
        """The spec of calls like `arguments`, whose leaves are `leaves`; parameters not given have their defaults."""
        args, kwargs = arguments
        bound = signature.bind(*args, **kwargs)
        given = set(bound.arguments)
        bound.apply_defaults()
        found = []
        for name, value in bound.arguments.items():
            flat, structure = pytree.tree_flatten(value)
            own = [next(leaves) if name in given else Fixed(name, part) for part in flat]
            found.append(Argument(name, structure, tuple(own)))
        return cls(plain_signature(signature), tuple(found), outputs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # nothing in it changes

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled with examples of its structures: torch warns of copies of the structures themselves."""
        arguments = [(a.name, _example_of(a.structure), a.leaves) for a in self.arguments]
        return _restored, (self.signature, arguments, _example_of(self.outputs))

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """The tensors that a rebuilt module takes, in order."""
        return tuple(
            leaf for argument in self.arguments for leaf in argument.leaves if isinstance(leaf, InputSpec)
        )

    def flatten(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, ...]:
        """The tensors of a call, in the order of `inputs`.

        Raises:
            InputError: a tensor, a value or the nesting does not fit; the message names the argument.
            TypeError: Python's own, where the arguments are not those of the model's forward.
        """
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return tuple(
            tensor
            for argument in self.arguments
            for tensor in argument.tensors(bound.arguments[argument.name])
        )

    def flatten_batch(self, batch: Any) -> tuple[Tensor, ...]:
        """The tensors of a batch that is given as example inputs are: a tensor, a tuple of arguments or a dict.

        Raises:
            InputError: it does not fit.
        """
        args, kwargs = arguments(batch)
        try:
            return self.flatten(args, kwargs)
        except TypeError as error:
            raise InputError(
                f"the batch does not fit the model's forward{self.signature}: {error}"
            ) from error

    def batch(self, tensors: Iterable[Tensor]) -> Any:
        """Tensors in the order of `inputs` as a batch in the model's own structure, fixed values among them."""
        rest = iter(tensors)
        values: OrderedDict[str, Any] = OrderedDict()
        for argument in self.arguments:
            leaves = [leaf.value if isinstance(leaf, Fixed) else next(rest) for leaf in argument.leaves]
            value = pytree.tree_unflatten(leaves, argument.structure)
            if not same_value(value, self.signature.parameters[argument.name].default):
                values[argument.name] = value
        bound = inspect.BoundArguments(self.signature, values)
        by_name = dict(zip(self.signature.parameters, bound.args, strict=False)) | bound.kwargs
        return by_name if bound.kwargs else bound.args

    def pack(self, result: Any) -> Any:
        """A rebuilt module's result, of plain containers, nested as the model's: dataclasses and named tuples too."""
        return pytree.tree_unflatten(pytree.tree_leaves(result), self.outputs)


def _example_of(structure: pytree.TreeSpec) -> Any:
    return pytree.tree_unflatten([0] * structure.num_leaves, structure)


def _restored(signature: inspect.Signature, arguments: list[Any], outputs: Any) -> CallSpec:
    found = tuple(Argument(name, pytree.tree_structure(value), leaves) for name, value, leaves in arguments)
    return CallSpec(signature, found, pytree.tree_structure(outputs))


def arguments(given: Any) -> Arguments:
    """Positional and keyword arguments out of a tensor, a tuple or list of arguments, or a dict of them by name.

    Raises:
        InputError: `given` is none of these.
    """
    match given:
        case Tensor():
            return (given,), {}
        case Mapping() if all(isinstance(name, str) for name in given):
            return (), dict(given)
        case tuple() | list():
            return tuple(given), {}
    raise InputError(
        "example_inputs must be a tensor, a tuple of arguments or a dict of keyword arguments, "
        f"not {type(given).__name__}"
    )


def plain_signature(function: inspect.Signature | Callable[..., Any]) -> inspect.Signature:
    """A signature without annotations, which may be anything and need not pickle."""
    signature = function if isinstance(function, inspect.Signature) else inspect.signature(function)
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    return inspect.Signature(bare)


def plain_structure(outputs: pytree.TreeSpec, leaves: Iterator[Any]) -> Any:
    """`leaves` nested as `outputs` says in containers that a graph can return: dicts by name, lists and tuples."""
    if outputs.is_leaf():
        return next(leaves)
    parts = [plain_structure(child, leaves) for child in outputs.children()]
    if isinstance(outputs.type, type) and issubclass(outputs.type, list):
        return parts
    names = outputs.context
    if isinstance(outputs.type, type) and issubclass(outputs.type, dict):
        return dict(zip(names, parts, strict=True))
    return tuple(parts)


def same_value(a: Any, b: Any) -> bool:
    """Whether two arguments say the same: equal numbers, or values of one type that are equal."""
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (a, b))
    if not numbers and type(a) is not type(b):
        return False
    return a is b or bool(a == b) or bool(numbers and a != a and b != b)


def _shown(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor of shape {list(value.shape)}"
    text = repr(value)
    return text if len(text) < 80 else f"a {type(value).__name__}"
