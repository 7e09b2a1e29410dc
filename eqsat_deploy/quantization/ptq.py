"""Post-training quantization: quantizers where the placement has them, scales from calibration batches."""

from __future__ import annotations

import copy
import itertools
import operator
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from eqsat_deploy.deployment import (
    InputSpec,
    Placement,
    Quantizer,
    Signature,
    comparable,
    deployment,
    fingerprint,
    record,
)
from eqsat_deploy.errors import InputError, QuantizationError, UnknownNameError
from eqsat_deploy.quantization.fake_quantize import (
    FakeQuantize,
    QuantizedConv2d,
    QuantizedConvTranspose2d,
    QuantizedLinear,
)
from eqsat_deploy.quantization.observers import OBSERVERS, Observer

# Where the weight of a functional call is, and which of its axes is the output channel's.
WEIGHT_AXES: dict[Any, int] = {
    F.conv2d: 0,
    torch.conv2d: 0,
    F.linear: 0,
    F.conv_transpose2d: 1,
    torch.conv_transpose2d: 1,
    torch.matmul: -1,
}

CONCATENATIONS = (torch.cat, torch.concat, torch.concatenate)
# What quantization commutes with: these hand INT8 on with the scale they were given.
COMMUTING = frozenset(
    {
        *(torch.reshape, torch.permute, torch.transpose, torch.flatten, torch.squeeze, torch.unsqueeze),
        *(torch.narrow, torch.split, torch.chunk, operator.getitem, F.max_pool2d, torch.max_pool2d),
        *(F.pixel_shuffle, F.relu, torch.relu, nn.MaxPool2d, nn.Flatten, nn.ReLU, nn.Identity),
        *CONCATENATIONS,
    }
)


def quantize(
    module: fx.GraphModule,
    batches: Iterable[Any],
    *,
    observer: str | Callable[[], Observer] = "minmax",
    symmetric: bool = True,
    unsigned: bool = True,
    learnable: bool = False,
) -> fx.GraphModule:
    """A copy of `module` that rounds to INT8 exactly where its record says so.

    Every `Quantizer` becomes one `FakeQuantize` between the tensor and its readers, and the anchor of every
    int8 kernel rounds its weight per output channel; biases stay float. Quantizers whose tensors meet in one
    concatenation share a grid. `meta` is kept. Training the result is quantization-aware training.

    Args:
        module: a rebuilt module; it is not changed.
        batches: calibration data, one forward pass each: a tensor, a tuple or list of inputs, a dict of
            inputs by name, or a pair of one of these and labels. Any batch size.
        observer: `minmax`, `percentile`, `entropy`, `mse`, or a function returning a new `Observer`.
        symmetric: zero points are 0 (TensorRT has no other); otherwise activations are uint8 with zero
            points.
        unsigned: activations never negative in calibration become uint8, which halves their rounding error;
            TensorRT has no uint8.
        learnable: scales are parameters that training adapts (LSQ).

    Raises:
        QuantizationError: no batches; one that does not fit the inputs; NaN or infinity, naming the batch or
            the node; a placement that names what the module does not have.
        UnknownNameError: no observer of that name.
    """
    plain = comparable(module)
    forms = [_Watched(form, _observer_factory(observer)) for form in (module, plain) if form is not None]
    _calibrate([form.module for form in forms], deployment(module).inputs, batches)
    quantized, *others = [form.quantized(symmetric, unsigned, learnable) for form in forms]
    record(quantized, plain=next(iter(others), None), fingerprint=fingerprint(quantized))
    return quantized


class _Watched:
    """A copy of a module whose quantizers are to be, with a watch where each will stand."""

    def __init__(self, module: fx.GraphModule, make_observer: Callable[[], Observer]) -> None:
        self.placement = deployment(module).placement
        self.module = copy.deepcopy(module).eval()
        self.module.meta = dict(module.meta)
        self.nodes = _Nodes({node.name: node for node in self.module.graph.nodes})
        self.watches = _insert_watches(self.module, self.nodes, self.placement, make_observer)
        self.module.recompile()

    def quantized(self, symmetric: bool, unsigned: bool, learnable: bool) -> fx.GraphModule:
        """The copy, watches replaced by what they have seen."""
        for target, watch in self.watches.items():
            grid = watch.checked().grid(symmetric=symmetric, unsigned=unsigned)
            setattr(
                self.module, target, FakeQuantize.of_grid(grid, learnable=learnable).to(_device(self.module))
            )
        for kernel in self.placement.kernels:
            if kernel.precision == "int8":
                _quantize_weight(self.module, self.nodes[kernel.anchor], learnable)
        self.module.recompile()
        return self.module


