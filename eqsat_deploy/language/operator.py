"""One declaration per operator: its torch body, shape rule, ATen import, and what a cost model reads.

An operator is called by an interpreter. The default one evaluates the torch body (on real tensors a value, on
meta tensors a shape, on fx proxies a rebuilt graph); compiling a rule builds egglog patterns; lowering builds
rows. So a rule written as a Python function is the rewrite, its shape test and its soundness test at once.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol, get_type_hints

import torch

from eqsat_extraction.errors import RegistrationError
from eqsat_extraction.kernel import Kind

Ints = tuple[int, ...]
Tensors = tuple[torch.Tensor, ...]
SORTS: dict[Any, str] = {
    torch.Tensor: "T", Tensors: "L", int: "i64", float: "f64", str: "String", Ints: "VI",
}  # fmt: skip
OPERANDS = frozenset({"T", "L"})


class Interpreter(Protocol):
    """What calling an operator means."""

    def apply(self, operator: Operator, args: tuple[Any, ...]) -> Any:
        """The result of `operator` on `args`, in declaration order."""
        ...


class Evaluate:
    """Runs the torch body: values on tensors, shapes on meta tensors, graphs on proxies."""

    def apply(self, operator: Operator, args: tuple[Any, ...]) -> Any:
        """The body's result."""
        return operator.body(*args)


_interpreter: ContextVar[Interpreter] = ContextVar("interpreter", default=Evaluate())  # noqa: B039


@contextmanager
def interpreted_by(interpreter: Interpreter) -> Iterator[None]:
    """Inside, calling an operator asks `interpreter`."""
    token = _interpreter.set(interpreter)
    try:
        yield
    finally:
        _interpreter.reset(token)


@dataclass(frozen=True, eq=False)
class Operator:
    """A declared operator.

    Attributes:
        name: what it is called in the language; `constructor` in the e-graph.
        parameters: names and egglog sorts of operands (`T`, a list of them `L`) and attributes, in order.
        body: what it computes, in torch.
        shape: the encoded result shape; None for what has no shape of its own.
        kind: what a launch of it is to a target. A `Kind.VIEW` moves no data, a `Kind.LEAF` is no launch at all.
        dtype: the result's dtype, from `Known` operands and attributes in order; None where only torch can tell.
        epilogue: whether further pointwise steps may pass over its result before it is written.
        integer: how an INT8 target treats it: `compute` (INT8 operands, float or INT8 result), `pointwise` (INT8 in
            and out only), `scale` (as that, after pools and concatenations, with operands after the first that are
            constant and stay float), `commute` (quantizing its input is quantizing its output), or `never`.
        requantizes: whether a kernel of it that computes in float may write INT8 codes itself.
        linear: whether it is linear in its operands together or in each.
        along: slots of the axes that it acts along, or the attribute that is one; where the others stand, and how many
            of them there are, it does not see. () for what is pointwise, None for what depends on all of them.
        nonnegative: under which condition on its attributes no element is negative where none of its operands' is.
        bias: the operand that may be missing, written as zeros.
        channels: the axis of the weight, its second operand, along which the results' channels lie.
        launched: whether a target has a kernel of it; one that has not is only ever part of another.
        numbered: whether its results are counted among what siblings are found among.
        called: the name that cost models and people know a kernel of it by, from its attributes.
        flops, module, module_operands: see `operator`.
    """

    name: str
    constructor: str
    parameters: tuple[tuple[str, str], ...]
    body: Callable[..., Any]
    shape: Callable[..., Any] | None
    kind: Kind
    dtype: Callable[..., torch.dtype | None]
    epilogue: bool = False
    integer: str = "never"
    requantizes: bool = False
    linear: bool = False
    along: tuple[int, ...] | str | None = None
    nonnegative: Callable[..., Any] | None = None
    bias: str | None = None
    channels: int | None = None
    launched: bool = True
    numbered: bool = True
    called: Callable[..., str] | None = None
    flops: Callable[..., float] | None = None
    module: Callable[..., torch.nn.Module | None] | None = None
    module_operands: int = 1
    doc: str = field(default="", repr=False)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Apply the operator under the current interpreter."""
        if kwargs or len(args) != len(self.parameters):
            bound = inspect.signature(self.body).bind(*args, **kwargs)
            bound.apply_defaults()
            args = tuple(bound.arguments.values())
        return _interpreter.get().apply(self, args)

    @property
    def arity(self) -> int:
        """Number of tensor operands."""
        return sum(sort == "T" for _, sort in self.parameters)

    @property
    def operand_names(self) -> tuple[str, ...]:
        """Names of the tensor operands, in order."""
        return tuple(name for name, sort in self.parameters if sort in OPERANDS)

    @property
    def attribute_names(self) -> tuple[str, ...]:
        """Names of what is not a tensor operand, in order."""
        return tuple(name for name, sort in self.parameters if sort not in OPERANDS)

    def kernel_name(self, attributes: tuple[Any, ...]) -> str:
        """What a kernel of it is called: `relu` of a `unary`."""
        return self.name if self.called is None else self.called(*attributes)

    def join(self, operands: tuple[Any, ...], attributes: tuple[Any, ...]) -> tuple[Any, ...]:
        """Operands and attributes interleaved into declaration order; a list, the last operand, takes what is left."""
        tensors, others = iter(operands), iter(attributes)
        return tuple(
            next(tensors) if sort == "T" else tuple(tensors) if sort == "L" else next(others)
            for _, sort in self.parameters
        )

    def split(self, args: tuple[Any, ...]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Arguments in declaration order, parted into tensor operands and attributes."""
        operands: list[Any] = []
        attributes = []
        for (_, sort), arg in zip(self.parameters, args, strict=True):
            match sort:
                case "T":
                    operands.append(arg)
                case "L":
                    operands += arg
                case _:
                    attributes.append(arg)
        return tuple(operands), tuple(attributes)


