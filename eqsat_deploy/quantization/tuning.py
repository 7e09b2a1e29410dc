"""The last step of calibration with the most effort: training on calibration data, judged on data left out."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor, fx

from eqsat_deploy.deployment import deployment, split
from eqsat_deploy.errors import QuantizationError
from eqsat_deploy.quantization.fake_quantize import FakeQuantize
from eqsat_deploy.quantization.finetune import distance, distilling

TUNED = 128
"""Samples to train on, one in four of which is left out to judge by."""

GAIN = 0.05
"""By what part the error has to fall on what was left out: less is chance."""

BATCH, EPOCHS, RATE = 8, 4, 1e-4
"""Of scales and biases. Weights are left alone: a few hundred samples teach them these samples (MiniLM), and at this
rate MobileNetV2 forgets what it knew within three epochs (15 dB become 5)."""


def tuned(module: fx.GraphModule, teacher: fx.GraphModule, inputs: Sequence[Tensor]) -> fx.GraphModule:
    """A copy of the quantized `module` whose scales and biases give the outputs of `teacher` more nearly, on samples
    that it was not trained on; `module` itself where no epoch does.

    Args:
        module: quantized; it is not changed.
        teacher: the float module.
        inputs: samples in the order of the placeholders, one batch.
    """
    batches = split(deployment(module).inputs, inputs, BATCH)
    judged = batches[3::4] or batches
    trained = [batch for index, batch in enumerate(batches) if index % 4 != 3]
    student = copy.deepcopy(module).eval()
    trains = {name: p.requires_grad for name, p in student.named_parameters()}
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(name.rpartition(".")[2] == "bias")
    for fake in _quantizers(student):
        fake.learn()
    best, least = module, (1 - GAIN) * _error(module, teacher, judged)
    with suppress(QuantizationError):  # it diverged, and what was best before is kept
        for _ in distilling(student, teacher, trained, EPOCHS, RATE):
            error = _error(student, teacher, judged)
            if error < least:
                best, least = copy.deepcopy(student), error
    for fake in _quantizers(best):
        fake.settle()
    for name, parameter in best.named_parameters():
        parameter.requires_grad_(trains[name])
    return best


def _error(module: fx.GraphModule, teacher: fx.GraphModule, batches: Sequence[Sequence[Tensor]]) -> float:
    with torch.no_grad():
        return sum(float(distance(module, teacher, batch)) for batch in batches)


def _quantizers(module: fx.GraphModule) -> list[FakeQuantize]:
    return [child for child in module.modules() if isinstance(child, FakeQuantize)]
