"""Quantization-aware training by self-distillation: the quantized module learns the float one's outputs."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn

from eqsat_deploy.calling import arguments
from eqsat_deploy.deployment import call_of, device_of
from eqsat_deploy.errors import InputError, QuantizationError
from eqsat_deploy.quantization.calibrate import read_batch
from eqsat_deploy.quantization.fake_quantize import FakeQuantize, Layer
from eqsat_extraction.arguments import checked, finite, whole


@checked
def finetune(
    module: fx.GraphModule,
    teacher: nn.Module,
    batches: Iterable[Any],
    *,
    epochs: int = 1,
    rate: float = 1e-5,
) -> fx.GraphModule:
    """A copy of the quantized `module`, trained to answer as `teacher` does. No labels are needed.

    Rounding passes gradients straight through; scales are trained too where `quantize` was told `learnable=True`.
    Adam, its rate falling to zero along half a cosine, on the squared error of every floating-point output as a part
    of the output's variance. BatchNorm was folded before, and dropout is off, so the module stays in eval mode.

    Args:
        module: what `quantize` returned; it is not changed.
        teacher: the float module, called as `module` is: the original, or what `optimize` returned.
        batches: inputs as calibration takes them, labels ignored; kept, to go over them `epochs` times.
        epochs: how often every batch is seen.
        rate: the first learning rate.

    Raises:
        QuantizationError: `module` is not quantized, there are no batches, or training diverged.
        InputError: `epochs` or `rate` is not positive, or a batch does not fit.
    """
    if not any(isinstance(child, FakeQuantize) for child in module.modules()):
        raise QuantizationError("the module is not quantized: finetune() takes what quantize() returned")
    whole("epochs", epochs)
    if not finite("rate", rate):
        raise InputError("rate=0: nothing would be learned")
    call = call_of(module)
    held = [read_batch(batch, call) for batch in batches]
    if not held:
        raise QuantizationError("no batches: finetune() needs inputs to train on")
    student = copy.deepcopy(module).eval()
    for _ in distilling(student, teacher, held, epochs, rate):
        pass
    return student


def distilling(
    student: fx.GraphModule, teacher: nn.Module, held: Sequence[Sequence[Tensor]], epochs: int, rate: float
) -> Iterator[None]:
    """Train `student` in place on batches in the order of its placeholders; yields after every epoch."""
    device = device_of(student)
    trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(held))
    layers = [layer for layer in student.modules() if isinstance(layer, Layer)]
    for _ in range(epochs):
        for inputs in held:
            loss = distance(student, teacher, [value.to(device) for value in inputs])
            if not torch.isfinite(loss):
                raise QuantizationError(f"training diverged at a rate of {rate}: take a smaller one")
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            for layer in layers:
                layer.weight_quantizer.widen(layer.weight)
        yield


def distance(student: fx.GraphModule, teacher: nn.Module, inputs: Sequence[Tensor]) -> Tensor:
    """The squared error of every floating-point output as a part of its variance, summed."""
    args, kwargs = arguments(call_of(student).batch(list(inputs)))
    with torch.no_grad():
        expected = _outputs(teacher, args, kwargs)
    return _loss(_outputs(student, args, kwargs), expected)


def _outputs(module: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Tensor]:
    leaves = pytree.tree_leaves(module(*args, **kwargs))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _loss(found: Sequence[Tensor], expected: Sequence[Tensor]) -> Tensor:
    shares = [
        (f.float() - e.float()).square().mean() / e.float().var(correction=0).clamp_min(1e-12)
        for f, e in zip(found, expected, strict=True)
    ]
    return torch.stack(shares).sum()
