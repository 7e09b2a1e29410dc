"""Costs that need no hardware: the number of launches, of arithmetic operations, of bytes moved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile

from eqsat_extraction.kernel import Kernel, Kind


def is_free(kernel: Kernel) -> bool:
    """Whether `kernel` costs nothing at run time: a view, or a result computed at build."""
    return kernel.kind in (Kind.VIEW, Kind.LEAF) or kernel.output.constant


def is_run(kernel: Kernel) -> bool:
    """Whether `kernel` slices elements that follow each other in memory, so that a pointer to the first suffices."""
    if kernel.op != "slice" or kernel.attribute("step") != 1:
        return False
    shapes = zip(kernel.inputs[0].shape, kernel.output.shape, strict=True)
    before = takewhile(lambda pair: pair[0] == pair[1], shapes)
    return all(size == 1 for size, _ in before)


@dataclass(frozen=True)
class CountingModel:
    """Prices a kernel by counting; views, slices that are one, and constants count zero.

    Everything is float32, nothing is INT8.
    """

    name: str
    unit: str
    count: Callable[[Kernel], float]
    float_dtype: str = "float32"
    int8: bool = False

    def price(self, kernel: Kernel) -> float:
        """What `count` says of a kernel that is launched, and 0 of a free one."""
        return 0.0 if is_free(kernel) or is_run(kernel) else self.count(kernel)


def kernels() -> CountingModel:
    """Number of launches."""
    return CountingModel("kernels", "launches", lambda kernel: 1.0)


def flops() -> CountingModel:
    """Multiplications and additions, epilogues included; moving data is free."""
    return CountingModel("flops", "FLOP", lambda kernel: kernel.flops)


def bytes() -> CountingModel:
    """Bytes read and written when every operand is read once."""
    return CountingModel("bytes", "B", lambda kernel: float(kernel.bytes))
