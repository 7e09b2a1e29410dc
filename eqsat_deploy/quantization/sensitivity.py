"""What every INT8 kernel costs the network's outputs in accuracy, and what float would cost in time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from eqsat_deploy.deployment import PlacedKernel, call_of, deployment, flat_outputs, split
from eqsat_deploy.errors import QuantizationError
from eqsat_deploy.noise import ratio
from eqsat_deploy.quantization.biases import unrounded
from eqsat_deploy.quantization.calibrate import read_batch
from eqsat_deploy.quantization.fake_quantize import FakeQuantize, QuantizedLinear
from eqsat_deploy.quantization.reconstruction import ANCHORS
from eqsat_extraction.arguments import checked

SAMPLES = 8
PROBES = 2
"""Samples, and random directions of the outputs for each: the power of an error is known to about a third."""


@dataclass(frozen=True)
class Sensitivity:
    """One INT8 kernel: `noise` is the power of the error that its rounding causes at the network's outputs as a part of
    theirs; `cost` what it takes by prediction and `time` how much longer in float, None where that is not known, both
    in the cost model's unit."""

    kernel: str
    noise: float
    cost: float
    time: float | None

    @property
    def sqnr(self) -> float:
        """The SQNR of the outputs in dB where it alone rounds; infinite where nothing differs."""
        return ratio(1.0, self.noise)


@dataclass(frozen=True)
class Sensitivities:
    """The INT8 kernels of a module, the most harmful first, and the measured SQNR of its outputs in dB where all round;
    `total` is the predicted time of all its kernels, in `unit`."""

    kernels: tuple[Sensitivity, ...]
    sqnr: float
    total: float
    unit: str = ""

    def by_worth(self) -> list[Sensitivity]:
        """The most noise for the least time in float first."""
        return sorted(self.kernels, key=lambda found: -found.noise / ((found.time or 0.0) + 1e-9))

    def __str__(self) -> str:
        width = max((len(found.kernel) for found in self.kernels), default=0)
        power = sum(found.noise for found in self.kernels) or 1.0
        lines = [
            f"all {len(self.kernels)} INT8 kernels together: {self.sqnr:.1f} dB, "
            f"{self.total:.4g} {self.unit} predicted".rstrip(),
            f"  {'each alone':{width}}  {'dB':>6}  part of the noise  in INT8  longer in float",
        ]
        for k in self.kernels:
            longer = "" if k.time is None else f"{k.time:14.4g}"
            lines.append(
                f"  {k.kernel:{width}}  {k.sqnr:6.1f}  {k.noise / power:17.1%}  {k.cost:7.4g}  {longer}"
            )
        return "\n".join(line.rstrip() for line in lines)


