"""ONNX Runtime on a CPU."""

from eqsat_deploy.engines.onnxruntime import ONNXRuntimeEngine
from eqsat_deploy.grid import IntegerGrid
from eqsat_deploy.processors import saturating
from eqsat_deploy.targets.target import Target, Triton

ONNXRUNTIME = Target(
    engine=ONNXRuntimeEngine,
    cost_models=("ort_int8",),
    rank=30,
    grid=IntegerGrid(unsigned=True),
    saturates=saturating,
    triton=Triton("onnxruntime", "model.onnx", "KIND_CPU"),
)
