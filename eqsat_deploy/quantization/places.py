"""Where quantizers stand in a graph: watches in their places, and layers that round their weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, fx, nn

from eqsat_deploy.deployment import Placement, Quantizer
from eqsat_deploy.errors import QuantizationError
from eqsat_deploy.grid import IntegerGrid
from eqsat_deploy.quantization.fake_quantize import (
    FakeQuantize,
    QuantizedConv2d,
    QuantizedConvTranspose2d,
    QuantizedLinear,
    channel_axis,
)
from eqsat_deploy.quantization.observers import Observer


class Nodes(dict[str, fx.Node]):
    """The placed graph's nodes by name, before anything is inserted."""

    def __missing__(self, name: str) -> fx.Node:
        raise QuantizationError(
            f"placement: the module has no node {name!r}; it was changed after optimize()"
        )


class Watch(nn.Module):
    """Stands where a quantizer will be and hands what passes to an observer."""

    def __init__(self, tensor: str, observer: Observer) -> None:
        super().__init__()
        self.tensor = tensor
        self.observer = observer

    def forward(self, values: Tensor) -> Tensor:
        """`values`, once they are observed."""
        self.observer.update(values)
        return values

    def checked(self) -> Observer:
        """The observer; `QuantizationError` where it has seen nothing, or no range."""
        low, high = self.observer.minimum, self.observer.maximum
        if low != low or high != high or low == float("-inf") or high == float("inf"):
            if low > high:
                raise QuantizationError(f"{self.tensor!r} was empty in every calibration batch")
            raise QuantizationError(
                f"{self.tensor!r} has NaN or infinite values during calibration (range {low} to {high}): "
                "the float module itself overflows on this data; check the inputs' normalization"
            )
        return self.observer


def _channel_axis(module: fx.GraphModule, readers: Iterable[fx.Node]) -> int | None:
    """Along which axis the layers among `readers` sum over channels; None where they differ, there is none, or a
    concatenation hands on the codes, which then have to be those of the tensor itself."""
    if any(node.target is torch.cat for node in readers):
        return None
    layers = [module.get_submodule(str(node.target)) for node in readers if node.op == "call_module"]
    axes = {
        channel_axis(layer)
        for layer in layers
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)
    }
    return axes.pop() if len(axes) == 1 else None


def insert_watches(
    module: fx.GraphModule,
    nodes: Nodes,
    groups: Sequence[Sequence[Quantizer]],
    make_observer: Callable[[int | None], Observer],
) -> dict[str, Watch]:
    """One watch per group of quantizers that share a grid, by the name of its submodule."""
    watches: dict[str, Watch] = {}
    for group in groups:
        target = f"{group[0].tensor}_quantizer"
        readers = [nodes[name] for quantizer in group for name in quantizer.readers]
        axis = _channel_axis(module, readers) if len(group) == 1 else None
        watches[target] = Watch(group[0].tensor, make_observer(axis))
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


def grid_groups(placement: Placement, grid: IntegerGrid) -> list[list[Quantizer]]:
    """Quantizers in groups that share a grid."""
    groups: dict[str, list[Quantizer]] = {}
    meeting = (*placement.shared, *(() if grid.channels else placement.joined))
    first = {name: group[0] for group in meeting for name in group}
    for tensor, count in Counter(quantizer.tensor for quantizer in placement.quantizers).items():
        if count > 1:
            raise QuantizationError(f"placement: {tensor!r} has {count} quantizers")
    for quantizer in placement.quantizers:
        groups.setdefault(first.get(quantizer.tensor, quantizer.tensor), []).append(quantizer)
    return list(groups.values())


def quantize_weight(module: fx.GraphModule, anchor: fx.Node, axis: int | None, grid: IntegerGrid) -> None:
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
                replacement = QuantizedConv2d.from_float(child, saturating=grid.saturating)
            case nn.ConvTranspose2d():
                replacement = QuantizedConvTranspose2d.from_float(child, saturating=grid.saturating)
            case nn.Linear():
                replacement = QuantizedLinear.from_float(child, saturating=grid.saturating)
            case _:
                return
        setattr(module.get_submodule(parent), name, replacement)
        return
    weight = anchor.args[1] if axis is not None and len(anchor.args) > 1 else None
    if axis is None or not isinstance(weight, fx.Node) or weight.op != "get_attr":
        return
    target = f"{anchor.name}_weight_quantizer"
    fake = FakeQuantize.of_weight(
        _attribute(module, str(weight.target)), axis, groups=1 if grid.saturating else None
    )
    module.add_submodule(target, fake)
    with module.graph.inserting_before(anchor):
        anchor.replace_input_with(
            weight, module.graph.create_node("call_module", target, (weight,), name=target)
        )


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