@checked
def sensitivity(
    module: fx.GraphModule, batches: Iterable[Any] | None = None, *, seed: int = 0
) -> Sensitivities:
    """Rank the INT8 kernels of a quantized `module` by the error that each alone causes at the network's outputs.

    The error is propagated to the outputs rather than measured at the kernel, since a network amplifies what one
    kernel adds and swallows what another does: the error at each kernel, its operands and its weight rounded and the
    mean left out that biases take back, is carried to the outputs by their derivative in random directions, for all
    kernels in one pass back (Hutchinson's estimate). That is right to first order: the noises add up to the measured
    one where that is small.

    Args:
        module: what `quantize` returned; it is not changed.
        batches: inputs to measure on, as calibration takes them; the samples that the module holds when missing.
        seed: of the directions.

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
    return ranked(module, held, seed)


def ranked(module: fx.GraphModule, held: Sequence[Sequence[Tensor]], seed: int = 0) -> Sensitivities:
    """`sensitivity` on batches of tensors in the order of the placeholders."""
    known = deployment(module)
    kernels = [kernel for kernel in known.placement.kernels if kernel.precision == "int8"]
    samples = [one for inputs in held for one in split(known.inputs, inputs, 1)][:SAMPLES]
    rounded = Rounded(module)
    noise = _noise(rounded, kernels, samples, seed)
    found = [Sensitivity(kernel.anchor, noise[kernel], kernel.cost, _longer(kernel)) for kernel in kernels]
    total = sum(kernel.cost for kernel in known.placement.kernels)
    unit = known.report.unit if known.report is not None else ""
    return Sensitivities(
        tuple(sorted(found, key=lambda one: -one.noise)), _measured(rounded, held), total, unit
    )


def _longer(kernel: PlacedKernel) -> float | None:
    return None if kernel.float_cost is None else max(kernel.float_cost - kernel.cost, 0.0)


def _noise(
    rounded: Rounded, kernels: Sequence[PlacedKernel], samples: Sequence[Sequence[Tensor]], seed: int
) -> dict[PlacedKernel, float]:
    if not kernels:
        return {}
    means = rounded.mean_errors(kernels, samples)
    noise = dict.fromkeys(kernels, 0.0)
    generator = torch.Generator().manual_seed(seed)
    for sample in samples:
        with torch.enable_grad():
            values = rounded.exact(sample)
        outputs = [
            value for node in flat_outputs(rounded.module) if (value := values[node.name]).requires_grad
        ]
        with torch.no_grad():
            errors = [rounded.error(kernel, values) - means[kernel] for kernel in kernels]
        anchors = [values[kernel.anchor] for kernel in kernels]
        for _ in range(PROBES if outputs else 0):
            directions = [_direction(output, len(outputs), generator) for output in outputs]
            slopes = torch.autograd.grad(outputs, anchors, directions, retain_graph=True, allow_unused=True)
            for kernel, slope, error in zip(kernels, slopes, errors, strict=True):
                if slope is not None:
                    noise[kernel] += float((slope.double() * error.double()).sum()) ** 2
    return {kernel: power / (PROBES * len(samples)) for kernel, power in noise.items()}


class Rounded:
    """A quantized module beside itself without rounding; values are those of the latter, by names of nodes."""

    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module
        self.without = unrounded(module)
        self.nodes = {node.name: node for node in module.graph.nodes}
        self.computing = {name for kernel in deployment(module).placement.kernels for name in kernel.nodes}

    def exact(self, inputs: Sequence[Tensor]) -> dict[str, Any]:
        """What every node computes for `inputs`."""
        run = _Differentiable(self.without, garbage_collect_values=False)
        run.run(*inputs)
        return {node.name: value for node, value in run.env.items()}

    def error(self, kernel: PlacedKernel, values: Mapping[str, Any]) -> Tensor:
        """What rounding its operands and its weight adds to the result of the anchor of `kernel`."""
        anchor = self.nodes[kernel.anchor]
        run = fx.Interpreter(self.module, garbage_collect_values=False)
        run.env = {self.nodes[name]: value for name, value in values.items()}
        for operand in anchor.all_input_nodes:
            for node in self._since_rounded(operand):
                run.env[node] = run.run_node(node)
        found: Tensor = run.run_node(anchor) - values[kernel.anchor]
        return found

    def mean_errors(
        self, kernels: Sequence[PlacedKernel], samples: Sequence[Sequence[Tensor]]
    ) -> dict[PlacedKernel, Tensor]:
        """The part of each error that is the same in all samples and places of a channel, in the shape that broadcasts
        over the anchor's result; 0 where no bias takes it back."""
        means = dict.fromkeys(kernels, torch.zeros(()))
        layers = {kernel: self._layer(kernel) for kernel in kernels}
        with torch.no_grad():
            for sample in samples:
                values = self.exact(sample)
                for kernel, layer in layers.items():
                    if isinstance(layer, ANCHORS) and hasattr(layer, "correction"):
                        error = self.error(kernel, values)
                        axis = error.dim() - 1 if isinstance(layer, QuantizedLinear) else 1
                        others = [dim for dim in range(error.dim()) if dim != axis]
                        means[kernel] = means[kernel] + error.mean(others, keepdim=True) / len(samples)
        return means

    def _layer(self, kernel: PlacedKernel) -> nn.Module | None:
        anchor = self.nodes[kernel.anchor]
        return self.module.get_submodule(str(anchor.target)) if anchor.op == "call_module" else None

    def _since_rounded(self, operand: fx.Node) -> list[fx.Node]:
        """The quantizer that `operand` has its codes from, and the views after it; nothing where it is a float."""
        path = [operand]
        while path[-1].name not in self.computing and len(path[-1].all_input_nodes) == 1:
            if self.is_quantizer(path[-1]):
                return path[::-1]
            path.append(path[-1].all_input_nodes[0])
        return []

    def is_quantizer(self, node: fx.Node) -> bool:
        """Whether a node rounds."""
        return node.op == "call_module" and isinstance(
            self.module.get_submodule(str(node.target)), FakeQuantize
        )


class _Differentiable(fx.Interpreter):
    """Keeps a derivative of everything that it computes, where gradients are enabled."""

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor) and value.is_floating_point() and not value.requires_grad:
            return value.detach().requires_grad_()
        return value


def _direction(output: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """A random direction in which an error has, squared, its power as a part of the output's, over `count` outputs."""
    drawn = torch.randn(output.shape, generator=generator).to(output)
    power = output.detach().double().square().sum() * count
    return drawn / power.sqrt().clamp_min(1e-30).to(output)


def _measured(rounded: Rounded, held: Sequence[Sequence[Tensor]]) -> float:
    """The SQNR of the outputs in dB, their noises taken as parts of their powers."""
    outputs = flat_outputs(rounded.module)
    power, noise = [0.0] * len(outputs), [0.0] * len(outputs)
    with torch.no_grad():
        for inputs in held:
            values = rounded.exact(inputs)
            run = fx.Interpreter(rounded.module, garbage_collect_values=False)
            run.run(*inputs)
            for index, node in enumerate(outputs):
                expected = values[node.name].double()
                power[index] += float(expected.square().sum())
                noise[index] += float((run.env[node].double() - expected).square().sum())
    parts = [n / p for n, p in zip(noise, power, strict=True) if p]
    return ratio(1.0, sum(parts) / len(parts)) if parts else ratio(0.0, sum(noise))
