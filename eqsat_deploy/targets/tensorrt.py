"""TensorRT on an NVIDIA GPU."""

from __future__ import annotations

import torch

from eqsat_deploy.engines.tensorrt import TensorRTEngine
from eqsat_deploy.grid import IntegerGrid
from eqsat_deploy.targets.target import Target, Triton
from eqsat_extraction.cost_models import CostModelError
from eqsat_extraction.cost_models.roofline import device_table


def device_option() -> dict[str, str]:
    """The CUDA device of this machine where there is a table of its rates; nothing otherwise."""
    if not torch.cuda.is_available():
        return {}
    name = torch.cuda.get_device_name()
    try:
        device_table(name)
    except CostModelError:
        return {}
    return {"device": name}


TENSORRT = Target(
    engine=TensorRTEngine,
    cost_models=("trt_int8", "trt_fp16"),
    rank=10,
    grid=IntegerGrid(),  # symmetric int8 alone: zero points are 0, and there is no uint8
    cost_options=device_option,
    triton=Triton("tensorrt", "model.plan", "KIND_GPU"),
)
