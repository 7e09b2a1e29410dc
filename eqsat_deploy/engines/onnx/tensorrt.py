"""The TensorRT lane: symmetric int8 with zero point 0, and everything else in FP16, scales included.

Under strong typing a DequantizeLinear returns the type of its scale: float32 scales would make all else float32.
"""

from __future__ import annotations

import numpy as np

from eqsat_deploy.engines.onnx.graph import Exported
from eqsat_deploy.engines.onnx.half import to_half
from eqsat_deploy.engines.onnx.lane import Lane
from eqsat_deploy.engines.onnx.qdq import encoding_of, quantize_activations, quantize_weights, symmetric


def finalize(exported: Exported) -> None:
    """Symmetric int8 and FP16."""
    grids = [encoding_of(quantizer) for quantizer in exported.activations if quantizer.axis is None]
    if wider := sum(symmetric(grid) != grid for grid in grids):
        exported.changes.append(f"{wider} of {len(grids)} grids became symmetric int8, up to twice as coarse")
    quantize_weights(exported, np.float16)
    quantize_activations(exported, lambda marker, encoding: symmetric(encoding), np.float16)
    if clipped := to_half(exported.model):  # last: weights are rounded once
        exported.changes.append(f"{clipped} constants were clipped to the range of FP16")


TENSORRT = Lane("tensorrt", finalize)
