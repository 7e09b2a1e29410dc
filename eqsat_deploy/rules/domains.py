"""What the arguments of a rule stand for, and where the checks that are derived from it draw them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import mul
from random import Random
from typing import Any

from eqsat_deploy.errors import RuleError

DIMENSIONS = (1, 2, 3, 4)
"""What a dimension is drawn from where its rule says nothing else."""
PREFIXES = ("...", "1...", "~")
VALUES = ("real", "positive", "boolean", "index")


@dataclass(frozen=True)
class Extent:
    """The length of an axis: a number, a dimension, or a product of them (`3*d`)."""

    factors: tuple[int | str, ...]

    @classmethod
    def parse(cls, text: str) -> Extent:
        """Raises `RuleError` where the text is no product of names and numbers."""
        factors = text.split("*")
        for factor in factors:
            if not (factor.isdigit() or factor.isidentifier()):
                raise RuleError(f"{text!r} is no length of an axis: name dimensions, as in `c*h` or `3*d`")
        return cls(tuple(int(f) if f.isdigit() else f for f in factors))

    @property
    def names(self) -> tuple[str, ...]:
        """The dimensions in it."""
        return tuple(f for f in self.factors if isinstance(f, str))

    @property
    def name(self) -> str | None:
        """The dimension that it is, if it is nothing but that."""
        return self.names[0] if len(self.factors) == len(self.names) == 1 else None

    @property
    def multiple(self) -> tuple[int, str] | None:
        """Factor and dimension of the form `3*d`, from which `d` can be computed."""
        match self.factors:
            case (int(factor), str(name)):
                return factor, name
        return None

    def value(self, scope: Mapping[str, Any]) -> Any:
        """The length, where dimensions are as in `scope`; `KeyError` where one is missing."""
        return reduce(mul, (scope[f] if isinstance(f, str) else f for f in self.factors))


@dataclass(frozen=True)
class Tensor:
    """A tensor argument: its shape, and what its elements are.

    Attributes:
        prefix: axes in front: `...` any, `1...` any of size one, `` none; `~` any shape, drawn like this.
        extents: the axes named; None where the shape is not of interest.
        values: `real`, `positive`, `boolean` or `index` (integers from 0).
        somewhere: a truth value that every row along the last axis of a `boolean` has.
    """

    prefix: str = ""
    extents: tuple[Extent, ...] | None = None
    values: str = "real"
    somewhere: bool | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The dimensions in its shape, once for every place they have."""
        return tuple(name for extent in self.extents or () for name in extent.names)

    @property
    def matched(self) -> bool:
        """Whether its shape is part of the pattern."""
        return self.extents is not None and self.prefix != "~"

    def draw(self, scope: Mapping[str, Any], leading: tuple[int, ...], random: Random) -> tuple[int, ...]:
        """A torch shape; `leading` are the axes that every `...` of a sample stands for."""
        ahead = {"...": leading, "1...": random.choice(((), (1,)))}.get(self.prefix, ())
        return (*ahead, *(extent.value(scope) for extent in self.extents or ()))


def tensor(spec: str = "", values: str = "real", somewhere: bool | None = None) -> Tensor:
    """A tensor by its shape: `"n c h w"`, `"... k"`, `"1... c"`, `"~ a b"`; see `rule`."""
    tokens = spec.split()
    prefix = tokens.pop(0) if tokens and tokens[0] in PREFIXES else ""
    extents = tuple(map(Extent.parse, tokens)) if prefix or tokens else None
    return Tensor(prefix, extents, values, somewhere)


def positive(spec: str = "") -> Tensor:
    """A tensor without an element that is zero or less: a variance."""
    return tensor(spec, "positive")


def boolean(spec: str = "", somewhere: bool | None = None) -> Tensor:
    """A tensor of truth values. `somewhere` is one that every row has, so that a softmax is of something."""
    return tensor(spec, "boolean", somewhere)


def index(spec: str = "") -> Tensor:
    """A tensor of positions along an axis, from 0; drawn from 0 and 1."""
    return tensor(spec, "index")


@dataclass(frozen=True)
class Attribute:
    """An argument that is no tensor: its sort in the e-graph and the values that derived checks draw from.

    `samples` may be a function of the dimensions drawn so far.
    """

    sort: str
    samples: Sequence[Any] | Callable[[dict[str, Any]], Sequence[Any]]

    def draw(self, dimensions: dict[str, Any], random: Random) -> Any:
        """One of the sample values."""
        values = self.samples(dimensions) if callable(self.samples) else self.samples
        return random.choice(list(values))


def integer(*samples: Any) -> Attribute:
    """An `i64` attribute."""
    return _attribute("i64", samples)


def integers(*samples: Any) -> Attribute:
    """A vector attribute."""
    return _attribute("VI", samples)


def number(*samples: Any) -> Attribute:
    """An `f64` attribute."""
    return _attribute("f64", samples)


def name(*samples: str) -> Attribute:
    """A string attribute, such as the function of a `unary`."""
    return _attribute("String", samples)


def _attribute(sort: str, samples: tuple[Any, ...]) -> Attribute:
    return Attribute(sort, samples[0] if len(samples) == 1 and callable(samples[0]) else samples)


@dataclass(frozen=True)
class Bundle:
    """An argument that is several attributes, or several tensors, in one: a window, or siblings.

    Attributes:
        make: what the rule's function is given, made of the parts and then of the dimensions `sizes`.
        parts: each part by the name it has among the variables of the pattern.
        sizes: dimensions that it is made of as well.
    """

    make: Callable[..., Any]
    parts: Mapping[str, Attribute | Tensor]
    sizes: tuple[str, ...] = ()


Domain = Tensor | Attribute | Bundle | tuple[int, ...]


@dataclass(frozen=True)
class Variants:
    """An argument that makes a rule several, one for each choice; see `rules`."""

    choices: Mapping[str, Domain]


def flattened(domains: Mapping[str, Domain]) -> Iterator[tuple[str, Tensor | Attribute]]:
    """Tensors and attributes by name, parts of bundles by their own."""
    for argument, domain in domains.items():
        if isinstance(domain, Bundle):
            yield from domain.parts.items()
        elif not isinstance(domain, tuple):
            yield argument, domain
