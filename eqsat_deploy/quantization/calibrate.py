"""Calibration batches, read once and checked, through the modules that watch them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from eqsat_deploy.deployment import InputSpec, Signature, samples_of
from eqsat_deploy.errors import InputError, QuantizationError

SAMPLE = 32
"""How many samples are held while quantizing, for what one pass over the data cannot tell."""


def calibrate(
    modules: Sequence[nn.Module], specs: tuple[InputSpec, ...], batches: Iterable[Any]
) -> tuple[Tensor, ...]:
    """Run every batch, once, through all the modules; the first `SAMPLE` samples of all, in one batch.

    Raises:
        QuantizationError: no batches, or one that does not fit `specs` or has NaN or infinity, by its number.
    """
    signature = Signature(specs, None)
    device = device_of(modules[0])
    count, held = 0, _Held(signature.inputs)
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
            inputs = tuple(value.to(device) for value in inputs)
            held.add(inputs)
            for module in modules:
                module.forward(*inputs)
    if count == 0:
        raise QuantizationError(
            "no calibration batches: pass an iterable of inputs (a generator is used up after one pass)"
        )
    return held.joined()


class _Held:
    """The first samples of what passes."""

    def __init__(self, specs: Sequence[InputSpec]) -> None:
        self.specs = specs
        self.axes = [next((i for i, n in enumerate(spec.shape) if n is None), None) for spec in specs]
        self.parts: list[tuple[Tensor, ...]] = []
        self.count = 0

    def add(self, inputs: Sequence[Tensor]) -> None:
        if self.count >= SAMPLE:
            return
        few = samples_of(self.specs, inputs, SAMPLE - self.count)
        self.parts.append(few)
        self.count += next((v.shape[a] for v, a in zip(few, self.axes, strict=True) if a is not None), SAMPLE)

    def joined(self) -> tuple[Tensor, ...]:
        return tuple(
            values[0] if axis is None else torch.cat(values, axis)
            for axis, values in zip(self.axes, zip(*self.parts, strict=True), strict=True)
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


def device_of(module: nn.Module) -> torch.device:
    """Where the module's parameters are; the CPU where it has none."""
    tensor = next(itertools.chain(module.parameters(), module.buffers()), None)
    return torch.device("cpu") if tensor is None else tensor.device
