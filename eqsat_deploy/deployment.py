"""What a rebuilt module carries with it: how it is called, where INT8 is placed in it, and what is known of it.

`optimize` and `quantize` put one `Deployment` on the module; quantization and the engines read it with `deployment`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any, Self, TypeVar
from zlib import crc32

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from eqsat_deploy.calling import CallSpec, Fixed, batch_size
from eqsat_deploy.calling import InputSpec as InputSpec
from eqsat_deploy.calling_json import call_from_json, call_to_json, value_from_json, value_to_json
from eqsat_deploy.errors import InputError
from eqsat_deploy.grid import IntegerGrid
from eqsat_deploy.noise import Fidelity

if TYPE_CHECKING:
    from eqsat_deploy.quantization.reconstruction import Draft
    from eqsat_deploy.report import Report

KEY = "eqsat_deploy"
Module = TypeVar("Module", bound=nn.Module)
SAMPLES = 4
"""How many real inputs a module keeps."""

HALVES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Quantizer:
    """One tensor that is stored as INT8, and the nodes that read its INT8 form: INT8 kernels, or what commutes with
    quantization (views, max-pools) and hands INT8 on, so that what reads *its* result needs no quantizer.

    `cost` is that of a pass of its own, in the cost model's unit; 0 where the kernel that computes the tensor rounds.
    """

    tensor: str
    readers: tuple[str, ...]
    cost: float = 0.0


@dataclass(frozen=True)
class PlacedKernel:
    """One launch that the cost model predicts: the nodes it covers, anchor first, and its precision.

    `precision` is `int8` when it computes in integers, otherwise the target's float type; `output` the dtype it writes.
    `cost` is in the cost model's unit, `float_cost` what an INT8 kernel would cost in float, `wide_cost` and
    `float_wide_cost` these where it writes floats instead of codes; None where there is no such kernel, or it is not
    known. `channels` is the axis of the weight, the anchor's second argument, along which the result's lie, if any.
    """

    anchor: str
    nodes: tuple[str, ...]
    precision: str
    output: str
    cost: float
    channels: int | None = None
    float_cost: float | None = None
    wide_cost: float | None = None
    float_wide_cost: float | None = None


@dataclass(frozen=True)
class Formula:
    """A tensor in terms of others: the operator `name` on formulas and attributes `args`; without these, the tensor of
    that name."""

    name: str
    args: tuple[Any, ...] = ()

    def value(self, given: Mapping[str, Tensor]) -> Tensor:
        """Its value, of tensors by their names."""
        if not self.args:
            return given[self.name]
        from eqsat_deploy.language import OPERATORS  # not for what is loaded

        operator = OPERATORS[self.name]
        operands, attributes = operator.split(self.args)
        values = tuple(operand.value(given) for operand in operands)
        found: Tensor = operator.body(*operator.join(values, attributes))
        return found


@dataclass(frozen=True)
class Taking:
    """A node that takes a scale in, by `rules`: what its module's parameters become, by their names, in terms of what
    they are and of `scale`."""

    node: str
    parameters: Mapping[str, Formula]
    rules: tuple[str, ...]


@dataclass(frozen=True)
class FreeScale:
    """A quantized tensor that may be divided before it is rounded, by a positive number for each channel, in a `shape`
    that broadcasts over it: `readers` take in what it is divided by.

    `writers` take in the division, which then costs no time; there are none where the tensor itself has to be divided.
    With a `ceiling`, what is left is to be clipped at that, divided as well: the node of the tensor clips no more.
    """

    tensor: str
    shape: tuple[int, ...]
    readers: tuple[Taking, ...]
    writers: tuple[Taking, ...] = ()
    ceiling: float | None = None


@dataclass(frozen=True)
class Scaled:
    """A tensor whose channels calibration has divided before they are rounded to INT8, by numbers from `least` to 1.

    `readers` are the nodes that have taken in what it is divided by, `writers` those that divide it, none where the
    engine does, and `rules` those by which it moved there.
    """

    tensor: str
    least: float
    readers: tuple[str, ...]
    writers: tuple[str, ...]
    rules: tuple[str, ...]


@dataclass(frozen=True)
class Placement:
    """Every quantizer and every kernel of the chosen form, in graph order.

    `shared` are groups of quantized tensors whose codes meet in a concatenation that a product, a sum or a mean reads,
    and which therefore need one grid. `joined` are those and, in larger groups, what meets in concatenations that are
    only scaled and shifted by the channel: they need one grid where the target has one scale for all channels.
    `scales` are those that calibration may choose.
    """

    quantizers: tuple[Quantizer, ...] = ()
    kernels: tuple[PlacedKernel, ...] = ()
    shared: tuple[tuple[str, ...], ...] = ()
    joined: tuple[tuple[str, ...], ...] = ()
    scales: tuple[FreeScale, ...] = ()


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
    """How a module is called, where its outputs come from, and the batch sizes allowed.

    `outputs` has for every leaf of the results, in the order of pytree, its position among the flat outputs, or the
    value that it always has. `narrow` are the dtypes of the flat outputs of a module in half precision, which engines
    compute in float32; empty for any other.
    """

    call: CallSpec
    outputs: tuple[int | Fixed, ...]
    batch: Batch = DEFAULT_BATCH
    narrow: tuple[torch.dtype, ...] = ()

    @classmethod
    def of(cls, module: fx.GraphModule, batch: Batch) -> Self:
        """The signature of a rebuilt module; `InputError` where it has no record, or free sizes besides the batch."""
        for spec in call_of(module).inputs:
            if spec.shape.count(None) > 1:
                raise InputError(
                    f"input {spec.name!r} has free sizes besides the batch, {list(spec.shape)}: engines need them fixed"
                    "; for lengths of sequences, optimize(..., buckets=...) makes an engine for each of a few"
                )
        position = {node: index for index, node in enumerate(flat_outputs(module))}
        leaves = pytree.tree_leaves(module.graph.output_node().args[0])
        outputs = (
            position[leaf] if isinstance(leaf, fx.Node) else Fixed(f"output {index}", leaf)
            for index, leaf in enumerate(leaves)
        )
        return cls(call_of(module), tuple(outputs), batch)

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """The tensors that it takes, in order."""
        return self.call.inputs

    @cached_property
    def results(self) -> int:
        """How many flat outputs there are."""
        return len({output for output in self.outputs if isinstance(output, int)})

    def check(self, inputs: Sequence[Tensor]) -> int:
        """The batch size of `inputs` (`typical` where none has a batch axis); `InputError` on a misfit."""
        size = batch_size(self.inputs, inputs)
        if size is None:
            return self.batch.typical
        if size < self.batch.minimum or (self.batch.maximum is not None and size > self.batch.maximum):
            raise InputError(f"batch of {size}: this engine was built for {self.batch}")
        return size

    def pack(self, tensors: Sequence[Tensor]) -> Any:
        """The flat outputs in the module's own structure."""
        return self.call.pack([tensors[o] if isinstance(o, int) else o.value for o in self.outputs])

    @property
    def wide(self) -> Signature:
        """The signature in float32 of what an engine computes for a module in half precision."""

        def wider(leaf: InputSpec | Fixed) -> InputSpec | Fixed:
            if isinstance(leaf, InputSpec) and leaf.dtype in HALVES:
                return replace(leaf, dtype=torch.float32)
            return leaf

        arguments = tuple(replace(a, leaves=tuple(map(wider, a.leaves))) for a in self.call.arguments)
        return replace(self, call=replace(self.call, arguments=arguments), narrow=())

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
        """The signature as JSON values; `InputError` where an output is a constant that JSON has no form for."""
        unwritten: list[Any] = []
        outputs = [
            o if isinstance(o, int) else {"name": o.name, "value": value_to_json(o.value, unwritten)}
            for o in self.outputs
        ]
        if unwritten:
            raise InputError(f"the module returns {unwritten[0]!r}, which an artifact cannot keep")
        return {
            "call": call_to_json(self.call),
            "outputs": outputs,
            "narrow": [str(dtype).removeprefix("torch.") for dtype in self.narrow],
            "batch": asdict(self.batch),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The signature `to_json` wrote."""
        outputs = tuple(
            o if isinstance(o, int) else Fixed(o["name"], value_from_json(o["value"]))
            for o in data["outputs"]
        )
        narrow = tuple(getattr(torch, name) for name in data["narrow"])
        return cls(call_from_json(data["call"]), outputs, Batch(**data["batch"]), narrow)


@dataclass(frozen=True)
class Deployment:
    """The record of a rebuilt module.

    `call` is how it is called in the original's own structure, None where that is with its `inputs`. `modules` has the
    path of a module of the original for the graph nodes that are from one.
    `target` names what it was optimized for and `grid` the codes that its kernels read, None where its prices are of no
    target. `samples` are a few real inputs in the order of `inputs`, which an engine is compared with the module on.
    `plain` is the form that an engine reaches by itself, for comparison, and `fingerprint` that of the module's weights
    when the two were the same function. `fidelity` is that of the outputs of a quantized module with those in
    float on calibration data; None where it was not measured. `draft` is what a quantized module still has to be
    repaired with, should it be needed. `scaled` are the tensors whose channels calibration has divided.
    """

    inputs: tuple[InputSpec, ...]
    placement: Placement = Placement()
    call: CallSpec | None = None
    modules: Mapping[str, str] = field(default_factory=dict)
    target: str | None = None
    grid: IntegerGrid | None = None
    samples: tuple[Tensor, ...] = ()
    report: Report | None = None
    plain: fx.GraphModule | None = None
    fingerprint: int = 0
    fidelity: Fidelity | None = None
    draft: Draft | None = None
    scaled: tuple[Scaled, ...] = ()

    def __repr__(self) -> str:
        integer = sum(kernel.precision == "int8" for kernel in self.placement.kernels)
        return (
            f"Deployment({', '.join(map(str, self.inputs))}; {len(self.placement.kernels)} kernels, {integer} of them "
            f"INT8; target {self.target})"
        )


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


def call_of(module: fx.GraphModule) -> CallSpec:
    """How `module` is called: as its record says, with its inputs one by one where that says nothing.

    Raises:
        InputError: it carries no record.
    """
    known = deployment(module)
    return known.call or CallSpec.plain(known.inputs, _plain_containers(module.graph.output_node().args[0]))


def record(module: fx.GraphModule, **changes: Any) -> None:
    """Change fields of the record that `module` carries, which gets one where it has none."""
    known = module.meta.get(KEY)
    module.meta[KEY] = Deployment(**changes) if known is None else replace(known, **changes)


def copied(module: Module) -> Module:
    """A deep copy of `module` with the very record of it, which may hold another module."""
    meta = getattr(module, "meta", {})
    return copy.deepcopy(module, {id(meta): dict(meta)})


def at_rest(module: Module) -> Module:
    """`module` in eval mode on the CPU: itself where it is, else a copy."""
    module = located(module, torch.device("cpu"))
    return copied(module).eval() if any(part.training for part in module.modules()) else module


def device_of(model: nn.Module | ExportedProgram) -> torch.device:
    """Where the model's first parameter is; the CPU where it has none."""
    held = (
        chain(model.parameters(), model.buffers())
        if isinstance(model, nn.Module)
        else chain(model.state_dict.values(), model.constants.values())
    )
    return next((value.device for value in held if isinstance(value, Tensor)), torch.device("cpu"))


def located(module: Module, device: torch.device) -> Module:
    """`module` with its record on `device`: itself where it is there, else a copy."""
    if device_of(module) == device:
        return module
    moved = copied(module).to(device)
    known = deployment(moved)
    samples = tuple(value.to(device) for value in known.samples)
    record(moved, samples=samples, draft=known.draft and known.draft.to(device))  # type: ignore[arg-type]
    return moved


def samples_of(
    inputs: Sequence[InputSpec], values: Sequence[Tensor], count: int = SAMPLES
) -> tuple[Tensor, ...]:
    """Copies of the first `count` samples of a batch; an input without a batch axis whole."""
    kept = []
    for spec, value in zip(inputs, values, strict=True):
        axis = spec.batch_axis
        few = value if axis is None else value.narrow(axis, 0, min(count, value.shape[axis]))
        kept.append(few.detach().clone())
    return tuple(kept)


def split(inputs: Sequence[InputSpec], values: Sequence[Tensor], count: int) -> list[tuple[Tensor, ...]]:
    """A batch in batches of `count` samples each, the last perhaps of fewer; what has no batch axis is in all."""
    axes = [spec.batch_axis for spec in inputs]
    parts = [
        None if axis is None else torch.split(value, count, axis)
        for value, axis in zip(values, axes, strict=True)
    ]
    batches = min((len(part) for part in parts if part is not None), default=1)
    return [
        tuple(value if part is None else part[index] for value, part in zip(values, parts, strict=True))
        for index in range(batches)
    ]


def fingerprint(module: nn.Module) -> int:
    """A checksum over names and values of the module's parameters and buffers, the same on every machine."""
    total = 0
    for name, value in sorted(module.state_dict().items()):
        total = checksum(value, crc32(name.encode(), total))
    return total


def checksum(values: Tensor, total: int = 0) -> int:
    """A checksum over the values of a tensor, that goes on from `total`."""
    values = values.detach().cpu().reshape(-1)
    return crc32(values.view(torch.uint8).numpy().data if values.numel() else b"", total)


def comparable(module: fx.GraphModule) -> fx.GraphModule | None:
    """The plain form, where `module` is, if it still computes what that does: None once its weights have changed."""
    known = deployment(module)
    if known.plain is None or fingerprint(module) != known.fingerprint:
        return None
    return located(known.plain, device_of(module))


def flat_outputs(module: fx.GraphModule) -> tuple[fx.Node, ...]:
    """The distinct nodes a module returns, in the order of its output structure."""
    output = module.graph.output_node()
    nodes: dict[fx.Node, None] = {}
    fx.map_arg(output.args[0], lambda node: nodes.setdefault(node))
    return tuple(nodes)


def _plain_containers(value: Any) -> Any:
    """`value` out of a graph, whose lists and dicts cannot be changed, in lists and dicts that can."""
    match value:
        case dict():
            return {key: _plain_containers(item) for key, item in value.items()}
        case list():
            return [_plain_containers(item) for item in value]
        case tuple() if type(value) is tuple:
            return tuple(map(_plain_containers, value))
    return value
