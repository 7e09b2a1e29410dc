"""What every INT8 kernel costs the network's outputs in accuracy, when it alone rounds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from eqsat_deploy.deployment import PlacedKernel, call_of, deployment, flat_outputs
from eqsat_deploy.errors import QuantizationError
from eqsat_deploy.noise import ratio
from eqsat_deploy.quantization.calibrate import read_batch
from eqsat_deploy.quantization.fake_quantize import FakeQuantize, swapped
from eqsat_extraction.arguments import checked


@dataclass(frozen=True)
class Sensitivity:
    """One INT8 kernel: `sqnr` of the network's outputs in dB where it alone rounds, its operands and its weight
    (infinite where nothing differs); `cost` is the predicted one, in the cost model's unit."""

    kernel: str
    sqnr: float
    cost: float


@dataclass(frozen=True)
class Sensitivities:
    """The INT8 kernels of a module, the most harmful first, and the SQNR of its outputs in dB where all round."""

    kernels: tuple[Sensitivity, ...]
    sqnr: float

    def __str__(self) -> str:
        width = max((len(found.kernel) for found in self.kernels), default=0)
        lines = [f"all {len(self.kernels)} INT8 kernels together: {self.sqnr:.1f} dB; each alone:"]
        lines += [f"  {k.kernel:{width}}  {k.sqnr:6.1f} dB  cost {k.cost:.4g}" for k in self.kernels]
        return "\n".join(lines)


@checked
def sensitivity(module: fx.GraphModule, batches: Iterable[Any] | None = None) -> Sensitivities:
    """Rank the INT8 kernels of a quantized `module` by the error that each alone causes at the network's outputs.

    The error is propagated to the outputs rather than measured at the kernel, since a network amplifies what one
    kernel adds and swallows what another does. Reference is the module without any rounding. It takes a part of a
    forward pass a kernel and batch.

    Args:
        module: what `quantize` returned; it is not changed.
        batches: inputs to measure on, as calibration takes them; the samples that the module holds when missing.

    Raises:
        QuantizationError: the module is not quantized, or there is nothing to measure on.
        InputError: a batch that does not fit.
    """
    if not any(isinstance(child, FakeQuantize) for child in module.modules()):
        raise QuantizationError("the module is not quantized: call sensitivity() on what quantize() returned")
    known, call = deployment(module), call_of(module)
    held = [known.samples] if batches is None else [read_batch(batch, call) for batch in batches]
    if not any(held):
        raise QuantizationError("batches: there is nothing to measure on")
    exact = swapped(module, lambda quantizer: nn.Identity())
    kernels = [kernel for kernel in known.placement.kernels if kernel.precision == "int8"]
    power, together, alone = 0.0, 0.0, dict.fromkeys(kernels, 0.0)
    with torch.no_grad():
        for inputs in held:
            reference = _Partly(exact)
            expected = reference.outputs(inputs)
            power += sum(float(value.double().square().sum()) for value in expected)
            together += _distance(_Partly(module).outputs(inputs), expected)
            for kernel in kernels:
                partly = _Partly(exact, module, _rounding(module, kernel))
                alone[kernel] += _distance(partly.outputs(inputs, reference), expected)
    ranked = sorted(alone, key=lambda kernel: -alone[kernel])
    return Sensitivities(
        tuple(Sensitivity(kernel.anchor, ratio(power, alone[kernel]), kernel.cost) for kernel in ranked),
        ratio(power, together),
    )


class _Partly(fx.Interpreter):
    """Computes `module`, but the submodules in `taken` as those of `other`."""

    def __init__(
        self, module: fx.GraphModule, other: fx.GraphModule | None = None, taken: frozenset[str] = frozenset()
    ) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.other, self.taken = other, taken

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        owner = self.other if self.other is not None and target in self.taken else self.module
        return owner.get_submodule(target)(*args, **kwargs)

    def outputs(self, inputs: Sequence[Tensor], before: _Partly | None = None) -> list[Tensor]:
        """The flat outputs; what `before` has computed is taken from it up to the first submodule in `taken`."""
        known = {}
        for node in self.graph.nodes if before is not None else ():
            if node.op == "call_module" and node.target in self.taken:
                break
            known[node] = before.env[node]  # type: ignore[union-attr]
        self.run(*inputs, initial_env=known)
        return [self.env[node] for node in flat_outputs(self.module)]  # type: ignore[arg-type]


def _rounding(module: fx.GraphModule, kernel: PlacedKernel) -> frozenset[str]:
    """The submodules that round for `kernel`: layers with rounded weights, and the quantizers of what it reads."""
    nodes = [node for node in module.graph.nodes if node.name in kernel.nodes]
    layers = [str(node.target) for node in nodes if node.op == "call_module"]
    found = {target for target in layers if module.get_submodule(target)._modules}
    for node in nodes:
        for operand in node.all_input_nodes:
            while operand not in nodes and len(operand.all_input_nodes) == 1:
                child = module.get_submodule(str(operand.target)) if operand.op == "call_module" else None
                if isinstance(child, FakeQuantize):
                    found.add(str(operand.target))
                    break
                operand = operand.all_input_nodes[0]  # a view that hands codes on
    return frozenset(found)


def _distance(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    return sum(float((f.double() - e.double()).square().sum()) for f, e in zip(found, expected, strict=True))
