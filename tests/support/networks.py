"""Random networks: typed by running them, so that every drawn one is valid, over the whole language.

A network is a list of modules and the values that each reads. Values are read more than once, modules are applied
again to other values, some work in place, some return several tensors; several inputs and outputs are drawn too.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

from benchmarks._models import rerandomize
from eqsat_extraction.kernel import Kernel

ELEMENTS, LARGEST = 2048, 1e3
BATCHES = (2, 3)
SMOOTH = (F.relu, F.gelu, F.silu, F.hardswish, F.hardsigmoid, torch.sigmoid, torch.tanh, torch.abs, torch.neg,
          torch.erf, F.softplus, F.elu, F.relu6, torch.sin, F.mish)  # fmt: skip
Draw = Callable[..., Any]
Shape = tuple[int, ...]


class Apply(nn.Module):
    """A function as a module, printed as `text`."""

    def __init__(self, text: str, function: Callable[..., Any]) -> None:
        super().__init__()
        self.text, self.function = text, function

    def forward(self, *values: Tensor) -> Any:
        return self.function(*values)

    def extra_repr(self) -> str:
        return self.text


class Network(nn.Module):
    """Modules applied in order; `operands[i]` are the numbers of the values that module i reads, inputs first."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.ModuleList()
        self.operands: list[tuple[int, ...]] = []
        self.outputs: tuple[int, ...] = ()
        self.named = False
        self.seed = 0
        self.shapes: list[Shape] = []

    def inputs(self, batch: int = 2) -> tuple[Tensor, ...]:
        """Example inputs."""
        generator = torch.Generator().manual_seed(self.seed)
        return tuple(torch.randn((batch, *shape), generator=generator) for shape in self.shapes)

    def forward(self, *inputs: Tensor) -> Any:
        values = [x + 0 for x in inputs]
        for module, operands in zip(self.steps, self.operands, strict=True):
            result = module(*(values[i] for i in operands))
            values.extend(result if isinstance(result, tuple) else [result])
        read = [values[i] for i in self.outputs]
        return {f"out{i}": v for i, v in zip(self.outputs, read, strict=True)} if self.named else tuple(read)

    def __repr__(self) -> str:
        lines = [f"{m}{list(o)}" for m, o in zip(self.steps, self.operands, strict=True)]
        return "\n".join([f"inputs {self.shapes}, seed {self.seed}", *lines, f"outputs {self.outputs}"])


@dataclass(frozen=True)
class RandomPrices:
    """A price per kind of kernel, drawn by a seed: every form is the cheapest one for some seed."""

    seed: int
    name: str = "random"
    unit: str = "units"
    float_dtype: str = "float32"
    int8: bool = False

    def price(self, kernel: Kernel) -> float:
        """Between 1 and 100."""
        shapes = [spec.shape for spec in kernel.inputs]
        return random.Random(f"{self.seed} {kernel.op} {shapes} {len(kernel.epilogue)}").uniform(1, 100)


# -- operators: each draws a module that may fit values of the given shapes, or None -------------------------------


def convolution(draw: Draw, shape: Shape) -> nn.Module | None:
    if len(shape) != 4:
        return None
    groups = draw(st.sampled_from([g for g in (1, 2, shape[1]) if shape[1] % g == 0]))
    kernel = draw(st.sampled_from([(1, 1), (1, 1), (3, 3), (3, 1), (2, 2)]))
    return nn.Conv2d(
        shape[1], groups * draw(st.integers(1, 3)), kernel, stride=draw(st.integers(1, 2)),
        padding=draw(st.integers(0, 1)), dilation=draw(st.sampled_from([1, 1, 2])), groups=groups,
        bias=draw(st.booleans()),
    )  # fmt: skip


