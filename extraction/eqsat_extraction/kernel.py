"""What a cost model prices: one kernel launch, described without torch or egglog."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from math import prod
from typing import Protocol, runtime_checkable

ITEM_BYTES = {
    "float64": 8, "int64": 8, "float32": 4, "int32": 4, "float16": 2, "bfloat16": 2,
    "int16": 2, "int8": 1, "uint8": 1, "bool": 1,
}  # fmt: skip


class Kind(StrEnum):
    """What a launch is to a target, whatever its operator is called: the row of a price table it belongs to."""

    CONVOLUTION = "convolution"
    PRODUCT = "product"
    ATTENTION = "attention"
    WHOLE_ATTENTION = "whole attention"  # with what is around the scaled dot products
    NORMALIZATION = "normalization"
    REDUCTION = "reduction"
    POOL = "pool"
    POINTWISE = "pointwise"
    MOVEMENT = "movement"
    CONCAT = "concat"
    RESAMPLING = "resampling"
    LOOKUP = "lookup"
    CONVERSION = "conversion"  # between float and INT8
    OPAQUE = "opaque"
    VIEW = "view"  # other sizes over the same bytes
    LEAF = "leaf"  # there before anything runs


WEIGHTED = frozenset({Kind.CONVOLUTION, Kind.PRODUCT})
ATTENTIONS = frozenset({Kind.ATTENTION, Kind.WHOLE_ATTENTION})


@dataclass(frozen=True)
class TensorSpec:
    """A tensor a kernel reads or writes: its shape (batch made a number), dtype name and constness."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    constant: bool = False

    @property
    def numel(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        """Size in bytes; an unknown dtype counts four bytes an element."""
        return self.numel * ITEM_BYTES.get(self.dtype, 4)


@dataclass(frozen=True)
class Epilogue:
    """One step that a kernel applies to its result before writing it: an operator and what else it reads."""

    op: str
    operand: TensorSpec | None = None


@dataclass(frozen=True)
class Kernel:
    """One launch: an anchor operator, then its epilogue in order.

    `op` is the anchor's operator name (`conv2d`, `linear`, `softmax`, `quantize`, `opaque`, ...), `kind` what a
    target takes it for: a cost model meets an operator it does not know by its kind. `inputs` are what the
    anchor reads, weights and bias included. A kernel whose first input is `int8` computes in integers;
    `output.dtype` says what it writes. `flops` counts multiplications and additions of anchor and epilogue.
    `attributes` are the operator's own, by name, in declaration order.
    """

    op: str
    kind: Kind
    inputs: tuple[TensorSpec, ...]
    output: TensorSpec
    attributes: tuple[tuple[str, int | float | str | tuple[int, ...]], ...] = ()
    epilogue: tuple[Epilogue, ...] = field(default=())
    flops: float = 0.0

    @property
    def bytes(self) -> int:
        """Bytes moved when every operand is read once and the result written once."""
        operands = sum(step.operand.bytes for step in self.epilogue if step.operand is not None)
        return sum(spec.bytes for spec in self.inputs) + operands + self.output.bytes

    def floating(self, dtype: str) -> Kernel:
        """The kernel that reads what it reads in INT8 as floats of `dtype`, and writes what it writes."""

        def read(spec: TensorSpec) -> TensorSpec:
            return replace(spec, dtype=dtype) if spec.dtype == "int8" else spec

        steps = (s if s.operand is None else replace(s, operand=read(s.operand)) for s in self.epilogue)
        return replace(self, inputs=tuple(map(read, self.inputs)), epilogue=tuple(steps))

    def writing(self, dtype: str) -> Kernel:
        """The kernel that writes its result as `dtype`."""
        return replace(self, output=replace(self.output, dtype=dtype))

    def attribute(self, name: str) -> int | float | str | tuple[int, ...]:
        """The attribute called `name`; `KeyError` names the kernel when there is none."""
        for key, value in self.attributes:
            if key == name:
                return value
        raise KeyError(f"kernel {self.op!r} has no attribute {name!r}")


@runtime_checkable
class CostModel(Protocol):
    """Prices one kernel for one target.

    `float_dtype` is what unquantized tensors are stored as on the target; `int8` says whether the target
    has integer kernels at all; `unit` names what `price` returns (microseconds for a device).
    """

    name: str
    unit: str
    float_dtype: str
    int8: bool

    def price(self, kernel: Kernel) -> float:
        """The non-negative cost of one launch of `kernel`; infinity where the target has no such kernel."""
        ...
