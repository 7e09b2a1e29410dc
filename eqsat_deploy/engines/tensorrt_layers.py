"""What ran: TensorRT's inspector and profiler read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from eqsat_deploy.engines.base import Layer
from eqsat_deploy.engines.onnx import nodes_of

# Inspector texts of 10.x ("Row major linear FP16 format") and 11.x ("Half") for each dtype, most specific
# first.
PRECISIONS = (
    ("int8", r"\bint8\b"), ("bfloat16", r"\bbf16\b|\bbfloat16\b"),
    ("float16", r"\bfp16\b|\bhalf\b|\bfloat16\b"),
    ("float8", r"\bfp8\b"), ("int64", r"\bint64\b"), ("int32", r"\bint32\b"), ("bool", r"\bbool\b"),
    ("float32", r"\bfp32\b|\bfloat\b|\bfloat32\b"),
)  # fmt: skip


def read_layers(
    described: Iterable[Mapping[str, Any] | str], milliseconds: Mapping[str, Sequence[float]]
) -> tuple[Layer, ...]:
    """Layers from the inspector's JSON, of TensorRT 10.x or 11.x, and profiled times by layer name.

    An engine built without detailed verbosity lists names only; their precision is then `unknown`.
    """
    layers = []
    for entry in described:
        fields: Mapping[str, Any] = {"Name": entry} if isinstance(entry, str) else entry
        times = milliseconds.get(fields["Name"], ())
        read = [*fields.get("Inputs", ()), *fields.get("Outputs", ())]
        layers.append(
            Layer(
                fields["Name"],
                str(fields.get("LayerType", "unknown")),
                _precision(read[0]) if read else "unknown",
                1000 * sum(times) / len(times) if times else 0.0,
                nodes_of(f"{fields['Name']}\x1e{fields.get('Metadata', '')}"),
            )
        )
    return tuple(layers)


def _precision(tensor: Mapping[str, Any]) -> str:
    # 10.x has one field for format and type, "Format/Datatype", 11.x a field for each, "Format" and "Datatype", which
    # is "DataType" of the engine's own inputs and outputs.
    fields = {key.lower(): value for key, value in tensor.items()}
    text = str(fields.get("datatype") or fields.get("format/datatype") or fields.get("format", "")).lower()
    return next((name for name, pattern in PRECISIONS if re.search(pattern, text)), "unknown")
