"""What stands at the door of a served model: named tensors, in the words of the Open Inference Protocol."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eqsat_deploy.calling import InputSpec
from eqsat_deploy.deployment import Signature
from eqsat_deploy.errors import InputError

# BF16 has no NumPy dtype: its bytes are read as uint16 and viewed.
DATATYPES: dict[torch.dtype, tuple[str, Any]] = {
    torch.bool: ("BOOL", np.bool_),
    torch.uint8: ("UINT8", np.uint8),
    torch.int8: ("INT8", np.int8),
    torch.int16: ("INT16", np.int16),
    torch.int32: ("INT32", np.int32),
    torch.int64: ("INT64", np.int64),
    torch.float16: ("FP16", np.float16),
    torch.bfloat16: ("BF16", np.uint16),
    torch.float32: ("FP32", np.float32),
    torch.float64: ("FP64", np.float64),
}


@dataclass(frozen=True)
class Output:
    """One flat output: `output_0`, ... as in the files of `export`; None in `shape` where the batch stands."""

    name: str
    shape: tuple[int | None, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Outputs:
    """What is computed. `joined` is whether requests can be: every input and output has its samples along axis 0."""

    each: tuple[Output, ...]
    joined: bool


def outputs_of(run: Callable[[Sequence[Tensor]], Sequence[Tensor]], signature: Signature) -> Outputs:
    """The flat outputs of `run`, called on zeros of the typical size and of another: that tells where the batch is.

    Raises:
        InputError: an input or output is of a dtype that the protocol has not.
    """
    batch = signature.batch
    size = batch.typical
    other = size + 1 if batch.maximum is None or size < batch.maximum else max(batch.minimum, size - 1)
    shapes = []
    for number in (other, size):  # the typical one last: what it leaves warm is what will be used
        found = run(signature.zeros(number))
        shapes.append([tuple(value.shape) for value in found])
    joined = size != other and all(spec.shape[:1] == (None,) for spec in signature.inputs)
    outputs = []
    for index, (value, first, last) in enumerate(zip(found, *shapes, strict=True)):
        pattern = tuple(
            None if (a, b) == (other, size) and a != b else b for a, b in zip(first, last, strict=True)
        )
        joined = joined and pattern.index(None) == 0 if None in pattern else False
        outputs.append(Output(f"output_{index}", pattern, value.dtype))
    tensors: list[InputSpec | Output] = [*signature.inputs, *outputs]
    for each in tensors:
        if each.dtype not in DATATYPES:
            raise InputError(f"{each.name}: the Open Inference Protocol has no {each.dtype}")
    return Outputs(tuple(outputs), joined)
