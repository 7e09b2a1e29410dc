"""An ONNX file computed as it is written: operator by operator, nothing fused, Q and DQ around float operators."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from eqsat_deploy.deployment import Signature


def as_written(model: bytes, signature: Signature) -> Callable[[Sequence[Tensor]], Sequence[Tensor]] | None:
    """The flat outputs of the file `model` for flat inputs, on the CPU; None where ONNX Runtime is not there."""
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3  # errors
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
    read = {value.name for value in session.get_inputs()}  # an input nothing reads is not in the file

    def run(inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        named = zip(signature.inputs, inputs, strict=True)
        feeds = {spec.name: value.cpu().numpy() for spec, value in named if spec.name in read}
        return [torch.from_numpy(result) for result in session.run(None, feeds)]

    return run
