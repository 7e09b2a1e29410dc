from __future__ import annotations

import inspect
import json
import sys
import warnings
from collections import namedtuple
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
import torch.utils._pytree as pytree
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from eqsat_deploy import load, manifest
from eqsat_deploy.calling import CallSpec, Fixed
from eqsat_deploy.deployment import (
    Batch,
    InputSpec,
    PlacedKernel,
    Signature,
    comparable,
    deployment,
    flat_outputs,
    record,
)
from eqsat_deploy.engines.base import Layer, realized
from eqsat_deploy.engines.openvino import OpenVINOEngine
from eqsat_deploy.engines.program import flat_module
from eqsat_deploy.errors import InputError
from eqsat_deploy.processors import threads
from tests.support.models import image, randomized
from tests.support.stages import optimized

CPU = torch.device("cpu")


def structures() -> st.SearchStrategy[Any]:
    leaves = st.one_of(
        st.none(), st.integers(0, 5), st.floats(allow_nan=False), st.booleans(), st.text(max_size=3)
    )
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.lists(inner, max_size=3).map(tuple),
            st.dictionaries(st.text(max_size=3), inner, max_size=3),
        ),
        max_leaves=8,
    )


@given(structures(), structures())
def test_a_signature_goes_through_json(outputs: Any, argument: Any) -> None:
    def forward(x: Any, option: Any = argument, *rest: Any, mask: Any, device: Any = CPU) -> None:
        """Its signature is what counts."""

    inputs = [InputSpec("x", (None, 3, 4), torch.float32), InputSpec("mask", (2,), torch.bool)]
    example = ((torch.zeros(2, 3, 4),), {"mask": torch.zeros(2, dtype=torch.bool)})
    call = CallSpec.of(inspect.signature(forward), example, pytree.tree_structure(outputs), iter(inputs))
    leaves = pytree.tree_leaves(outputs)
    found = tuple(0 if i % 2 else Fixed("it", leaf) for i, leaf in enumerate(leaves))
    signature = Signature(call, found, Batch(1, 2, None))
    written = json.loads(json.dumps(signature.to_json(), allow_nan=False))
    msgspec.convert(written, manifest.Signature)
    again = Signature.from_json(written)
    assert again == signature
    assert again.call.flatten(*example)[1] is example[1]["mask"]


def test_threads_are_as_many_as_there_are_cpus_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    assert [threads(given) for given in ({}, {"threads": 3}, {"threads": 1328})] == [0, 3, 4]
    for wrong in (-1, 1.5, True, "2", None):
        with pytest.raises(InputError, match="threads="):
            threads({"threads": wrong})