class _Nodes(dict[str, fx.Node]):
    """The placed graph's nodes by name, before anything is inserted."""

    def __missing__(self, name: str) -> fx.Node:
        raise QuantizationError(
            f"placement: the module has no node {name!r}; it was changed after optimize()"
        )


class _Watch(nn.Module):
    """Stands where a quantizer will be and hands what passes to an observer."""

    def __init__(self, tensor: str, observer: Observer) -> None:
        super().__init__()
        self.tensor = tensor
        self.observer = observer

    def forward(self, values: Tensor) -> Tensor:
        self.observer.update(values)
        return values

    def checked(self) -> Observer:
        low, high = self.observer.minimum, self.observer.maximum
        if low != low or high != high or low == float("-inf") or high == float("inf"):
            if low > high:
                raise QuantizationError(f"{self.tensor!r} was empty in every calibration batch")
            raise QuantizationError(
                f"{self.tensor!r} has NaN or infinite values during calibration (range {low} to {high}): "
                "the float module itself overflows on this data; check the inputs' normalization"
            )
        return self.observer


def _observer_factory(observer: str | Callable[[], Observer]) -> Callable[[], Observer]:
    if not isinstance(observer, str):
        return observer
    if observer not in OBSERVERS:
        raise UnknownNameError("observer", observer, OBSERVERS)
    return OBSERVERS[observer]


def _insert_watches(
    module: fx.GraphModule, nodes: _Nodes, placement: Placement, make_observer: Callable[[], Observer]
) -> dict[str, _Watch]:
    """One watch per group of quantizers that share a grid, by the name of its submodule."""
    watches: dict[str, _Watch] = {}
    for group in _sharing(module, nodes, placement.quantizers):
        target = f"{group[0].tensor}_quantizer"
        watches[target] = _Watch(group[0].tensor, make_observer())
        module.add_submodule(target, watches[target])
        for quantizer in group:
            tensor = nodes[quantizer.tensor]
            with module.graph.inserting_after(_after(tensor)):
                inserted = module.graph.create_node(
                    "call_module", target, (tensor,), name=f"{quantizer.tensor}_quantizer"
                )
            for name in quantizer.readers:
                reader = nodes[name]
                if tensor not in reader.all_input_nodes:
                    raise QuantizationError(f"placement: {name!r} does not read {quantizer.tensor!r}")
                reader.replace_input_with(tensor, inserted)
    return watches


def _sharing(module: fx.GraphModule, nodes: _Nodes, quantizers: Sequence[Quantizer]) -> list[list[Quantizer]]:
    """Quantizers in groups that share a grid: those whose tensors one concatenation joins in INT8."""
    groups: dict[str, list[Quantizer]] = {}
    owner: dict[fx.Node, str] = {}  # of a concatenation, the group that reaches it
    for tensor, count in Counter(quantizer.tensor for quantizer in quantizers).items():
        if count > 1:
            raise QuantizationError(f"placement: {tensor!r} has {count} quantizers")
    for quantizer in quantizers:
        joins = _concatenations(module, [nodes[name] for name in quantizer.readers])
        met = sorted({owner[join] for join in joins if join in owner}, key=list(groups).index)
        merged = [*itertools.chain.from_iterable(groups.pop(name) for name in met), quantizer]
        name = merged[0].tensor
        groups[name] = merged
        owner = {join: name if first in met else first for join, first in owner.items()}
        owner |= dict.fromkeys(joins, name)
    return list(groups.values())


def _concatenations(module: fx.GraphModule, readers: Sequence[fx.Node]) -> set[fx.Node]:
    """The concatenations that `readers` are or lead to through operators that hand INT8 on."""
    found: set[fx.Node] = set()
    for reader in readers:
        if reader.target in CONCATENATIONS:
            found.add(reader)
        kind = type(module.get_submodule(str(reader.target))) if reader.op == "call_module" else reader.target
        if kind in COMMUTING:
            found |= _concatenations(module, list(reader.users))
    return found