def same_convolution(draw: Draw, shape: Shape) -> nn.Module | None:
    if len(shape) != 4:
        return None
    kernel = draw(st.sampled_from([1, 3, 5]))
    return nn.Conv2d(shape[1], shape[1], kernel, padding=kernel // 2, bias=draw(st.booleans()))


def transposed_convolution(draw: Draw, shape: Shape) -> nn.Module | None:
    return nn.ConvTranspose2d(shape[1], draw(st.integers(1, 3)), 2, stride=2) if len(shape) == 4 else None


def linear(draw: Draw, shape: Shape) -> nn.Module | None:
    return nn.Linear(shape[-1], draw(st.integers(1, 6)), bias=draw(st.booleans())) if len(shape) > 1 else None


def batch_norm(draw: Draw, shape: Shape) -> nn.Module | None:
    kinds = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}
    return kinds[len(shape)](shape[1], affine=draw(st.booleans())) if len(shape) in kinds else None


def layer_norm(draw: Draw, shape: Shape) -> nn.Module | None:
    return nn.LayerNorm(shape[-1], elementwise_affine=draw(st.booleans())) if len(shape) > 1 else None


def group_norm(draw: Draw, shape: Shape) -> nn.Module | None:
    return nn.GroupNorm(draw(st.sampled_from([1, shape[1]])), shape[1]) if len(shape) == 4 else None


def activation(draw: Draw, shape: Shape) -> nn.Module:
    function = draw(st.sampled_from(SMOOTH))
    return Apply(function.__name__, function)


def in_place(draw: Draw, shape: Shape) -> nn.Module:
    return draw(st.sampled_from([nn.ReLU, nn.Hardswish, nn.SiLU]))(inplace=True)


def dropout(draw: Draw, shape: Shape) -> nn.Module:
    return nn.Dropout(0.5)


def pool(draw: Draw, shape: Shape) -> nn.Module | None:
    if len(shape) != 4:
        return None
    kernel, stride, padding = draw(st.sampled_from([(1, 1, 0), (2, 2, 0), (3, 2, 1), (3, 1, 1)]))
    if draw(st.booleans()):
        return nn.MaxPool2d(kernel, stride, padding, ceil_mode=draw(st.booleans()))
    return nn.AvgPool2d(
        kernel, stride, padding, ceil_mode=draw(st.booleans()), count_include_pad=draw(st.booleans())
    )


def adaptive_pool(draw: Draw, shape: Shape) -> nn.Module | None:
    size = draw(st.sampled_from([1, 2, shape[2:]])) if len(shape) == 4 else None
    return None if size is None else nn.AdaptiveAvgPool2d(size)


def mean(draw: Draw, shape: Shape) -> nn.Module | None:
    if len(shape) < 3:
        return None
    axes = draw(st.sampled_from([(-1,), (1,), tuple(range(2, len(shape)))]))
    keep = draw(st.booleans())
    return Apply(f"mean {axes} {keep}", lambda x: x.mean(axes, keepdim=keep))


def softmax(draw: Draw, shape: Shape) -> nn.Module | None:
    axis = draw(st.integers(1, len(shape) - 1)) if len(shape) > 1 else None
    return None if axis is None else nn.Softmax(axis)


def flatten(draw: Draw, shape: Shape) -> nn.Module | None:
    return nn.Flatten(draw(st.integers(1, len(shape) - 1))) if len(shape) > 2 else None


