"""ONNX: a module as a file for the runtimes that read it."""

from eqsat_deploy.engines.onnx.attention import ATTENTION_OPSET, OPSET
from eqsat_deploy.engines.onnx.export import (
    OnnxFile,
    SavedOnnx,
    export_onnx,
    missing_packages,
    nodes_of,
    save_onnx,
)
from eqsat_deploy.engines.onnx.lane import Lane
from eqsat_deploy.engines.onnx.model import check_opset
from eqsat_deploy.engines.onnx.onnxruntime import ONNXRUNTIME
from eqsat_deploy.engines.onnx.tensorrt import TENSORRT

__all__ = [
    "ATTENTION_OPSET", "ONNXRUNTIME", "OPSET", "TENSORRT", "Lane", "OnnxFile", "SavedOnnx", "check_opset",
    "export_onnx", "missing_packages", "nodes_of", "save_onnx",
]  # fmt: skip
