"""A rebuilt module in OpenVINO's operators, each torch function written as the one that it is.

What OpenVINO's own frontend makes of an exported graph, without the exporting and the decoding, which take ten times as
long and are for the nodes that no function is known of.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from eqsat_deploy.deployment import InputSpec, Signature
from eqsat_deploy.engines import openvino_functions, openvino_pointwise  # noqa: F401 - which fill the table
from eqsat_deploy.engines.openvino_nodes import converted
from eqsat_deploy.engines.openvino_writing import FUNCTIONS, element_type, ops, output_of
from eqsat_deploy.engines.writer import Region, Writer
from eqsat_deploy.engines.writing import FREE, Written
from eqsat_deploy.errors import EngineError
from eqsat_deploy.quantization.fake_quantize import FakeQuantize, swapped


def written(module: fx.GraphModule, signature: Signature) -> Any:
    """OpenVINO's model of `module`, whose operators are named after its nodes.

    Raises:
        EngineError: OpenVINO has no form of one of its nodes, which is named.
    """
    import openvino

    inputs = [_parameter(spec) for spec in signature.inputs]
    writer = _Writer(swapped(module, _Rounding), FUNCTIONS, _Rounding)
    outputs = writer.outputs([parameter.output(0) for parameter in inputs], signature.inputs)
    results = [ops().result(output_of(value)) for value in outputs]
    return openvino.Model(results, inputs, "model")


class _Writer(Writer):
    """Names operators after the node that they are of."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.named: set[str] = set()

    def converted(self, region: Region) -> list[Any]:
        """By OpenVINO's frontend."""
        return converted(region)

    def finished(self, node: str, results: list[Written]) -> None:
        """Name what was written since the last node, and its results."""
        for result in results:
            self._name(result.value.get_node(), node)
            # Which stays with the tensor, whatever operators OpenVINO makes of those that wrote it.
            result.value.get_tensor().add_names({node})

    def _name(self, op: Any, name: str) -> None:
        pending = [op]
        while pending:
            op = pending.pop()
            if op.get_name() not in self.named:
                self.named.add(op.get_name())
                if op.get_type_name() not in ("Constant", "Parameter"):
                    if op.get_type_name() != "FakeQuantize":  # which is told apart by what it rounds
                        op.set_friendly_name(f"{name}/{op.get_type_name()}")
                    pending += [op.input_value(i).get_node() for i in range(op.get_input_size())]


class _Rounding(nn.Module):
    """Writes what a FakeQuantize does; of parameters, their codes."""

    def __init__(self, fake: FakeQuantize) -> None:
        super().__init__()
        self.step, self.zero_point, self.axis = fake.step, fake.zero_point, fake.axis
        self.low, self.high = int(fake.low), int(fake.high)

    def forward(self, values: Any) -> Written:
        """`values` in the steps of the grid."""
        scale, zero_point = self.step, self.zero_point.float()
        if self.axis is not None:
            shape = [-1 if dim == self.axis else 1 for dim in range(values.dim())]
            scale, zero_point = scale.reshape(shape), zero_point.reshape(shape)
        if isinstance(values, Tensor):
            return Written(FUNCTIONS, self._codes(values, scale, zero_point), values.to("meta"))
        bounds = [output_of((code - zero_point) * scale) for code in (self.low, self.high)]
        levels = self.high - self.low + 1
        rounded = ops().fake_quantize(values.value, *bounds, *bounds, levels)
        return Written(FUNCTIONS, rounded.output(0), values.known)

    def _codes(self, values: Tensor, scale: Tensor, zero_point: Tensor) -> Any:
        if zero_point.any():
            raise EngineError("parameters with a zero point have no form in OpenVINO")
        codes = (values / scale).clamp_(self.low, self.high).round_()
        codes = codes.to(torch.int8 if self.low < 0 else torch.uint8)
        converted = ops().convert(ops().constant(codes.numpy()), "f32")
        return ops().multiply(converted, output_of(scale)).output(0)


def _parameter(spec: InputSpec) -> Any:
    from openvino import PartialShape, Type

    shape = PartialShape([FREE if size is None else size for size in spec.shape])
    return ops().parameter(shape, getattr(Type, element_type(spec.dtype)))