def split_axis(draw: Draw, shape: Shape) -> nn.Module | None:
    axis = draw(st.integers(1, len(shape) - 1)) if 1 < len(shape) < 5 else None
    if axis is None or shape[axis] % 2:
        return None
    parts = draw(st.sampled_from([(2, shape[axis] // 2), (shape[axis] // 2, 2)]))
    return nn.Unflatten(axis, parts)


def permute(draw: Draw, shape: Shape) -> nn.Module | None:
    if len(shape) < 3:
        return None
    moved = draw(st.booleans()) and draw(st.booleans())  # the batch now and then too
    order = (
        draw(st.permutations(range(len(shape))))
        if moved
        else [0, *draw(st.permutations(range(1, len(shape))))]
    )
    return Apply(f"permute {tuple(order)}", lambda x: x.permute(order))


def channel_shuffle(draw: Draw, shape: Shape) -> nn.Module | None:
    return nn.ChannelShuffle(2) if len(shape) == 4 and shape[1] % 2 == 0 else None


def take(draw: Draw, shape: Shape) -> nn.Module | None:
    axis = draw(st.integers(1, len(shape) - 1)) if len(shape) > 1 else None
    if axis is None or shape[axis] < 2:
        return None
    start = draw(st.integers(0, shape[axis] - 1))
    if draw(st.booleans()) and len(shape) > 2:
        return Apply(f"select {axis} {start}", lambda x: x.select(axis, start))
    stop, step = draw(st.integers(start + 1, shape[axis])), draw(st.integers(1, 2))
    index = (slice(None),) * axis + (slice(start, stop, step),)
    return Apply(f"slice {axis} {start}:{stop}:{step}", lambda x: x[index])


def chunk(draw: Draw, shape: Shape) -> nn.Module | None:
    axis = draw(st.integers(1, len(shape) - 1)) if len(shape) > 1 else None
    if axis is None or shape[axis] < 2:
        return None
    if draw(st.booleans()):
        return Apply(f"chunk {axis}", lambda x: tuple(x.chunk(2, axis)))
    return Apply(f"unbind {axis}", lambda x: tuple(x.unbind(axis)[:2])) if len(shape) > 2 else None


def pad(draw: Draw, shape: Shape) -> nn.Module | None:
    if len(shape) < 3:
        return None
    widths = [draw(st.integers(0, 1)) for _ in range(2 * min(2, len(shape) - 2))]
    value = draw(st.sampled_from([0.0, 0.0, 1.5]))
    return Apply(f"pad {widths} {value}", lambda x: F.pad(x, widths, value=value))


def roll(draw: Draw, shape: Shape) -> nn.Module | None:
    axis = draw(st.integers(1, len(shape) - 1)) if len(shape) > 1 else None
    shift = draw(st.integers(-2, 2))
    return None if axis is None else Apply(f"roll {shift} {axis}", lambda x: torch.roll(x, shift, axis))


def unsqueeze(draw: Draw, shape: Shape) -> nn.Module | None:
    axis = draw(st.integers(1, len(shape)))
    return Apply(f"unsqueeze {axis}", lambda x: x.unsqueeze(axis)) if len(shape) < 5 else None


def constant(draw: Draw, shape: Shape) -> nn.Module:
    return Scaled(shape, draw(st.sampled_from(["mul", "add", "sub", "div"])), draw(st.integers(0, 2)))


class Scaled(nn.Module):
    """A parameter of the last axes, of one axis, or a number, before or after an operator."""

    def __init__(self, shape: Shape, f: str, kind: int) -> None:
        super().__init__()
        channel = (shape[1], *[1] * (len(shape) - 2)) if len(shape) > 1 else (1,)
        sizes = {0: shape[-1:] if len(shape) > 1 else (1,), 1: channel}
        self.f, self.shape = f, sizes.get(kind)
        self.value = nn.Parameter(torch.full(sizes[kind], 1.3)) if kind in sizes else 1.7

    def forward(self, x: Tensor) -> Tensor:
        return getattr(torch, self.f)(x, self.value)

    def extra_repr(self) -> str:
        return f"{self.f} {self.shape or self.value}"


def attention(draw: Draw, shape: Shape) -> nn.Module | None:
    if len(shape) != 3:
        return None
    heads = draw(st.sampled_from([h for h in (1, 2) if shape[2] % h == 0]))
    options = {"bias": draw(st.booleans()), "add_zero_attn": draw(st.integers(0, 3)) == 0}
    return SelfAttention(
        nn.MultiheadAttention(shape[2], heads, batch_first=draw(st.integers(0, 3)) > 0, **options)
    )


class SelfAttention(nn.Module):
    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.attention(x, x, x, need_weights=False)[0]
        return result


def scaled_dot_product(draw: Draw, a: Shape, b: Shape) -> nn.Module | None:
    if not len(a) == len(b) in (3, 4) or a[-1] != b[-1] or a[1:-2] != b[1:-2]:
        return None
    if draw(st.booleans()):
        return Apply("sdpa", lambda q, k: F.scaled_dot_product_attention(q, k, k))
    scale = draw(st.sampled_from([1.0, a[-1] ** -0.5]))
    return Apply(
        f"softmax chain {scale}", lambda q, k: torch.softmax(q @ k.transpose(-2, -1) * scale, -1) @ k
    )


def binary(draw: Draw, a: Shape, b: Shape) -> nn.Module | None:
    function = draw(st.sampled_from([torch.add, torch.mul, torch.sub, torch.maximum]))
    return Apply(function.__name__, function)


def concatenation(draw: Draw, a: Shape, b: Shape) -> nn.Module | None:
    axes = [i for i in range(1, len(a)) if len(a) == len(b) and a[:i] + a[i + 1 :] == b[:i] + b[i + 1 :]]
    axis = draw(st.sampled_from(axes)) if axes else None
    return None if axis is None else Apply(f"cat {axis}", lambda x, y: torch.cat([x, y], axis))


def product(draw: Draw, a: Shape, b: Shape) -> nn.Module | None:
    return Apply("matmul", torch.matmul) if len(a) == len(b) > 2 and a[-1] == b[-2] else None


ONE = (convolution, same_convolution, transposed_convolution, linear, batch_norm, layer_norm, group_norm, activation,
       in_place, dropout, pool, adaptive_pool, mean, softmax, flatten, split_axis, permute, channel_shuffle, take,
       chunk, pad, roll, unsqueeze, constant, attention)  # fmt: skip
TWO = (binary, binary, concatenation, concatenation, product, scaled_dot_product)
INPUTS = ((4, 6, 6), (2, 4, 4), (5, 8), (4,))


@st.composite
def networks(draw: Draw, steps: int = 8) -> Network:
    """A network of up to `steps` modules in eval mode, valid for any batch, its parameters re-randomized."""
    network = Network().eval()
    network.seed = draw(st.integers(0, 2**16))
    network.shapes = draw(st.lists(st.sampled_from(INPUTS), min_size=1, max_size=2))
    runs = [[x + 0 for x in network.inputs(batch)] for batch in BATCHES]
    applied: list[tuple[nn.Module, Shape]] = []
    for _ in range(draw(st.integers(1, steps))):
        module, operands = _step(draw, runs[0], applied)
        results = [_results(module, [values[i] for i in operands]) for values in runs]
        if not all(results) or not all(map(_fits, *results)):
            continue
        network.steps.append(module)
        network.operands.append(operands)
        if len(operands) == 1:
            applied.append((module, tuple(runs[0][operands[0]].shape)))
        for values, result in zip(runs, results, strict=True):
            values.extend(result)
    last = len(runs[0]) - 1
    network.outputs = tuple(sorted({last, draw(st.integers(0, last))}))
    network.named = draw(st.booleans())
    return rerandomize(network, network.seed)  # type: ignore[return-value]


def _results(module: nn.Module | None, operands: list[Tensor]) -> list[Tensor]:
    """What the module returns; nothing where it does not take the operands."""
    if module is None:
        return []
    try:
        with torch.no_grad():
            result = module.eval()(*operands)
    except (RuntimeError, ValueError, IndexError):
        return []
    return list(result) if isinstance(result, tuple) else [result]


def _fits(value: Tensor, larger: Tensor) -> bool:
    """Small tensors of one rank at both batch sizes, of numbers that do not drown each other's rounding."""
    return (
        0 < value.numel() <= ELEMENTS
        and value.dim() == larger.dim() <= 5
        and value.shape != larger.shape
        and float(value.abs().max()) < LARGEST
    )


def _step(
    draw: Draw, values: list[Tensor], applied: list[tuple[nn.Module, Shape]]
) -> tuple[nn.Module | None, tuple[int, ...]]:
    first = max(draw(st.integers(0, len(values) - 1)), draw(st.integers(0, len(values) - 1)))
    shape = tuple(values[first].shape)
    again = [m for m, s in applied if s == shape]
    if again and draw(st.integers(0, 5)) == 0:
        return draw(st.sampled_from(again)), (first,)
    if draw(st.integers(0, 3)):
        return draw(st.sampled_from(ONE))(draw, shape), (first,)
    second = draw(st.integers(0, len(values) - 1))
    return draw(st.sampled_from(TWO))(draw, shape, tuple(values[second].shape)), (first, second)