OPERATORS: dict[str, Operator] = {}
BY_CONSTRUCTOR: dict[str, Operator] = {}


class Known(Protocol):
    """What is known of an operand before it has a value."""

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Its shape; None where it is not known before the model runs."""
        ...

    @property
    def dtype(self) -> torch.dtype | None:
        """Its dtype; None where it is not known yet."""
        ...


def of_operands(*args: Any) -> torch.dtype | None:
    """The dtype of the first operand that has axes: a number takes the precision of what it meets."""
    operands = [a for a in args if hasattr(a, "dtype")]
    ranked = [o for o in operands if o.shape] or operands
    return ranked[0].dtype if ranked else None


def unknown(*args: Any) -> None:
    """No dtype of its own: torch says what it is."""


def operator(
    kind: Kind,
    *,
    shape: Callable[..., Any] | None,
    dtype: Callable[..., torch.dtype | None] = of_operands,
    epilogue: bool = False,
    integer: str = "never",
    requantizes: bool = False,
    linear: bool = False,
    along: tuple[int, ...] | str | None = None,
    nonnegative: Callable[..., Any] | None = None,
    bias: str | None = None,
    channels: int | None = None,
    launched: bool = True,
    numbered: bool = True,
    called: Callable[..., str] | None = None,
    flops: Callable[..., float] | None = None,
    module: Callable[..., torch.nn.Module | None] | None = None,
    module_operands: int = 1,
) -> Callable[[Callable[..., Any]], Operator]:
    """Declare the decorated torch body as an operator of the language.

    Tensor parameters are operands, `int`, `float`, `str` and `Ints` parameters are attributes. `shape` maps
    operand shapes (encoded, see `shapes`) and attributes to the encoded result shape; None for what has no
    shape of its own. `flops` maps the same arguments as plain tuples, plus the result shape, to a count.
    `module(operand tensors after the first `module_operands`, attributes)` may return the `nn.Module` that
    a rebuilt graph calls instead of the body.
    """

    def declare(body: Callable[..., Any]) -> Operator:
        hints = get_type_hints(body)
        parameters = tuple((name, SORTS[hints[name]]) for name in inspect.signature(body).parameters)
        name = body.__name__.strip("_")
        constructor = "".join(part.capitalize() for part in name.split("_"))
        declared = Operator(
            name, constructor, parameters, body, shape, kind, dtype, epilogue, integer, requantizes, linear, along,
            nonnegative, bias, channels, launched, numbered, called, flops, module, module_operands,
            inspect.getdoc(body) or "",
        )  # fmt: skip
        if name in OPERATORS or constructor in BY_CONSTRUCTOR:
            homes = (
                o.body.__module__ for o in (OPERATORS.get(name) or BY_CONSTRUCTOR[constructor], declared)
            )
            raise RegistrationError(f"operator {name!r} is declared twice: in {' and '.join(homes)}")
        OPERATORS[name] = BY_CONSTRUCTOR[constructor] = declared
        return declared

    return declare


@dataclass(frozen=True)
class Unsupported(Exception):
    """An ATen call has arguments that the language does not model: the node stays opaque."""

    reason: str


Importer = Callable[..., Any]
IMPORTERS: dict[str, Importer] = {}


def aten(*names: str) -> Callable[[Importer], Importer]:
    """Register the decorated function as the import of ATen overloads (`"conv2d.default"`).

    It is called with the overload's arguments in schema order, defaults filled in, tensors as lowered terms;
    it returns a term, or a tuple of terms for an overload with several results, or raises `Unsupported`.
    """

    def register(importer: Importer) -> Importer:
        for name in names:
            if name in IMPORTERS:
                homes = f"{IMPORTERS[name].__module__} and {importer.__module__}"
                raise RegistrationError(f"aten.{name} is imported twice: by {homes}")
            IMPORTERS[name] = importer
        return importer

    return register
