"""Requests and responses of the Open Inference Protocol, version 2, over REST, with its binary tensor data extension.

https://github.com/kserve/open-inference-protocol and, for binary data, Triton's extension_binary_data.md: a body is
JSON, and then the bytes of the tensors that have a `binary_data_size` in it, in order; a header has the JSON's length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Annotated, Any

import msgspec
import numpy as np
import torch
from msgspec import Meta, Struct, field
from torch import Tensor

from eqsat_deploy.calling import InputSpec
from eqsat_deploy.errors import InputError
from eqsat_deploy.interface import DATATYPES

JSON_LENGTH = "inference-header-content-length"
KINDS = {
    "b": "b",
    "i": "iub",
    "u": "iub",
    "f": "fiu",
}  # of NumPy: what a tensor of a kind may be written as in JSON

Size = Annotated[int, Meta(ge=0, le=2**31 - 1)]


class InputParameters(Struct):
    """Of one input; other parameters are ignored."""

    binary_data_size: Annotated[int, Meta(ge=0)] | None = None


class RequestInput(Struct, forbid_unknown_fields=True):
    """One tensor: nested or flat numbers in `data`, or bytes after the JSON."""

    name: str
    shape: Annotated[list[Size], Meta(max_length=64)]
    datatype: str
    parameters: InputParameters = field(default_factory=InputParameters)
    data: list[Any] | None = None


class OutputParameters(Struct):
    """Of one output; other parameters are ignored."""

    binary_data: bool = False
    classification: int = 0


class RequestOutput(Struct, forbid_unknown_fields=True):
    """One output that is wanted, and how."""

    name: str
    parameters: OutputParameters = field(default_factory=OutputParameters)


class RequestParameters(Struct):
    """Of the whole request; other parameters are ignored."""

    binary_data_output: bool = False


class RequestBody(Struct, forbid_unknown_fields=True):
    """The JSON of a request."""

    inputs: list[RequestInput]
    outputs: list[RequestOutput] | None = None
    id: Annotated[str, Meta(max_length=1000)] | None = None
    parameters: RequestParameters = field(default_factory=RequestParameters)


@dataclass(frozen=True)
class Request:
    """What is asked: tensors in the order of the inputs, and which outputs in which form (whether as bytes)."""

    tensors: tuple[Tensor, ...]
    outputs: Mapping[str, bool]
    id: str | None


def read_request(
    body: bytes | bytearray, json_length: str | None, inputs: Sequence[InputSpec], outputs: Sequence[str]
) -> Request:
    """The request in `body` for a model of these inputs and outputs.

    `json_length` is the header that says how long the JSON is, None where there is nothing after it.

    Raises:
        InputError: it is not of the protocol, or does not fit the model; the message says where.
    """
    view = memoryview(body)
    length = _length(json_length, len(view))
    try:
        asked = msgspec.json.decode(view[:length], type=RequestBody)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise InputError(f"the request is no JSON of an inference request: {error}") from error
    rest = view[length:]
    found: dict[str, Tensor] = {}
    known = {spec.name: spec for spec in inputs}
    for given in asked.inputs:
        if given.name not in known or given.name in found:
            what = "is there twice" if given.name in found else f"is none of {', '.join(known)}"
            raise InputError(f"input {given.name!r} {what}")
        size = given.parameters.binary_data_size
        if size is not None and size > len(rest):
            raise InputError(f"input {given.name!r}: {size} bytes announced, {len(rest)} are left")
        found[given.name] = _tensor(given, known[given.name], None if size is None else rest[:size])
        rest = rest[size or 0 :]
    if len(rest):
        raise InputError(f"{len(rest)} bytes after the last input")
    if missing := [name for name in known if name not in found]:
        raise InputError(f"input {missing[0]!r} is missing")
    return Request(tuple(found[spec.name] for spec in inputs), _wanted(asked, outputs), asked.id)


def write_response(
    model: str, version: str, request: Request, results: Mapping[str, Tensor]
) -> tuple[bytes, dict[str, str]]:
    """Body and headers of the response. Values that JSON has not (NaN, infinities) are null in it: ask for bytes."""
    described: list[dict[str, Any]] = []
    parts = []
    for name, binary in request.outputs.items():
        value = results[name]
        entry: dict[str, Any] = {
            "name": name,
            "datatype": DATATYPES[value.dtype][0],
            "shape": list(value.shape),
        }
        if binary:
            parts.append(_bytes(value))
            entry["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            entry["data"] = value.reshape(-1).tolist()
        described.append(entry)
    answer: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": described}
    if request.id is not None:
        answer["id"] = request.id
    text = msgspec.json.encode(answer)
    if not parts:
        return text, {"content-type": "application/json"}
    headers = {"content-type": "application/octet-stream", JSON_LENGTH: str(len(text))}
    return b"".join((text, *parts)), headers


def described(name: str, shape: Sequence[int | None], dtype: torch.dtype) -> dict[str, Any]:
    """A tensor in a model's metadata: -1 where the batch stands."""
    return {"name": name, "datatype": DATATYPES[dtype][0], "shape": [-1 if n is None else n for n in shape]}


