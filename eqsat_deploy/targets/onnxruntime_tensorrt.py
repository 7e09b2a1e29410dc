"""ONNX Runtime with TensorRT on an NVIDIA GPU."""

from __future__ import annotations

from dataclasses import replace

from eqsat_deploy.engines.onnxruntime_tensorrt import ONNXRuntimeTensorRTEngine
from eqsat_deploy.targets.tensorrt import TENSORRT

ONNXRUNTIME_TENSORRT = replace(TENSORRT, engine=ONNXRuntimeTensorRTEngine, rank=15, triton=None)
