"""A module in OpenVINO's operators, with FakeQuantize exactly where quantization put it, and the module's names."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.export import default_decompositions

from eqsat_deploy.deployment import Signature
from eqsat_deploy.engines.openvino_graph import written
from eqsat_deploy.engines.openvino_products import as_convolutions
from eqsat_deploy.engines.openvino_writing import Unwritten
from eqsat_deploy.engines.program import composites, export_program, node_origins, traced
from eqsat_deploy.errors import EngineError
from eqsat_deploy.openvino_compiled import ANY, reshape
from eqsat_deploy.processors import saturating
from eqsat_deploy.quantization.fake_quantize import FakeQuantize, swapped

aten = torch.ops.aten
LOST = 1e-5
"""What is smaller OpenVINO takes for zero."""


def model_of(module: fx.GraphModule, signature: Signature) -> Any:
    """OpenVINO's model of `module`, which is prepared, dynamic in the batch; `EngineError` when torch or OpenVINO
    refuses it."""
    model, origins = _converted(module, signature.wide)
    _name(model, signature, origins)
    reshape(model, [spec.shape for spec in signature.inputs], ANY)
    _pad_pools(model)
    _add_biases_last(model)
    if saturating():
        as_convolutions(model)
        number(model)
    return model


@torch.library.custom_op("eqsat_deploy::fake_quantize", mutates_args=())
def _fake_quantize(
    values: Tensor, scale: Tensor, zero_point: Tensor, axis: int, low: int, high: int
) -> Tensor:
    """One node in the exported program for what `_translate` turns into one FakeQuantize; never run."""
    raise NotImplementedError("exists for export only")


@_fake_quantize.register_fake
def _(values: Tensor, scale: Tensor, zero_point: Tensor, axis: int, low: int, high: int) -> Tensor:
    return torch.empty_like(values)


class _Marker(nn.Module):
    """Exports as `_fake_quantize` what a FakeQuantize does."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, fake: FakeQuantize) -> None:
        super().__init__()
        self.register_buffer("scale", fake.step)
        self.register_buffer("zero_point", fake.zero_point)
        self.axis = -1 if fake.axis is None else fake.axis
        self.low, self.high = int(fake.low), int(fake.high)

    def forward(self, values: Tensor) -> Tensor:
        marked: Tensor = _fake_quantize(values, self.scale, self.zero_point, self.axis, self.low, self.high)
        return marked


def _converted(module: fx.GraphModule, signature: Signature) -> tuple[Any, dict[str, str]]:
    """OpenVINO's model of `module`, and the module's nodes that its operators are from, by the operators' names.

    Written node by node where every function is known. Else one tracing does for what the language knows;
    `torch.export`, three times as long, for what opaque calls may do.
    """
    with suppress(Unwritten):
        origins = {node.name: node.name for node in module.graph.nodes if node.op.startswith("call")}
        return _transformed(written(module, signature)), origins
    module, errors = swapped(module, _Marker), []
    for lowered in (_traced, _exported):
        graph = None
        try:
            graph = lowered(module, signature, _decompositions())
            return _transformed(_of_graph(graph)), node_origins(graph.graph)
        except EngineError as error:
            errors.append(str(error))
        except Exception as error:  # neither the tracing's nor the frontend's errors have a common base
            errors.append(_reason(str(error), graph))
    raise EngineError(errors[-1])


def _reason(message: str, graph: fx.GraphModule | None) -> str:
    """Why a module cannot be converted: the operators that OpenVINO does not have and their nodes, if it says so."""
    found = re.search(r"No conversion rule found for operations: (.*)", message)
    if found is None or graph is None:
        return f"OpenVINO cannot convert the module: {message}"
    missing, origins = found[1].split(", "), node_origins(graph.graph)
    nodes = dict.fromkeys(origins.get(n.name, n.name) for n in graph.graph.nodes if str(n.target) in missing)
    return (
        f"OpenVINO has no operator for {', '.join(missing)} (node {', '.join(nodes)}): compute that outside the model, "
        "or build for another engine"
    )


