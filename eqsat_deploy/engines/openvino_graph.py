"""A rebuilt module in OpenVINO's operators, each torch function written as the one that it is.

What OpenVINO's own frontend makes of a traced graph, without the tracing and the decoding, which take ten times as
long. A function that `openvino_functions` lacks, or that is called in a way that it does not know, raises `Unwritten`:
nothing is guessed, the module is then traced.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from eqsat_deploy.deployment import Signature
from eqsat_deploy.engines.openvino_functions import self_attention
from eqsat_deploy.engines.openvino_writing import (
    FREE,
    Unwritten,
    Written,
    element_type,
    is_written,
    ops,
    output_of,
    write,
)
from eqsat_deploy.engines.program import flat_module
from eqsat_deploy.language.attention import SelfAttention
from eqsat_deploy.quantization.fake_quantize import FakeQuantize, swapped


def written(module: fx.GraphModule, signature: Signature) -> Any:
    """OpenVINO's model of `module`, whose operators are named after its nodes.

    Raises:
        Unwritten: it has a function that nothing writes.
    """
    import openvino

    run = _Run(flat_module(swapped(module, _Rounding)))
    inputs = [_parameter(spec) for spec in signature.inputs]
    with torch.no_grad():
        outputs = run.run(*(Written(parameter.output(0)) for parameter in inputs))
    results = [ops().result(output_of(value)) for value in outputs]
    return openvino.Model(results, inputs, "model")


class _Run(fx.Interpreter):
    """Writes a graph node by node; what depends on no input is computed."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.named: set[str] = set()

    def run_node(self, n: fx.Node) -> Any:
        """The node's value, its operators named after it."""
        value = super().run_node(n)
        if n.op.startswith("call"):
            for part in value if isinstance(value, tuple) else (value,):
                if isinstance(part, Written):
                    self._name(part.output.get_node(), n.name)
                    # Which stays with the tensor, whatever operators OpenVINO makes of those that wrote it.
                    part.output.get_tensor().add_names({n.name})
        return value

    def _name(self, op: Any, name: str) -> None:
        """Name what was written since the last node."""
        pending = [op]
        while pending:
            op = pending.pop()
            if op.get_name() not in self.named:
                self.named.add(op.get_name())
                if op.get_type_name() not in ("Constant", "Parameter"):
                    if op.get_type_name() != "FakeQuantize":  # which is told apart by what it rounds
                        op.set_friendly_name(f"{name}/{op.get_type_name()}")
                    pending += [op.input_value(i).get_node() for i in range(op.get_input_size())]

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """As torch has it where nothing is written yet."""
        given = any(map(is_written, (*args, *kwargs.values())))
        return write(target, args, kwargs) if given else super().call_function(target, args, kwargs)

    def call_method(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Likewise."""
        given = any(map(is_written, (*args, *kwargs.values())))
        return write(target, args, kwargs) if given else super().call_method(target, args, kwargs)

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the module's forward writes."""
        module = self.fetch_attr(target)
        return self_attention(module, *args) if isinstance(module, SelfAttention) else module(*args, **kwargs)


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
            return self._codes(values, scale, zero_point)
        bounds = [output_of((code - zero_point) * scale) for code in (self.low, self.high)]
        levels = self.high - self.low + 1
        return Written(ops().fake_quantize(values.output, *bounds, *bounds, levels).output(0))

    def _codes(self, values: Tensor, scale: Tensor, zero_point: Tensor) -> Written:
        if zero_point.any():
            raise Unwritten("parameters with a zero point")
        codes = (values / scale).clamp_(self.low, self.high).round_()
        codes = codes.to(torch.int8 if self.low < 0 else torch.uint8)
        converted = ops().convert(ops().constant(codes.numpy()), "f32")
        return Written(ops().multiply(converted, output_of(scale)).output(0))


def _parameter(spec: Any) -> Any:
    from openvino import PartialShape, Type

    shape = PartialShape([FREE if size is None else size for size in spec.shape])
    return ops().parameter(shape, getattr(Type, element_type(spec.dtype)))
