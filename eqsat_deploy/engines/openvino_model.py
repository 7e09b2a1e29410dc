"""A module in OpenVINO's operators, with FakeQuantize exactly where quantization put it, and the module's names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import fx

from eqsat_deploy.deployment import Signature
from eqsat_deploy.engines.openvino_graph import written
from eqsat_deploy.engines.openvino_products import as_convolutions
from eqsat_deploy.errors import EngineError
from eqsat_deploy.openvino_compiled import ANY, reshape
from eqsat_deploy.processors import saturating

LOST = 1e-5
"""What is smaller OpenVINO takes for zero."""


def model_of(module: fx.GraphModule, signature: Signature) -> Any:
    """OpenVINO's model of `module`, which is prepared, dynamic in the batch; `EngineError` when torch or OpenVINO
    refuses it."""
    model = _transformed(written(module, signature.wide))
    _name(model, signature, [node.name for node in module.graph.nodes if node.op.startswith("call")])
    reshape(model, [spec.shape for spec in signature.inputs], ANY)
    _pad_pools(model)
    _add_biases_last(model)
    if saturating():
        as_convolutions(model)
        number(model)
    return model


def _transformed(model: Any) -> Any:
    """`model` as OpenVINO's converter leaves it, its rounded weights as codes."""
    from openvino._offline_transformations import (
        apply_moc_transformations,
        compress_quantize_weights_transformation,
    )

    apply_moc_transformations(model, cf=False, smart_reshape=True)
    compress_quantize_weights_transformation(model)
    return model


def _name(model: Any, signature: Signature, nodes: Sequence[str]) -> None:
    """Names that survive saving: inputs after their specs, operators after the `nodes` they came from."""
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
    place = {name: index for index, name in enumerate(nodes)}
    for index, op in enumerate(model.get_ordered_ops()):
        stem = _stem(op.get_friendly_name())
        node = stem if stem in place else None
        if node is None and op.get_output_size():  # of several nodes, the first
            known = [stem for stem in map(_stem, op.output(0).get_names()) if stem in place]
            node = min(known, key=place.__getitem__, default=None)
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