def _of_graph(graph: fx.GraphModule) -> Any:
    """What `openvino.convert_model` makes of `graph`, by its steps: it would take operators apart by itself, too, so
    that names could not be traced back to the module's, prepare inputs that need no preparation, and report its use."""
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

    from eqsat_deploy.engines.openvino_operators import extensions

    frontend = FrontEndManager().load_by_framework("pytorch")
    for extension in (_extension(), *extensions()):
        frontend.add_extension(extension)
    decoder = TorchFXPythonDecoder(graph, dynamic_shapes=True)  # which the frontend does not keep alive
    return frontend.convert(frontend.load(decoder))


def _transformed(model: Any) -> Any:
    """`model` as OpenVINO's converter leaves it, its rounded weights as codes."""
    from openvino._offline_transformations import (
        apply_moc_transformations,
        compress_quantize_weights_transformation,
    )

    apply_moc_transformations(model, cf=False, smart_reshape=True)
    compress_quantize_weights_transformation(model)
    return model


def _decompositions() -> Any:
    """Of all operators that the frontend does not know."""
    from openvino.frontend.pytorch.torchdynamo.export_decompositions import ops_to_not_decompose

    from eqsat_deploy.engines.openvino_operators import DECOMPOSITIONS

    table: Any = default_decompositions()
    for operator in ops_to_not_decompose():
        table.pop(operator, None)
    table.update(DECOMPOSITIONS)
    return table


def _traced(module: fx.GraphModule, signature: Signature, table: Any) -> fx.GraphModule:
    from openvino.frontend.pytorch.torchdynamo.export_decompositions import ops_to_not_decompose

    return traced(
        module, signature, {**composites(ops_to_not_decompose()), **dict(table.items()), **_SPELLED}
    )


def _exported(module: fx.GraphModule, signature: Signature, table: Any) -> fx.GraphModule:
    program = export_program(module, signature)
    with warnings.catch_warnings():  # torch copies pytree leaves in a way that it deprecates itself
        warnings.simplefilter("ignore", FutureWarning)
        decomposed: fx.GraphModule = program.run_decompositions(table).module()
    return decomposed


def _as_view(values: Tensor, shape: Sequence[int]) -> Tensor:
    """The one spelling of a reshape that the frontend knows."""
    return aten.view(values.contiguous(), shape)  # type: ignore[no-any-return]


def _pooled(values: Tensor, size: Sequence[int]) -> Tensor:
    """Without what torch does in place to the strides of a single position."""
    single = all(length == 1 for length in size)
    pooled: Tensor = (
        values.mean((-1, -2), keepdim=True) if single else aten._adaptive_avg_pool2d(values, size)
    )
    return pooled


_SPELLED = {aten.reshape.default: _as_view, aten.adaptive_avg_pool2d.default: _pooled}


def _extension() -> Any:
    from openvino.frontend.pytorch import ConversionExtension

    return ConversionExtension("eqsat_deploy.fake_quantize.default", _translate)


def _translate(context: Any) -> Any:
    from openvino import opset13

    values = context.get_input(0)
    scale, zero_point = (np.asarray(context.get_values_from_const_input(i), np.float32) for i in (1, 2))
    axis, low, high = (int(context.get_values_from_const_input(i)) for i in (3, 4, 5))
    if axis >= 0:
        rank = values.get_partial_shape().rank.get_length()
        shape = [-1 if dim == axis else 1 for dim in range(rank)]
        scale, zero_point = scale.reshape(shape), zero_point.reshape(shape)
    bounds = [opset13.constant((code - zero_point) * scale) for code in (np.float32(low), np.float32(high))]
    return opset13.fake_quantize(values, *bounds, *bounds, levels=high - low + 1).outputs()


