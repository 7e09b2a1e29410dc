"""The TensorRT lane: symmetric int8 with zero point 0, and everything else in FP16, scales included.

Under strong typing a DequantizeLinear returns the type of its scale: float32 scales would make all else float32.
"""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np

from eqsat_deploy.deployment import Signature
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


def trtexec(path: Path, signature: Signature) -> str:
    """The command that builds the file at `path`, for `trtexec` of TensorRT 10 and 11.

    11 types strongly whatever is asked, and takes the flag (samples/common/sampleOptions.cpp of 10.13 and 11.1).
    """
    batch = signature.batch
    words = ["trtexec", f"--onnx={path}", f"--saveEngine={path.with_suffix('.plan')}", "--stronglyTyped"]
    for kind, size in (
        ("min", batch.minimum),
        ("opt", batch.typical),
        ("max", batch.maximum or batch.typical),
    ):
        if text := shapes_at(signature, size):
            words.append(f"--{kind}Shapes={text}")
    return shlex.join([*words, "--profilingVerbosity=detailed", "--skipInference"])


def shapes_at(signature: Signature, size: int) -> str:
    """Shapes of the inputs with a batch axis at one batch size, as `trtexec` and ONNX Runtime read them."""
    shapes = (
        f"{spec.name}:{'x'.join(str(size if n is None else n) for n in spec.shape)}"
        for spec in signature.inputs
        if None in spec.shape
    )
    return ",".join(shapes)


TENSORRT = Lane("tensorrt", finalize, trtexec)