@pytest.mark.parametrize("sizes", [(0, 1, 2), (2, 1, 3), (1, 4, 3)])
def test_batches_are_ordered(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(InputError, match="minimum <= typical <= maximum"):
        Batch(*sizes)


def test_inputs_must_agree_on_the_batch() -> None:
    inputs = tuple(InputSpec(name, (None, 2), torch.float32) for name in "ab")
    with pytest.raises(InputError, match="disagree on the batch size"):
        Signature(CallSpec.plain(inputs, 0), (0,)).check([torch.zeros(2, 2), torch.zeros(3, 2)])


class Many(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        y = self.layer(x)
        return {"a": (y, x), "b": y, "c": None}


def test_a_flat_module_returns_each_output_once_and_shares_parameters() -> None:
    module = fx.symbolic_trace(Many())
    record(module, inputs=(InputSpec("x", (None, 2), torch.float32),))
    flat = flat_module(module)
    assert [node.name for node in flat_outputs(module)] == ["layer", "x"]
    signature = Signature.of(module, Batch())
    assert signature.pack(["layer", "x"]) == {"a": ("layer", "x"), "b": "layer", "c": None}
    assert repr(signature.call) == "CallSpec(x [batch, 2] float32)"
    assert flat.layer is module.layer
    x = torch.randn(3, 2)
    y, same = flat(x)
    torch.testing.assert_close(y, module(x)["b"])
    assert torch.equal(same, x)


class Constant(nn.Module):
    def forward(self, x: torch.Tensor) -> Any:
        return [x, 3, (None, "text")]


def test_outputs_that_are_no_tensors_are_handed_back_and_kept() -> None:
    module = fx.symbolic_trace(Constant())
    record(module, inputs=(InputSpec("x", (None,), torch.float32),))
    for signature in (made := Signature.of(module, Batch()), Signature.from_json(made.to_json())):
        assert signature.pack(["x"]) == ["x", 3, (None, "text")]
    strange = replace(made, outputs=(0, Fixed("output 1", slice(1)), *made.outputs[2:]))
    with pytest.raises(InputError, match=r"returns slice\(None, 1, None\), which an artifact cannot keep"):
        strange.to_json()


Pair = namedtuple("Pair", "first second")


@dataclass
class Result:
    main: Tensor
    extra: Any = None


pytree.register_dataclass(Result)


class Nested(nn.Module):
    """Called by position and by name, nested; returns a dataclass, nothing, an input and a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, image: Tensor, text: Any, scale: float = 1.0, *, tab: Any = None) -> Any:
        y = torch.relu(self.layer(image)) * scale + text[0] - text[1]
        return {"result": Result(y + tab["x"]), "pair": Pair(tab["y"] * 2, None), "given": image, "kept": 7}


def call(size: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    a, b, c, d, e = image(5, size, 4, seed=size).unbind(0)
    return (a, (b, c), 0.5), {"tab": {"y": d, "x": e}}


@pytest.fixture(scope="module")
def nested() -> tuple[nn.Module, fx.GraphModule, OpenVINOEngine]:
    model = randomized(Nested())
    args, kwargs = call(2)
    names = {"image": args[0], "text": args[1], "scale": args[2], **kwargs}
    form = optimized(model, names, cost="openvino_int8")
    with warnings.catch_warnings():  # it is small, and nothing in it pays in INT8
        warnings.simplefilter("ignore")
        form = form.quantize([names])
        return model, form, form.build("openvino", batch=Batch(1, 2, 4), options={"threads": 1})


def as_the_module(engine: Any, form: Any) -> None:
    for size in (1, 2, 3):
        (a, text, scale), named = call(size)
        for found in (
            engine(a, text, scale, **named),
            engine(tab={"x": named["tab"]["x"], "y": named["tab"]["y"]}, scale=scale, text=text, image=a),
        ):
            expected = form(a, text, scale, **named)
            assert isinstance(found["result"], Result)
            assert isinstance(found["pair"], Pair)
            assert pytree.tree_structure(found) == pytree.tree_structure(expected)
            assert (found["pair"].second, found["kept"]) == (None, 7)
            torch.testing.assert_close(found["given"], a)
            torch.testing.assert_close(found["result"].main, expected["result"].main, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(found["pair"].first, expected["pair"].first)


def test_an_engine_is_called_as_the_module_is(nested: Any) -> None:
    _, form, engine = nested
    as_the_module(engine, form)


def test_a_loaded_engine_is_called_as_the_module_is(nested: Any, tmp_path: Path) -> None:
    _, form, engine = nested
    engine.save(tmp_path / "model.eqsat")
    loaded = load(tmp_path / "model.eqsat")
    as_the_module(loaded, form)
    assert loaded.signature == engine.signature


def test_a_loaded_engine_knows_the_fields_of_classes_that_are_not_there(
    nested: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nested[2].save(tmp_path / "model.eqsat")
    monkeypatch.delitem(sys.modules, __name__)
    loaded = load(tmp_path / "model.eqsat")
    args, kwargs = call(2)
    expected, found = nested[2](*args, **kwargs), loaded(*args, **kwargs)
    assert not isinstance(found["result"], Result)
    assert torch.equal(found["result"].main, expected["result"].main)
    assert found["result"]["main"] is found["result"].main
    assert found["result"].extra is None
    with pytest.raises(AttributeError, match=r"Result has no field 'other', but \['main', 'extra'\]"):
        _ = found["result"].other
    first, second = found["pair"]
    assert (found["pair"].first is first, second, type(found["pair"]).__name__) == (True, None, "Pair")
    assert repr(found["result"]).startswith("Result(main=tensor(")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a, k: (a[:1], k), r"missing a required argument: 'text': call it as forward\(image, text, scale=1.0"),
        (lambda a, k: (a, {**k, "tob": 1}), r"unexpected keyword argument 'tob'.*text_0 \[batch, 4\] float32"),
        (lambda a, k: (a[:2], k), "'scale'.*specialized to 0.5, not 1.0"),
        (lambda a, k: (a, {"tab": {"x": a[0]}}), "'tab'.*nested otherwise"),
        (lambda a, k: (a, {"tab": None}), "'tab'.*nested otherwise"),
        (lambda a, k: ((a[0], [*a[1]], a[2]), k), "'text'.*nested otherwise"),
        (lambda a, k: ((a[0][:, :3], *a[1:]), k), r"'image': shape \[batch, 4\] is expected, not \[2, 3\]"),
        (lambda a, k: ((a[0].double(), *a[1:]), k), "'image': torch.float32 is expected, not torch.float64"),
        (lambda a, k: ((a[0].long(), *a[1:]), k), "'image': torch.float32 is expected, not torch.int64"),
        (lambda a, k: ((a[0].double().numpy(), *a[1:]), k), "'image': torch.float32 is expected, not torch.float64"),
        (lambda a, k: ((np.array(["a", "b"]), *a[1:]), k), "an array of <U1 is given"),
        (lambda a, k: (([1.0, 2.0], *a[1:]), k), r"'image': a tensor is expected, not \[1.0, 2.0\]"),
        (lambda a, k: ((a[0][:1], *a[1:]), k), "disagree on the batch size: 'image' has 1, 'text_0' has 2"),
    ],
)  # fmt: skip
def test_a_call_that_does_not_fit_says_what_is_expected(nested: Any, change: Any, words: str) -> None:
    args, kwargs = change(*call(2))
    with pytest.raises(InputError, match=words):
        nested[2](*args, **kwargs)


def test_arrays_are_answered_with_arrays(nested: Any) -> None:
    args, kwargs = call(2)
    expected = nested[2](*args, **kwargs)
    arrays = pytree.tree_map_only(torch.Tensor, torch.Tensor.numpy, (args, kwargs))
    found = nested[2](*arrays[0], **arrays[1])
    for wanted, got in zip(
        pytree.tree_leaves([expected["result"].main, *expected["pair"]]),
        pytree.tree_leaves([found["result"].main, *found["pair"]]),
        strict=True,
    ):
        assert isinstance(got, np.ndarray) == isinstance(wanted, torch.Tensor)
        assert wanted is None or np.array_equal(got, wanted.numpy())
    image = args[0].numpy()
    for view in (image[::-1][::-1], np.asfortranarray(image), np.broadcast_to(image[:1], image.shape)):
        same = nested[2](view, *arrays[0][1:], **arrays[1])["result"].main
        tensors = nested[2](torch.tensor(view.copy()), *args[1:], **kwargs)["result"].main
        assert np.array_equal(same, tensors.numpy())


def test_engines_have_a_short_repr(nested: Any) -> None:
    shipped = nested[2].report["engine"]["shipped"]
    assert repr(nested[2]) == (
        f"OpenVINOEngine({nested[2].version}; image [batch, 4] float32, text_0 [batch, 4] float32, "
        "text_1 [batch, 4] float32, scale=0.5, tab_y [batch, 4] float32, tab_x [batch, 4] float32; "
        f"Batch(minimum=1, typical=2, maximum=4); {shipped} form)"
    )


def test_the_forms_know_how_they_are_called_and_real_inputs(nested: Any) -> None:
    _, form, _ = nested
    plain = comparable(form)
    known = [deployment(each) for each in (form, plain)]
    assert known[0].call == known[1].call is not None
    assert all(torch.equal(a, b) for a, b in zip(known[0].samples, known[1].samples, strict=True))
    assert len(known[1].samples) == len(known[1].inputs)
    assert all(len(repr(each)) < 400 for each in known)


def test_a_kernel_ran_as_the_first_layer_that_covers_it_or_another_of_its_nodes() -> None:
    kernels = [
        PlacedKernel(nodes[0], nodes, "int8", "int8", 1.0)
        for nodes in (("conv", "relu"), ("norm", "silu"), ("cut",))
    ]
    layers = [
        Layer("a", "Convolution", "int8", 1.0, ("conv", "relu")),
        Layer("b", "Subgraph", "float32", 1.0, ("relu", "silu")),
        Layer("c", "Reorder", "float32", 1.0, ("conv",)),
    ]
    assert realized(kernels, layers) == {"conv": "int8", "norm": "float32", "cut": None}
