"""What every INT8 kernel costs the network's outputs in accuracy, and what float would cost in time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn

from eqsat_deploy.deployment import PlacedKernel, call_of, deployment, device_of, flat_outputs, split
from eqsat_deploy.errors import QuantizationError
from eqsat_deploy.noise import ratio
from eqsat_deploy.quantization.biases import unrounded
from eqsat_deploy.quantization.calibrate import read_batch
from eqsat_deploy.quantization.fake_quantize import FakeQuantize, Layer, channel_axis, rounded_once
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
    held = [tuple(value.to(device_of(module)) for value in inputs) for inputs in held]
    if not any(held):
        raise QuantizationError("batches: there is nothing to measure on")
    return ranked(module, held, _measured(module, held), seed)


def ranked(
    module: fx.GraphModule, held: Sequence[Sequence[Tensor]], sqnr: float, seed: int = 0
) -> Sensitivities:
    """`sensitivity` on batches of tensors in the order of the placeholders, where the outputs were measured already."""
    known = deployment(module)
    kernels = [kernel for kernel in known.placement.kernels if kernel.precision == "int8"]
    samples = [one for inputs in held for one in split(known.inputs, inputs, 1)][:SAMPLES]
    noise = _noise(Rounded(module), kernels, samples, seed)
    found = [Sensitivity(kernel.anchor, noise[kernel], kernel.cost, _longer(kernel)) for kernel in kernels]
    total = sum(kernel.cost for kernel in known.placement.kernels)
    unit = known.report.unit if known.report is not None else ""
    return Sensitivities(tuple(sorted(found, key=lambda one: -one.noise)), sqnr, total, unit)


def outputs_of(module: fx.GraphModule, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The tensors that `module` returns for `inputs`, in the order of its placeholders."""
    with torch.no_grad():
        results = fx.Interpreter(module).run(*inputs)
    return [leaf for leaf in pytree.tree_leaves(results) if isinstance(leaf, Tensor)]


def _longer(kernel: PlacedKernel) -> float | None:
    return None if kernel.float_cost is None else max(kernel.float_cost - kernel.cost, 0.0)


def _noise(
    rounded: Rounded, kernels: Sequence[PlacedKernel], samples: Sequence[Sequence[Tensor]], seed: int
) -> dict[PlacedKernel, float]:
    if not kernels:
        return {}
    propagated = {kernel: _Propagated(rounded.corrected_along(kernel)) for kernel in kernels}
    generator = torch.Generator().manual_seed(seed)
    for sample in samples:
        with torch.enable_grad():
            values = rounded.exact(sample)
        outputs = [
            value for node in flat_outputs(rounded.module) if (value := values[node.name]).requires_grad
        ]
        with torch.no_grad():
            errors = [rounded.error(kernel, values) for kernel in kernels]
        anchors = [values[kernel.anchor] for kernel in kernels]
        directions = [[_direction(output, len(outputs), generator) for output in outputs]
                      for _ in range(PROBES if outputs else 0)]  # fmt: skip
        slopes = [torch.autograd.grad(outputs, anchors, along, retain_graph=True, allow_unused=True)
                  for along in directions]  # fmt: skip
        for kernel, error, *along in zip(kernels, errors, *slopes, strict=True):
            propagated[kernel].add(error, [slope for slope in along if slope is not None])
    return {kernel: found.power() for kernel, found in propagated.items()}


class _Propagated:
    """Errors of one kernel carried to the outputs, without what is the same in all samples and places of a channel,
    where biases take that back."""

    def __init__(self, axis: int | None) -> None:
        self.axis = axis
        self.means: list[Tensor] = []
        self.carried: list[
            tuple[float, Tensor]
        ] = []  # an error and, by the channel, what a constant one comes to
        self.probes = 0

    def add(self, error: Tensor, slopes: Sequence[Tensor]) -> None:
        """Take one sample's error and the outputs' derivatives in random directions."""
        others = [] if self.axis is None else [d for d in range(error.dim()) if d != self.axis % error.dim()]
        self.probes += PROBES
        if self.axis is not None:
            self.means.append(error.mean(others, dtype=torch.double))
        for slope in slopes:
            by_channel = torch.zeros(()) if self.axis is None else slope.sum(others, dtype=torch.double)
            self.carried.append((float((slope * error).sum(dtype=torch.double)), by_channel))

    def power(self) -> float:
        """Its mean square."""
        mean = torch.stack(self.means).mean(0) if self.means else torch.zeros(())
        parts = [carried - float((by_channel * mean).sum()) for carried, by_channel in self.carried]
        return sum(part**2 for part in parts) / max(self.probes, 1)


class Rounded:
    """A quantized module beside itself without rounding; values are those of the latter, by names of nodes."""

    def __init__(self, module: fx.GraphModule) -> None:
        self.module = rounded_once(module)
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

    def corrected_along(self, kernel: PlacedKernel) -> int | None:
        """The axis of the channels whose mean error a bias takes back; None where none does."""
        layer = self._layer(kernel)
        if not isinstance(layer, Layer) or not hasattr(layer, "correction"):
            return None
        return channel_axis(layer)

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


def _measured(module: fx.GraphModule, held: Sequence[Sequence[Tensor]]) -> float:
    """The SQNR of the outputs in dB, their noises taken as parts of their powers."""
    exact, powers, noises = unrounded(module), defaultdict[int, float](float), defaultdict[int, float](float)
    for inputs in held:
        pairs = zip(outputs_of(exact, inputs), outputs_of(module, inputs), strict=True)
        for index, (expected, found) in enumerate(pairs):
            powers[index] += float(expected.double().square().sum())
            noises[index] += float((found.double() - expected.double()).square().sum())
    parts = [noises[index] / power for index, power in powers.items() if power]
    return ratio(1.0, sum(parts) / len(parts)) if parts else ratio(0.0, sum(noises.values()))