def _length(header: str | None, total: int) -> int:
    if header is None:
        return total
    if not header.isascii() or not header.isdecimal() or len(header) > 15 or int(header) > total:
        raise InputError(f"{JSON_LENGTH}: {header[:40]!r} is no length within a body of {total} bytes")
    return int(header)


def _wanted(asked: RequestBody, outputs: Sequence[str]) -> dict[str, bool]:
    if not asked.outputs:
        return dict.fromkeys(outputs, asked.parameters.binary_data_output)
    for output in asked.outputs:
        if output.name not in outputs:
            raise InputError(f"output {output.name!r} is none of {', '.join(outputs)}")
        if output.parameters.classification:
            raise InputError(f"output {output.name!r}: classification is not supported, ask for the values")
    whole = asked.parameters.binary_data_output
    return {output.name: output.parameters.binary_data or whole for output in asked.outputs}


def _tensor(given: RequestInput, spec: InputSpec, raw: memoryview | None) -> Tensor:
    what = f"input {given.name!r}"
    datatype, dtype = DATATYPES[spec.dtype]
    if given.datatype != datatype:
        raise InputError(f"{what}: {datatype} is expected, not {given.datatype[:40]!r}")
    count = prod(given.shape)
    if raw is not None:
        if given.data is not None:
            raise InputError(f"{what}: has data and binary_data_size")
        if len(raw) != count * np.dtype(dtype).itemsize:
            raise InputError(f"{what}: {len(raw)} bytes for shape {given.shape} of {datatype}")
        array = np.frombuffer(raw, dtype=dtype).copy()  # aligned, and of its own
    else:
        array = _array(given.data, np.dtype(dtype), spec.dtype, what)
        if array.size != count:
            raise InputError(f"{what}: {array.size} values for shape {given.shape}")
    value = torch.from_numpy(array).reshape(given.shape)
    return spec.check(value.view(spec.dtype) if spec.dtype == torch.bfloat16 else value)


def _array(data: list[Any] | None, dtype: np.dtype[Any], wanted: torch.dtype, what: str) -> Any:
    if data is None:
        raise InputError(f"{what}: has neither data nor binary_data_size")
    if wanted == torch.bfloat16:
        raise InputError(f"{what}: BF16 has no form in JSON, send bytes")
    try:
        array = np.asarray(data)
    except (ValueError, OverflowError) as error:
        raise InputError(f"{what}: data is not an array of numbers ({error})") from error
    if array.size and array.dtype.kind not in KINDS[dtype.kind]:
        raise InputError(f"{what}: data holds no values of {DATATYPES[wanted][0]}")
    if dtype.kind in "iu" and array.size:
        limits = np.iinfo(dtype)
        if int(array.min()) < limits.min or int(array.max()) > limits.max:
            raise InputError(f"{what}: data exceeds {DATATYPES[wanted][0]}")
    return array.astype(dtype).reshape(-1)


def _bytes(value: Tensor) -> bytes:
    flat = value.contiguous()
    return (flat.view(torch.int16) if value.dtype == torch.bfloat16 else flat).numpy().tobytes()
