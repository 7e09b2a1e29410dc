"""How a model is called, in its own structure: by position or by name, nested, with arguments that are no tensors.

The graph of a rebuilt module takes the tensors alone, flat; a `CallSpec` is what turns a call of the model into them,
for the module, for calibration and for engines.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
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

    @property
    def batch_axis(self) -> int | None:
        """Where samples are counted; None where all samples share the tensor."""
        return next((axis for axis, size in enumerate(self.shape) if size is None), None)

    def __str__(self) -> str:
        return f"{self.name} {self._wanted()} {str(self.dtype).removeprefix('torch.')}"

    def _wanted(self) -> str:
        return f"[{', '.join('batch' if size is None else str(size) for size in self.shape)}]"

    def check(self, value: object) -> Tensor:
        """`value`, if it is a tensor of this shape and of this kind of dtype, or an array as such a tensor.

        Raises:
            InputError: it is not; the message says which sizes are fixed.
        """
        if isinstance(value, np.ndarray):
            value = tensor_of(value)
        if not isinstance(value, Tensor):
            raise InputError(f"input {self.name!r}: a tensor is expected, not {_shown(value)}: {self}")
        fits = len(value.shape) == len(self.shape) and all(
            expected is None or isinstance(size, torch.SymInt) or expected == size
            for expected, size in zip(self.shape, value.shape, strict=True)
        )
        if not fits:
            raise InputError(
                f"input {self.name!r}: shape {self._wanted()} is expected, not {list(value.shape)}. Sizes beside the "
                "batch are those of the example inputs; for others, optimize again with example_inputs= of that size"
            )
        if value.dtype != self.dtype and value.dtype.is_floating_point != self.dtype.is_floating_point:
            raise InputError(f"input {self.name!r}: {self.dtype} is expected, not {value.dtype}")
        if value.layout != torch.strided or value.device.type == "meta":
            kind = "one on the meta device" if value.device.type == "meta" else str(value.layout)
            raise InputError(f"input {self.name!r}: a dense tensor with values is expected, not {kind}")
        return value


@dataclass(frozen=True)
class Fixed:
    """An argument, or a part of one, that is no tensor: the module computes for this value and no other."""

    name: str
    value: Any

    def __str__(self) -> str:
        return f"{self.name}={_shown(self.value)}"

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

    @classmethod
    def plain(cls, inputs: Sequence[InputSpec], outputs: Any) -> Self:
        """The spec of a graph that takes `inputs` one by one and returns what is nested as `outputs`."""
        parameters = [inspect.Parameter(s.name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for s in inputs]
        leaf = pytree.tree_structure(0)
        found = tuple(Argument(spec.name, leaf, (spec,)) for spec in inputs)
        return cls(inspect.Signature(parameters), found, pytree.tree_structure(outputs))

    def __repr__(self) -> str:
        return f"CallSpec({self})"

    def __str__(self) -> str:
        """Every tensor and every fixed value, in order."""
        leaves = [leaf for argument in self.arguments for leaf in argument.leaves]
        return ", ".join(map(str, leaves))

    @cached_property
    def inputs(self) -> tuple[InputSpec, ...]:
        """The tensors that a rebuilt module takes, in order."""
        return tuple(
            leaf for argument in self.arguments for leaf in argument.leaves if isinstance(leaf, InputSpec)
        )

    def flatten(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, ...]:
        """The tensors of a call, in the order of `inputs`.

        Raises:
            InputError: the arguments are not those of the model's forward, or a tensor, a value or the nesting does
                not fit; the message names the argument, or says what is expected.
        """
        try:
            bound = self.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise InputError(f"{error}: call it as forward{self.signature}, with {self}") from error
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
        return self.flatten(*arguments(batch, "the batch"))

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


def batch_size(inputs: Sequence[InputSpec], tensors: Sequence[Tensor]) -> int | None:
    """The batch size of `tensors`, which are for `inputs`; None where none of these has a batch axis.

    Raises:
        InputError: their number, a shape or a dtype does not fit, or they disagree on the batch size.
    """
    if len(tensors) != len(inputs):
        raise InputError(
            f"{len(tensors)} inputs given, {len(inputs)} expected: {', '.join(map(str, inputs))}"
        )
    sizes: dict[int, str] = {}
    for spec, value in zip(inputs, tensors, strict=True):
        if spec.check(value).dtype != spec.dtype:
            raise InputError(f"input {spec.name!r}: {spec.dtype} is expected, not {value.dtype}")
        for expected, size in zip(spec.shape, value.shape, strict=True):
            if expected is None:
                sizes.setdefault(size, spec.name)
    if len(sizes) > 1:
        found = ", ".join(f"{name!r} has {size}" for size, name in sizes.items())
        raise InputError(f"inputs disagree on the batch size: {found}")
    return next(iter(sizes), None)


def _example_of(structure: pytree.TreeSpec) -> Any:
    return pytree.tree_unflatten([0] * structure.num_leaves, structure)


def _restored(signature: inspect.Signature, arguments: list[Any], outputs: Any) -> CallSpec:
    found = tuple(Argument(name, pytree.tree_structure(value), leaves) for name, value, leaves in arguments)
    return CallSpec(signature, found, pytree.tree_structure(outputs))


def arguments(given: Any, what: str = "example_inputs") -> Arguments:
    """Positional and keyword arguments as `call_arguments` reads them, arrays among them as tensors.

    Raises:
        InputError: `given`, which the message calls `what`, is none of these.
    """
    found: Arguments = pytree.tree_map_only(np.ndarray, tensor_of, call_arguments(given, what))
    return found


def call_arguments(given: Any, what: str) -> Arguments:
    """Positional and keyword arguments out of a tensor, an array, a tuple or list of arguments, or a dict of them by
    name.

    Raises:
        InputError: `given`, which the message calls `what`, is none of these.
    """
    match given:
        case Tensor() | np.ndarray():
            return (given,), {}
        case Mapping() if all(isinstance(name, str) for name in given):
            return (), dict(given)
        case tuple() | list():
            return tuple(given), {}
    raise InputError(
        f"{what} must be a tensor, an array, a tuple of arguments or a dict of keyword arguments, "
        f"not {type(given).__name__}"
    )


def holds_arrays(given: Any) -> bool:
    """Whether there are arrays among arguments, which are then answered with arrays."""
    return any(isinstance(value, np.ndarray) for value in pytree.tree_leaves(given))


def tensor_of(array: np.ndarray[Any, Any]) -> Tensor:
    """`array` as a tensor, which shares its memory where that may be written to and lies in order.

    Raises:
        InputError: torch has no such dtype.
    """
    try:
        return torch.from_numpy(np.require(array, requirements=("C", "W")))
    except TypeError as error:
        raise InputError(f"an array of {array.dtype} is given, which is no dtype of torch's") from error


def array_of(tensor: Tensor) -> np.ndarray[Any, Any]:
    """`tensor` as an array; bfloat16, which NumPy has not, as float32."""
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).detach().cpu().numpy()


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
    keys = keys_of(outputs)
    return tuple(parts) if keys is None else dict(zip(keys, parts, strict=True))


def keys_of(structure: pytree.TreeSpec) -> list[Any] | None:
    """What a container's parts are found by, in order, where it is a dict of any kind."""
    if structure.type is defaultdict:
        return list(structure.context[1])  # beside it, what makes the parts that are missing
    if isinstance(structure.type, type) and issubclass(structure.type, dict):
        return list(structure.context)
    return None


def same_value(a: Any, b: Any) -> bool:
    """Whether two arguments say the same: equal numbers, or values of one type that are equal."""
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (a, b))
    if a is b:
        return True
    if not numbers and type(a) is not type(b):
        return False
    try:
        return bool(a == b) or bool(numbers and a != a and b != b)
    except (RuntimeError, ValueError):  # arrays, whose equality has as many answers as they have numbers
        return False


def _shown(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor of shape {list(value.shape)}"
    text = repr(value)
    return text if len(text) < 80 else f"a {type(value).__name__}"
