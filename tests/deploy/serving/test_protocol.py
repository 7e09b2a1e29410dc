"""Requests and responses as bytes: what fits comes out as it was sent, everything else is refused in words."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eqsat_deploy.calling import InputSpec
from eqsat_deploy.errors import InputError
from eqsat_deploy.serving.protocol import DATATYPES, JSON_LENGTH, Request, read_request, write_response

X = InputSpec("x", (None, 2), torch.float32)
IDS = InputSpec("ids", (None, 3), torch.int64)
OUTPUTS = ["output_0", "output_1"]


def asked(**changes: Any) -> dict[str, Any]:
    """One input of two samples, as JSON."""
    return {"name": "x", "shape": [2, 2], "datatype": "FP32", "data": [1, 2.5, 3, 4]} | changes


def read(
    *inputs: Any, raw: bytes = b"", specs: Any = (X,), header: str | None = None, **more: Any
) -> Request:
    text = json.dumps({"inputs": list(inputs), **more}).encode()
    length = str(len(text)) if raw or header == "" else header
    return read_request(text + raw, length, specs, OUTPUTS)


@pytest.mark.parametrize("data", [[1, 2.5, 3, 4], [[1, 2.5], [3, 4]]])
def test_numbers_may_be_nested_or_flat(data: Any) -> None:
    found = read(
        asked(data=data), id="a", outputs=[{"name": "output_1", "parameters": {"binary_data": True}}]
    )
    assert torch.equal(found.tensors[0], torch.tensor([[1, 2.5], [3, 4]]))
    assert (found.id, found.outputs) == ("a", {"output_1": True})


def test_bytes_come_after_the_json_in_order() -> None:
    x, ids = np.random.default_rng(0).normal(size=(2, 2)).astype(np.float32), np.arange(6).reshape(2, 3)
    inputs = [
        {"name": "ids", "shape": [2, 3], "datatype": "INT64", "parameters": {"binary_data_size": 48}},
        {"name": "x", "shape": [2, 2], "datatype": "FP32", "parameters": {"binary_data_size": 16}},
    ]
    found = read(
        *inputs, raw=ids.tobytes() + x.tobytes(), specs=(X, IDS), parameters={"binary_data_output": True}
    )
    assert torch.equal(found.tensors[0], torch.from_numpy(x))
    assert torch.equal(found.tensors[1], torch.from_numpy(ids))
    assert found.outputs == {"output_0": True, "output_1": True}


@pytest.mark.parametrize("dtype", DATATYPES, ids=str)
def test_every_datatype_survives_the_way_there_and_back(dtype: torch.dtype) -> None:
    value = torch.tensor([[0, 1], [1, 0]], dtype=dtype)
    name = DATATYPES[dtype][0]
    body, headers = write_response("m", "1", Request((), {"y": True}, "7"), {"y": value})
    length = int(headers[JSON_LENGTH])
    answer = json.loads(body[:length])
    assert answer["id"] == "7"
    assert answer["outputs"] == [
        {
            "name": "y",
            "datatype": name,
            "shape": [2, 2],
            "parameters": {"binary_data_size": len(body) - length},
        }
    ]
    given = asked(datatype=name, data=None, parameters={"binary_data_size": len(body) - length})
    (found,) = read(given, raw=body[length:], specs=(InputSpec("x", (None, 2), dtype),)).tensors
    assert found.dtype == dtype
    assert torch.equal(found, value)
    if dtype != torch.bfloat16:
        data = value.reshape(-1).tolist()
        (found,) = read(asked(datatype=name, data=data), specs=(InputSpec("x", (None, 2), dtype),)).tensors
        assert torch.equal(found, value)


def test_json_has_no_word_for_nan() -> None:
    body, _ = write_response(
        "m", "1", Request((), {"y": False}, None), {"y": torch.tensor([1.0, float("nan")])}
    )
    assert json.loads(body)["outputs"][0]["data"] == [1.0, None]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"shape": [2, 3]}, r"4 values for shape \[2, 3\]"),
        ({"shape": [1, 4]}, r"shape \[batch, 2\] is expected, not \[1, 4\]"),
        ({"shape": [4]}, r"shape \[batch, 2\] is expected"),
        ({"shape": [-1, 2]}, r"shape\[0\]"),
        ({"shape": [2**40, 2]}, r"shape\[0\]"),
        ({"shape": [2] * 100}, "shape"),
        ({"shape": "2,2"}, r"Expected `array`, got `str` - at `\$.inputs\[0\].shape"),
        ({"datatype": "FP64"}, "FP32 is expected, not 'FP64'"),
        ({"datatype": "BYTES"}, "FP32 is expected, not 'BYTES'"),
        ({"name": "y"}, "input 'y' is none of x"),
        ({"data": None}, "neither data nor binary_data_size"),
        ({"data": ["a"] * 4}, "holds no values of FP32"),
        ({"data": [[1], [2, 3]]}, "not an array of numbers"),
        ({"data": [None] * 4}, "holds no values of FP32"),
        ({"data": {"a": 1}}, r"data"),
        ({"parameters": {"binary_data_size": 16}}, "16 bytes announced, 0 are left"),
        ({"parameters": {"binary_data_size": -1}}, "binary_data_size"),
        ({"parameters": {"binary_data_size": 0}, "data": None}, r"0 bytes for shape \[2, 2\] of FP32"),
        ({"parameters": {"binary_data_size": 0}}, "has data and binary_data_size"),
        ({"more": 1}, "unknown field `more`"),
    ],
)
def test_an_input_that_does_not_fit_is_said(given: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read(asked(**given))


@pytest.mark.parametrize(
    ("dtype", "data", "words"),
    [
        (torch.uint8, [1, 2, 3, 256], "exceeds UINT8"),
        (torch.int8, [1, 2, 3, -129], "exceeds INT8"),
        (torch.int32, [1, 2, 3, 2**31], "exceeds INT32"),
        (torch.int64, [1, 2, 3, 2**70], "holds no values of INT64"),
        (torch.int64, [1, 2, 3, 4.5], "holds no values of INT64"),
        (torch.bool, [1, 2, 3, 4], "holds no values of BOOL"),
        (torch.bfloat16, [1, 2, 3, 4], "BF16 has no form in JSON"),
    ],
)
def test_values_that_are_none_of_the_datatype_are_said(dtype: torch.dtype, data: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read(asked(datatype=DATATYPES[dtype][0], data=data), specs=(InputSpec("x", (None, 2), dtype),))


@pytest.mark.parametrize(
    ("body", "header", "words"),
    [
        (b"", None, "no JSON of an inference request"),
        (b"[]", None, r"Expected `object`"),
        (b'{"inputs": []}', None, "input 'x' is missing"),
        (b'{"inputs": []}', "99", "no length within a body of 14 bytes"),
        (b'{"inputs": []}', "-1", "no length within"),
        (b'{"inputs": []}', "9" * 30, "no length within"),
        (b'{"inputs": []}', "\xb2", "no length within"),
        (b'{"inputs": []}xx', "14", "2 bytes after the last input"),
        (b'{"inputs": []}xx', None, "no JSON"),
        (b"\xff\xfe" * 8, None, "no JSON"),
        (b"[" * 200_000, None, "no JSON"),
        (b'{"inputs": [{"data": ' + b"[" * 200_000, None, "no JSON"),
    ],
)
def test_a_body_that_is_none_is_said(body: bytes, header: str | None, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read_request(body, header, (X,), OUTPUTS)


def test_the_rest_of_a_request_is_checked() -> None:
    with pytest.raises(InputError, match="'x' is there twice"):
        read(asked(), asked())
    with pytest.raises(InputError, match="output 'z' is none of output_0, output_1"):
        read(asked(), outputs=[{"name": "z"}])
    with pytest.raises(InputError, match="classification is not supported"):
        read(asked(), outputs=[{"name": "output_0", "parameters": {"classification": 3}}])
    assert read(asked(), outputs=[], parameters={"priority": 1}).outputs == {
        "output_0": False,
        "output_1": False,
    }


@given(st.binary(max_size=200), st.one_of(st.none(), st.text(max_size=5), st.integers(0, 300).map(str)))
def test_no_bytes_raise_anything_else(body: bytes, header: str | None) -> None:
    with pytest.raises(InputError):
        read_request(body, header, (X,), OUTPUTS)
