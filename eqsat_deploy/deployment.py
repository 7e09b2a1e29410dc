"""What a rebuilt module carries with it: how it is called, where INT8 is placed in it, and what is known of it.

`optimize` and `quantize` put one `Deployment` on the module; quantization and the engines read it with `deployment`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self
from zlib import crc32

import torch
from torch import Tensor, fx, nn

from eqsat_deploy.calling import CallSpec
from eqsat_deploy.calling import InputSpec as InputSpec
from eqsat_deploy.errors import InputError
from eqsat_deploy.grid import IntegerGrid

if TYPE_CHECKING:
    from eqsat_deploy.report import Report

KEY = "eqsat_deploy"
SAMPLES = 4
"""How many real inputs a module keeps."""

HALVES = (torch.float16, torch.bfloat16)

Structure = Any  # a position among the flat outputs, None, or a tuple, list or dict of these


@dataclass(frozen=True)
class Quantizer:
    """One tensor that is stored as INT8, and the nodes that read its INT8 form.

    A reader that is a view or another operator commuting with quantization (reshape, permute, max-pool)
    hands INT8 on: what reads *its* result needs no quantizer. Other readers are INT8 kernels.
    """

    tensor: str
    readers: tuple[str, ...]


@dataclass(frozen=True)
class PlacedKernel:
    """One launch that the cost model predicts: the nodes it covers, anchor first, and its precision.

    `precision` is `int8` when it computes in integers, otherwise the target's float type. `output` is the
    dtype it writes. `cost` is in the cost model's unit. `channels` is the axis of the anchor's weight, its second
    argument, along which the result's channels lie; None where it has no weight.
    """

    anchor: str
    nodes: tuple[str, ...]
    precision: str
    output: str
    cost: float
    channels: int | None = None


@dataclass(frozen=True)
class Placement:
    """Every quantizer and every kernel of the chosen form, in graph order. `shared` are groups of quantized tensors
    whose codes meet in one concatenation, which therefore need one grid."""

    quantizers: tuple[Quantizer, ...] = ()
    kernels: tuple[PlacedKernel, ...] = ()
    shared: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Batch:
    """The batch sizes an engine is built for: fastest at `typical`, valid from `minimum` to `maximum`.

    `maximum=None` is as large as the engine allows; one that needs a bound (TensorRT) picks its own.
    """

    minimum: int = 1
    typical: int = 1
    maximum: int | None = None

    def __post_init__(self) -> None:
        sizes = (self.minimum, self.typical, self.typical if self.maximum is None else self.maximum)
        if any(not isinstance(size, int) or isinstance(size, bool) for size in sizes):
            raise InputError(f"batch={self}: its sizes are whole numbers")
        if not 1 <= self.minimum <= self.typical <= sizes[2]:
            raise InputError(f"batch={self}: needs 1 <= minimum <= typical <= maximum")


DEFAULT_BATCH = Batch()


@dataclass(frozen=True)
class Signature:
    """How a module is called: its inputs, the structure of its outputs, and the batch sizes allowed.

    `outputs` has a position among the flat outputs wherever the module returns a tensor. `narrow` are the dtypes of
    the flat outputs of a module in half precision, which engines compute in float32; empty for any other.
    """

    inputs: tuple[InputSpec, ...]
    outputs: Structure
    batch: Batch = DEFAULT_BATCH
    narrow: tuple[torch.dtype, ...] = ()

    @classmethod
    def of(cls, module: fx.GraphModule, batch: Batch) -> Self:
        """The signature of a rebuilt module; `InputError` where it has no record, or returns what no engine does."""
        return cls(deployment(module).inputs, _positions(module, flat_outputs(module)), batch)

    def check(self, inputs: Sequence[Tensor]) -> int:
        """The batch size of `inputs` (`typical` where none has a batch axis); `InputError` on a misfit."""
        if len(inputs) != len(self.inputs):
            names = ", ".join(spec.name for spec in self.inputs)
            raise InputError(f"{len(inputs)} inputs given, {len(self.inputs)} expected: {names}")
        sizes: dict[int, str] = {}
        for spec, value in zip(self.inputs, inputs, strict=True):
            _check_input(spec, value)
            for expected, size in zip(spec.shape, value.shape, strict=True):
                if expected is None:
                    sizes[size] = spec.name
        if len(sizes) > 1:
            raise InputError(
                f"inputs disagree on the batch size: { ({name: n for n, name in sizes.items()}) }"
            )
        size = next(iter(sizes), self.batch.typical)
        if size < self.batch.minimum or (self.batch.maximum is not None and size > self.batch.maximum):
            raise InputError(f"batch of {size}: this engine was built for {self.batch}")
        return size

    def pack(self, tensors: Sequence[Tensor]) -> Any:
        """The flat outputs in the module's own structure."""
        return _fill(self.outputs, tensors)

    @property
    def wide(self) -> Signature:
        """The signature in float32 of what an engine computes for a module in half precision."""
        inputs = tuple(replace(s, dtype=torch.float32) if s.dtype in HALVES else s for s in self.inputs)
        return replace(self, inputs=inputs, narrow=())

    def widened(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """`inputs` as an engine takes them: half precision as float32."""
        return tuple(value.float() if value.dtype in HALVES else value for value in inputs)

    def narrowed(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Flat outputs of an engine in the dtypes of the module."""
        if not self.narrow:
            return tensors
        return [value.to(dtype) for value, dtype in zip(tensors, self.narrow, strict=True)]

    def zeros(self, size: int) -> tuple[Tensor, ...]:
        """Inputs of zeros at batch `size`."""
        shapes = ([size if n is None else n for n in spec.shape] for spec in self.inputs)
        return tuple(
            torch.zeros(shape, dtype=spec.dtype) for shape, spec in zip(shapes, self.inputs, strict=True)
        )

    def to_json(self) -> dict[str, Any]:
        """The signature as JSON values."""
        return {
            "inputs": [
                {
                    "name": spec.name,
                    "shape": list(spec.shape),
                    "dtype": str(spec.dtype).removeprefix("torch."),
                }
                for spec in self.inputs
            ],
            "outputs": _encode(self.outputs),
            "narrow": [str(dtype).removeprefix("torch.") for dtype in self.narrow],
            "batch": {
                "minimum": self.batch.minimum,
                "typical": self.batch.typical,
                "maximum": self.batch.maximum,
            },
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The signature `to_json` wrote."""
        inputs = tuple(
            InputSpec(item["name"], tuple(item["shape"]), getattr(torch, item["dtype"]))
            for item in data["inputs"]
        )
        narrow = tuple(getattr(torch, name) for name in data.get("narrow", ()))
        return cls(inputs, _decode(data["outputs"]), Batch(**data["batch"]), narrow)


@dataclass(frozen=True)
class Deployment:
    """The record of a rebuilt module.

    `call` is how it is called in the original's own structure, None where that is with its `inputs`.
    `target` names what it was optimized for and `grid` the codes that its kernels read, None where its prices are of no
    target. `samples` are a few real inputs in the order of `inputs`, which an engine is compared with the module on.
    `plain` is the form that an engine reaches by itself, for comparison, and `fingerprint` that of the module's weights
    when the two were the same function.
    """

    inputs: tuple[InputSpec, ...]
    placement: Placement = Placement()
    call: CallSpec | None = None
    target: str | None = None
    grid: IntegerGrid | None = None
    samples: tuple[Tensor, ...] = ()
    report: Report | None = None
    plain: fx.GraphModule | None = None
    fingerprint: int = 0


def deployment(module: nn.Module) -> Deployment:
    """The record that `module` carries.

    Raises:
        InputError: it carries none.
    """
    found = getattr(module, "meta", {}).get(KEY)
    if not isinstance(found, Deployment):
        raise InputError(
            f"{type(module).__name__} carries no record of how it is deployed: pass what optimize() or quantize() "
            "returned"
        )
    return found


def record(module: fx.GraphModule, **changes: Any) -> None:
    """Change fields of the record that `module` carries, which gets one where it has none."""
    known = module.meta.get(KEY)
    module.meta[KEY] = Deployment(**changes) if known is None else replace(known, **changes)


def samples_of(
    inputs: Sequence[InputSpec], values: Sequence[Tensor], count: int = SAMPLES
) -> tuple[Tensor, ...]:
    """Copies of the first `count` samples of a batch; an input without a batch axis whole."""
    kept = []
    for spec, value in zip(inputs, values, strict=True):
        axis = next((i for i, size in enumerate(spec.shape) if size is None), None)
        few = value if axis is None else value.narrow(axis, 0, min(count, value.shape[axis]))
        kept.append(few.detach().clone())
    return tuple(kept)


def fingerprint(module: nn.Module) -> int:
    """A checksum over names and values of the module's parameters and buffers, the same on every machine."""
    total = 0
    for name, value in sorted(module.state_dict().items()):
        total = crc32(name.encode(), total)
        total = crc32(
            value.detach().cpu().reshape(-1).view(torch.uint8).numpy().data if value.numel() else b"", total
        )
    return total


def comparable(module: fx.GraphModule) -> fx.GraphModule | None:
    """The plain form, if it still computes what `module` does: None once the weights of `module` have changed."""
    known = deployment(module)
    return known.plain if known.plain is not None and fingerprint(module) == known.fingerprint else None


def flat_outputs(module: fx.GraphModule) -> tuple[fx.Node, ...]:
    """The distinct nodes a module returns, in the order of its output structure."""
    output = module.graph.output_node()
    nodes: dict[fx.Node, None] = {}
    fx.map_arg(output.args[0], lambda node: nodes.setdefault(node))
    return tuple(nodes)


def _check_input(spec: InputSpec, value: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise InputError(f"input {spec.name!r}: a tensor is expected, not {type(value).__name__}")
    if value.dtype != spec.dtype:
        raise InputError(f"input {spec.name!r}: {spec.dtype} is expected, not {value.dtype}")
    fits = len(value.shape) == len(spec.shape) and all(
        expected in (None, size) for expected, size in zip(spec.shape, value.shape, strict=True)
    )
    if not fits:
        shape = "x".join("batch" if n is None else str(n) for n in spec.shape)
        raise InputError(f"input {spec.name!r}: shape {shape} is expected, not {tuple(value.shape)}")


def _positions(module: fx.GraphModule, nodes: tuple[fx.Node, ...]) -> Structure:
    position = {node: index for index, node in enumerate(nodes)}

    def visit(value: object) -> Structure:
        match value:
            case fx.Node():
                return position[value]
            case None:
                return None
            case dict():
                return {str(key): visit(item) for key, item in value.items()}
            case tuple():
                return tuple(visit(item) for item in value)
            case list():
                return [visit(item) for item in value]
        raise InputError(f"the module returns {value!r}; engines return tensors, tuples, lists and dicts")

    return visit(module.graph.output_node().args[0])


def _fill(structure: Structure, tensors: Sequence[Tensor]) -> Any:
    match structure:
        case int():
            return tensors[structure]
        case dict():
            return {key: _fill(item, tensors) for key, item in structure.items()}
        case tuple():
            return tuple(_fill(item, tensors) for item in structure)
        case list():
            return [_fill(item, tensors) for item in structure]
    return None


def _encode(structure: Structure) -> Any:
    match structure:
        case dict():
            return {"dict": {key: _encode(item) for key, item in structure.items()}}
        case tuple():
            return {"tuple": [_encode(item) for item in structure]}
        case list():
            return {"list": [_encode(item) for item in structure]}
    return structure


def _decode(data: Any) -> Structure:
    match data:
        case {"dict": items}:
            return {key: _decode(item) for key, item in items.items()}
        case {"tuple": items}:
            return tuple(_decode(item) for item in items)
        case {"list": items}:
            return [_decode(item) for item in items]
    return data
