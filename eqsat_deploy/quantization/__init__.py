"""INT8 in a float module: observers, fake quantization, calibration."""

from eqsat_deploy.quantization.fake_quantize import (
    FakeQuantize,
    QuantizedConv2d,
    QuantizedConvTranspose2d,
    QuantizedLinear,
)
from eqsat_deploy.quantization.finetune import finetune
from eqsat_deploy.quantization.observers import Entropy, Grid, MinMax, Mse, Observer, Percentile
from eqsat_deploy.quantization.precision import AccuracyBudget
from eqsat_deploy.quantization.ptq import quantize
from eqsat_deploy.quantization.sensitivity import Sensitivities, Sensitivity, sensitivity

__all__ = [
    "AccuracyBudget",
    "Entropy",
    "FakeQuantize",
    "Grid",
    "MinMax",
    "Mse",
    "Observer",
    "Percentile",
    "QuantizedConv2d",
    "QuantizedConvTranspose2d",
    "QuantizedLinear",
    "Sensitivities",
    "Sensitivity",
    "finetune",
    "quantize",
    "sensitivity",
]