def _name(model: Any, signature: Signature, origins: Mapping[str, str]) -> None:
    """Names that survive saving: inputs after their specs, operators after the nodes they came from."""
    if len(model.inputs) != len(signature.inputs):
        raise EngineError(
            f"OpenVINO's model has {len(model.inputs)} inputs, the module {len(signature.inputs)}: "
            "an input that nothing reads cannot be converted"
        )
    for port, spec in zip(model.inputs, signature.inputs, strict=True):
        port.get_node().set_friendly_name(spec.name)
        port.get_tensor().set_names({spec.name})
    for index, port in enumerate(model.outputs):
        port.get_tensor().add_names({f"output_{index}"})
    place = {name: index for index, name in enumerate(origins)}
    for index, op in enumerate(model.get_ordered_ops()):
        node = origins.get(_stem(op.get_friendly_name()))
        if node is None and op.get_output_size():  # of several nodes, the first
            known = [stem for stem in map(_stem, op.output(0).get_names()) if stem in place]
            node = origins[min(known, key=place.__getitem__)] if known else None
        if op.get_type_name() == "FakeQuantize":  # of a marker, which has no name of its own here
            node, _, rest = op.input_value(0).get_node().get_friendly_name().partition("/")
            node = node if rest else None
        if node is not None:  # numbered by position, where OpenVINO numbers through the whole process
            op.set_friendly_name(f"{node}/{op.get_type_name()}_{index}")
    model.set_friendly_name("model")
    number(model)


def _stem(name: str) -> str:
    return re.split("[/:]", name)[0]


def number(model: Any) -> None:
    """OpenVINO numbers operators it makes up through the whole process; number them by position instead."""
    for index, op in enumerate(model.get_ordered_ops()):
        if "/" not in op.get_friendly_name() and op.get_type_name() != "Parameter":
            op.set_friendly_name(f"{op.get_type_name()}_{index}")


def _pad_pools(model: Any) -> None:
    """Give max-pools that round sizes up the padding that has the same windows: the plugin has INT8 kernels and fast
    float ones (2026.4.1) for those alone that round down."""
    from openvino import opset14

    for op in model.get_ordered_ops():
        if op.get_type_name() != "MaxPool" or not op.get_attributes()["rounding_type"].startswith("ceil"):
            continue
        attributes = op.get_attributes()
        axes = [attributes[name] for name in ("strides", "dilations", "pads_begin", "kernel")]
        sizes, results = ([axis.get_length() if axis.is_static else 0 for axis in list(shape)[2:]]
                          for shape in (op.get_input_partial_shape(0), op.get_output_partial_shape(0)))  # fmt: skip
        after = [(result - 1) * stride + dilation * (kernel - 1) + 1 - size - before for
                 size, result, stride, dilation, before, kernel in zip(sizes, results, *axes, strict=True)]  # fmt: skip
        if not all(sizes) or min(after) < 0 or op.output(1).get_target_inputs():
            continue
        strides, dilations, before, kernel = axes
        padded = opset14.max_pool(op.input_value(0), strides, dilations, before, after, kernel, "floor")
        _replace(op, padded)


def _replace(op: Any, other: Any) -> None:
    """Let all that reads `op` read `other`, which takes its name."""
    other.set_friendly_name(op.get_friendly_name())
    for reader in op.output(0).get_target_inputs():
        reader.replace_source_output(other.output(0))


def _add_biases_last(model: Any) -> None:
    """Where a signed tensor of less than `LOST` is added to a layer with a bias: the plugin reads it in unsigned codes,
    and takes what these have to be moved by for nothing (2026.4.1); added before the bias, it is not."""
    from openvino import opset13

    for op in model.get_ordered_ops():
        if op.get_type_name() != "Add":
            continue
        for layer, other in ((0, 1), (1, 0)):
            biased, added = (op.input_value(place).get_node() for place in (layer, other))
            if _is_small(added) and (bias := _bias(biased)) is not None:
                summed = opset13.add(biased.input_value(1 - bias), op.input_value(other))
                summed.set_friendly_name(biased.get_friendly_name())
                _replace(op, opset13.add(summed, biased.input_value(bias)))
                break


def _is_small(op: Any) -> bool:
    """Whether it quantizes, signed, to values below `LOST`."""
    if op.get_type_name() != "FakeQuantize" or (low := _values(op.input_value(3))) is None:
        return False
    return bool(-LOST < low.min() < 0)


def _bias(op: Any) -> int | None:
    """Which operand of an addition nobody else reads is constant."""
    if op.get_type_name() != "Add" or len(op.output(0).get_target_inputs()) > 1:
        return None
    return next((place for place in (0, 1) if _values(op.input_value(place)) is not None), None)


def _values(port: Any) -> Any:
    """Those of a constant, None where it is none."""
    op = port.get_node()
    return op.get_data() if op.get_type_name() == "Constant" else None
