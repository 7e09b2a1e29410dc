"""The package `tensorrt`: finding it, and its types beside torch's."""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

import torch
from torch import cuda

from eqsat_deploy.errors import EngineError

if TYPE_CHECKING:
    import tensorrt as trt

OLDEST = (10, 13)


def tensorrt() -> Any:
    """The module; `EngineError` where it cannot be imported."""
    try:
        return importlib.import_module("tensorrt")
    except Exception as error:  # a missing CUDA library is an OSError, a broken wheel a RuntimeError
        raise EngineError(f"tensorrt cannot be imported: {error}") from error


def version(api: Any) -> tuple[int, int]:
    """Its major and minor version."""
    major, minor = api.__version__.split(".")[:2]
    return int(major), int(minor)


def unavailable() -> str | None:
    """What is missing to build and run engines: the package, its version, or a GPU."""
    if importlib.util.find_spec("tensorrt") is None:
        return "tensorrt is not installed: pip install 'eqsat-deploy[tensorrt]' (it needs an NVIDIA GPU)"
    if not cuda.is_available():
        return "torch sees no CUDA device: it needs an NVIDIA GPU, its driver, and a CUDA build of torch"
    try:
        api = tensorrt()
    except EngineError as error:
        return str(error)
    if version(api) < OLDEST:
        return (
            f"TensorRT {api.__version__} is older than {'.'.join(map(str, OLDEST))}: pip install -U tensorrt"
        )
    return None


def this_device() -> torch.device:
    """The GPU that engines are made for: torch's current one."""
    return torch.device("cuda", cuda.current_device())


def torch_dtype(api: Any, dtype: trt.DataType) -> torch.dtype:
    """torch's dtype for an input's or output's; `EngineError` where it has none."""
    known = {
        api.DataType.FLOAT: torch.float32,
        api.DataType.HALF: torch.float16,
        api.DataType.BF16: torch.bfloat16,
        api.DataType.INT8: torch.int8,
        api.DataType.UINT8: torch.uint8,
        api.DataType.INT32: torch.int32,
        api.DataType.INT64: torch.int64,
        api.DataType.BOOL: torch.bool,
    }
    if dtype not in known:
        raise EngineError(f"TensorRT type {dtype} of an input or output has no torch dtype")
    return known[dtype]