def _quantize_weight(module: fx.GraphModule, anchor: fx.Node, learnable: bool) -> None:
    """Make an int8 kernel's anchor round its weight; anchors without one (pool, add) need nothing."""
    if anchor.op == "call_module":
        target = str(anchor.target)
        parent, _, name = target.rpartition(".")
        child = module.get_submodule(target)
        replacement: nn.Module
        match child:
            case QuantizedConv2d() | QuantizedConvTranspose2d() | QuantizedLinear():
                return  # another call of the same layer
            case nn.Conv2d():
                replacement = QuantizedConv2d.from_float(child, learnable=learnable)
            case nn.ConvTranspose2d():
                replacement = QuantizedConvTranspose2d.from_float(child, learnable=learnable)
            case nn.Linear():
                replacement = QuantizedLinear.from_float(child, learnable=learnable)
            case _:
                return
        setattr(module.get_submodule(parent), name, replacement)
        return
    axis = WEIGHT_AXES.get(anchor.target)
    weight = anchor.args[1] if axis is not None and len(anchor.args) > 1 else None
    if axis is None or not isinstance(weight, fx.Node) or weight.op != "get_attr":
        return
    target = f"{anchor.name}_weight_quantizer"
    fake = FakeQuantize.of_weight(_attribute(module, str(weight.target)), axis, learnable=learnable)
    module.add_submodule(target, fake)
    with module.graph.inserting_before(anchor):
        anchor.replace_input_with(
            weight, module.graph.create_node("call_module", target, (weight,), name=target)
        )


def _calibrate(modules: Sequence[nn.Module], specs: tuple[InputSpec, ...], batches: Iterable[Any]) -> None:
    """Run every batch, once, through all the modules."""
    signature = Signature(specs, None)
    device = _device(modules[0])
    count = 0
    with torch.no_grad():
        for count, batch in enumerate(batches, 1):
            inputs = _inputs(batch, signature.inputs, f"calibration batch {count}")
            try:
                signature.check(inputs)
            except InputError as error:
                raise QuantizationError(f"calibration batch {count}: {error}") from error
            for spec, value in zip(signature.inputs, inputs, strict=True):
                if not torch.isfinite(value).all():
                    raise QuantizationError(
                        f"calibration batch {count}: {spec.name!r} has NaN or infinite values"
                    )
            for module in modules:
                module.forward(*(value.to(device) for value in inputs))
    if count == 0:
        raise QuantizationError(
            "no calibration batches: pass an iterable of inputs (a generator is used up after one pass)"
        )


def _inputs(batch: Any, specs: Sequence[InputSpec], where: str) -> tuple[Tensor, ...]:
    """The inputs in order, out of the forms data loaders give them in."""
    if isinstance(batch, Tensor):
        return (batch,)
    if isinstance(batch, Mapping):
        missing = [spec.name for spec in specs if spec.name not in batch]
        if missing:
            raise QuantizationError(f"{where}: no {missing}; it has {sorted(map(str, batch))}")
        return tuple(batch[spec.name] for spec in specs)
    if not isinstance(batch, (tuple, list)):
        raise QuantizationError(f"{where}: a tensor, tuple or dict is expected, not {type(batch).__name__}")
    if batch and not isinstance(batch[0], Tensor):
        return _inputs(batch[0], specs, where)  # (inputs, labels)
    if len(batch) == len(specs) + 1:
        return tuple(batch[:-1])  # (*inputs, labels)
    return tuple(batch)


def _after(node: fx.Node) -> fx.Node:
    """The last placeholder for a placeholder, since placeholders come first; otherwise the node itself."""
    while node.op == "placeholder" and node.next.op == "placeholder":
        node = node.next
    return node


def _attribute(module: nn.Module, target: str) -> Tensor:
    parent, _, name = target.rpartition(".")
    value = getattr(module.get_submodule(parent), name)
    if not isinstance(value, Tensor):
        raise QuantizationError(f"{target!r} is not a tensor")
    return value


def _device(module: nn.Module) -> torch.device:
    tensor = next(itertools.chain(module.parameters(), module.buffers()), None)
    return torch.device("cpu") if tensor is None else tensor.device
