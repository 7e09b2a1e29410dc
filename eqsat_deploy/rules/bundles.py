"""Arguments of rules that are several in one: a convolution's window, branches on one input, either order of operands.

A `Bundle` gives a rule's function one value made of several variables of the pattern. `Variants` make a rule several:
one for each choice, whose key is what its name starts with (`two-`) or ends with (`-under-mask`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from eqsat_deploy.rules.domains import Attribute, Bundle, Tensor, Variants, tensor


class Window(NamedTuple):
    """How a convolution's kernel moves over a map: `conv2d(x, weight, bias, *window)`."""

    stride: Any
    padding: Any
    dilation: Any
    groups: Any

    def padded_by(self, height: Any, width: Any | None = None) -> list[Any]:
        """Guards: so many zeros on each side."""
        return [self.padding[0] == height, self.padding[1] == (height if width is None else width)]

    @property
    def unpadded(self) -> list[Any]:
        """Guards: no zeros around the map."""
        return self.padded_by(0)

    @property
    def dense(self) -> list[Any]:
        """Guards: the kernel's taps are neighbours."""
        return [self.dilation[0] == 1, self.dilation[1] == 1]

    @property
    def everywhere(self) -> list[Any]:
        """Guards: no position is left out."""
        return [self.stride[0] == 1, self.stride[1] == 1]


class TransposedWindow(NamedTuple):
    """How a transposed convolution's kernel moves: `conv_transpose2d(x, weight, bias, *window)`."""

    stride: Any
    padding: Any
    output_padding: Any
    dilation: Any
    groups: Any


class AveragePool(NamedTuple):
    """What an average pool averages: `avg_pool2d(x, *pool)`."""

    kernel: Any
    stride: Any
    padding: Any
    ceil: Any
    include_pad: Any


class MaxPool(NamedTuple):
    """What a max pool takes the maximum of: `max_pool2d(x, *pool)`."""

    kernel: Any
    stride: Any
    padding: Any
    dilation: Any
    ceil: Any


Part = Attribute | int | tuple[int, ...]
"""A part of a bundle: a variable of the pattern, or the one value that it has there."""


def window(stride: Part, padding: Part, dilation: Part = (1, 1), groups: Part = 1) -> Bundle:
    """The `Window` of a convolution; its variables are called as its parts are."""
    return _bundle(Window, stride=stride, padding=padding, dilation=dilation, groups=groups)


def transposed_window(
    stride: Part, padding: Part, output_padding: Part, dilation: Part, groups: Part
) -> Bundle:
    """The `TransposedWindow` of a transposed convolution."""
    return _bundle(
        TransposedWindow, stride=stride, padding=padding, output_padding=output_padding, dilation=dilation,
        groups=groups,
    )  # fmt: skip


def average_pool(kernel: Part, stride: Part, padding: Part, ceil: Part = 0, include_pad: Part = 1) -> Bundle:
    """The `AveragePool` of an `avg_pool2d`."""
    return _bundle(
        AveragePool, kernel=kernel, stride=stride, padding=padding, ceil=ceil, include_pad=include_pad
    )


def max_pool(kernel: Part, stride: Part, padding: Part, dilation: Part = (1, 1), ceil: Part = 0) -> Bundle:
    """The `MaxPool` of a `max_pool2d`."""
    return _bundle(MaxPool, kernel=kernel, stride=stride, padding=padding, dilation=dilation, ceil=ceil)


def _bundle(make: Callable[..., Any], **parts: Part) -> Bundle:
    variables = {k: v for k, v in parts.items() if isinstance(v, Attribute)}
    return Bundle(lambda *values: make(**parts | dict(zip(variables, values, strict=True))), variables)


def function(apply: Callable[..., Any], **parts: str | Attribute | Tensor) -> Bundle:
    """A function whose last arguments, `parts`, are variables of the pattern: `apply(x, *parts)` of one tensor."""
    return Bundle(lambda *values: lambda *operands: apply(*operands, *values), _domains(parts))


def fixed(value: Any) -> Bundle:
    """A value that is no variable of the pattern."""
    return Bundle(lambda: value, {})


def optional(spec: str, key: str) -> Variants:
    """A tensor or None: the rule without it, and the rule with it, which `key` is part of the name of."""
    return Variants({"": fixed(None), key: tensor(spec)})


def commutative(first: str, second: str) -> Variants:
    """A function that gives two operands in one order or the other: `mul(*order(x, y))`."""
    return Variants({first: fixed(lambda a, b: (a, b)), second: fixed(lambda a, b: (b, a))})


def several(
    counts: Mapping[str, int], sizes: tuple[str, ...] = (), **parts: str | Callable[[int], Attribute]
) -> Variants:
    """A list of so many alike, each a tuple of its `parts` and then of the dimensions `sizes`.

    A `#` in a shape pattern or dimension stands for the number of the one it belongs to: `weight="o# c"` has as many
    weights as there are, `weight0` of the shape `o0 c` first.
    """

    def of(count: int) -> Bundle:
        numbered = {f"{name}{i}": spec.replace("#", str(i)) if isinstance(spec, str) else spec(i)
                    for name, spec in parts.items() for i in range(count)}  # fmt: skip
        dimensions = tuple(size.replace("#", str(i)) for size in sizes for i in range(count))
        return Bundle(
            lambda *values: [values[i::count] for i in range(count)], _domains(numbered), dimensions
        )

    return Variants({key: of(count) for key, count in counts.items()})


def _domains(parts: Mapping[str, str | Attribute | Tensor]) -> dict[str, Attribute | Tensor]:
    return {k: tensor(v) if isinstance(v, str) else v for k, v in parts.items()}
