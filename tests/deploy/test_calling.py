"""Calls in the model's own structure: what is no tensor is checked, what is nested stays nested, results too."""

from __future__ import annotations

import copy
import pickle
from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from eqsat_deploy.calling import CallSpec, InputSpec, arguments, array_of, tensor_of
from eqsat_deploy.deployment import deployment
from eqsat_deploy.errors import InputError
from tests.support.models import Several, image, randomized
from tests.support.stages import assert_same, captured, optimized

Pair = namedtuple("Pair", "first second")


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(
        self, x: Tensor, scale: Any = 1.0, mode: str = "a", mask: Tensor | None = None, *, options: Any = ()
    ):
        y = self.linear(x) * (scale if isinstance(scale, int | float) else 3.0)
        y = torch.relu(y) if mode == "b" else y
        for option in options:
            y = y + option
        return y if mask is None else y * mask


@dataclass
class Result:
    main: Tensor
    extra: Any = None


pytree.register_dataclass(Result)


@pytest.mark.parametrize(
    ("example", "other", "words"),
    [
        ((image(2, 4), 0.5), ((image(2, 4), 2.0), {}), "'scale'.*specialized to 0.5, not 2.0"),
        ((image(2, 4), 0.5), ((image(2, 4),), {}), "'scale'.*specialized to 0.5, not 1.0"),
        ((image(2, 4), True), ((image(2, 4), 1), {}), "'scale'.*specialized to True, not 1"),
        ((image(2, 4), 1), ((image(2, 4), True), {}), "'scale'.*specialized to 1, not True"),
        ({"x": image(2, 4), "mode": "b"}, ((image(2, 4), 1.0, "a"), {}), "'mode'.*specialized to 'b', not 'a'"),
        ((image(2, 4),), ((image(2, 4),), {"mask": image(2, 4)}), "'mask'.*specialized to None, not a torch.float32"),
        ((image(2, 4), 1.0, "a", image(2, 4)), ((image(2, 4),), {}), "'mask': a tensor is expected, not None"),
        ({"x": image(2, 4), "options": (1, 2)}, ((image(2, 4),), {"options": (1, 3)}), "specialized to 2, not 3"),
        ({"x": image(2, 4), "options": (1, 2)}, ((image(2, 4),), {"options": (1,)}), "'options'.*nested otherwise"),
        ({"x": image(2, 4), "options": [1]}, ((image(2, 4),), {"options": (1,)}), "'options'.*nested otherwise"),
        ((image(2, 4),), (([image(2, 4)],), {}), r"'x': a tensor is expected, not .*: x \[batch, 4\] float32"),
    ],
)  # fmt: skip
def test_another_value_than_it_was_specialized_to_is_an_error(example, other, words):
    model = Scaled().eval()
    result = optimized(model, example)
    args, kwargs = other
    with pytest.raises(InputError, match=words):
        result(*args, **kwargs)


class Keywords(nn.Module):
    def forward(self, x: Tensor, mask: Tensor | None = None, **more: Any) -> Tensor:
        y = x.relu() * more.get("scale", 1.0)
        return y + more["shift"] if "shift" in more else y


@pytest.mark.parametrize(
    "more", [{}, {"scale": 2.0}, {"shift": image(2, 4)}, {"mask": image(2, 4), "shift": image(2, 4), "scale": 2.0}]
)  # fmt: skip
def test_keywords_of_any_name_are_those_of_the_example(more: dict[str, Any]) -> None:
    example = {"x": image(2, 4), **more}
    result = optimized(Keywords(), example, cost="kernels")
    three = {name: image(3, 4) if isinstance(value, Tensor) else value for name, value in example.items()}
    for given in (example, three):
        assert_same(Keywords(), result, **given)
    for wrong in ({**example, "return_dict": False}, {"X": image(2, 4), **example}):
        with pytest.raises(
            InputError, match=r"'(return_dict|X)'.*: call it as .*, with x \[batch, 4\] float32"
        ):
            result(**wrong)
    if "shift" in more:
        with pytest.raises(InputError, match=r"missing a required.*'shift'"):
            result(x=example["x"])


@pytest.mark.parametrize(
    ("example", "call"),
    [
        ((image(2, 4), 0.5), lambda m, x: m(x, 0.5)),
        ((image(2, 4), 0.5), lambda m, x: m(scale=0.5, x=x)),
        ((image(2, 4), 2), lambda m, x: m(x, 2.0, "a", None, options=())),
        ({"mode": "b", "x": image(2, 4)}, lambda m, x: m(x, mode="b", scale=1.0)),
        ({"options": (1, 2), "x": image(2, 4)}, lambda m, x: m(x, options=(1, 2))),
        ({"options": (image(2, 4), 2), "x": image(2, 4)}, lambda m, x: m(x, options=(x + 1, 2))),
        ((image(2, 4), 1.0, "a", image(2, 4)), lambda m, x: m(x, mask=x * 2)),
    ],
)
def test_calls_are_the_original_s(example, call):
    model = randomized(Scaled())
    result, x = optimized(model, example), image(3, 4, seed=5)
    assert_same(lambda x: call(model, x), lambda x: call(result, x), x)
    for twin in (copy.deepcopy(result), pickle.loads(pickle.dumps(result))):
        assert_same(lambda x: call(model, x), lambda x, twin=twin: call(twin, x), x)


class Nested(nn.Module):
    def forward(self, image: Tensor, text: Any, tab: Any = None, *rest: Tensor, flag: bool = False) -> Any:
        return image + text[0] * text[1], tab["x"] - tab["y"] + sum(rest)


def nested(batch: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    a, b, c, d, e = image(5, batch, 4, seed=batch).unbind(0)
    return (a, (b, c), {"y": d, "x": e}, a + 1, b + 1), {}


def test_nested_calls_flatten_to_tensors_in_order_and_back():
    args, _ = nested(2)
    result = optimized(Nested().eval(), args)
    spec = deployment(result).call
    assert isinstance(spec, CallSpec)
    other, _ = nested(3)
    tensors = spec.flatten_batch(other)
    assert [s.name for s in spec.inputs] == [s.name for s in deployment(result).inputs]
    assert len(tensors) == len(spec.inputs) == 7
    assert_same(Nested(), result, *other)
    assert_same(Nested(), result, *spec.batch(tensors))
    reordered = (*other[:2], {"x": other[2]["x"], "y": other[2]["y"]}, *other[3:])
    assert_same(Nested(), result, *reordered)
    with pytest.raises(InputError, match=r"'tab'.*nested otherwise"):
        result(*other[:2], {"x": other[0]}, *other[3:])
    with pytest.raises(
        InputError, match=r"missing a required argument: 'image'.*call it as forward\(image, text"
    ):
        spec.flatten_batch({"picture": other[0]})


class Returns(nn.Module):
    def __init__(self, make: Any) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: Tensor) -> Any:
        return self.make(x, torch.relu(x))


@pytest.mark.parametrize(
    "make",
    [
        lambda x, y: Result(y),
        lambda x, y: Result(y, (x, None, 3)),
        lambda x, y: Pair(x, Pair(y, None)),
        lambda x, y: {"b": y, "a": [x, None, "text", 2.5]},
        lambda x, y: x,
        lambda x, y: (x, x, y),
        lambda x, y: [y],
        lambda x, y: (y, True),
    ],
    ids=["dataclass", "nested dataclass", "named tuple", "dict", "input", "inputs", "list", "constant"],
)
def test_results_are_nested_as_the_original_s(make):
    model, x = Returns(make).eval(), image(3, 4)
    result = optimized(model, image(2, 4))
    expected, actual = model(x), result(x)
    assert type(actual) is type(expected)
    assert pytree.tree_structure(actual) == pytree.tree_structure(expected)
    for a, b in zip(pytree.tree_leaves(expected), pytree.tree_leaves(actual), strict=True):
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b


def test_transformers_outputs_come_back_as_they_are():
    outputs = pytest.importorskip("transformers.modeling_outputs")

    def make(x: Tensor, y: Tensor) -> Any:
        return outputs.BaseModelOutputWithPooling(last_hidden_state=y, pooler_output=x, hidden_states=(x, y))

    found = optimized(Returns(make).eval(), image(2, 4))(image(3, 4))
    assert isinstance(found, outputs.BaseModelOutputWithPooling)
    assert found.attentions is None
    assert len(found.hidden_states) == 2
    assert torch.equal(found.last_hidden_state, torch.relu(image(3, 4)))


def test_inputs_say_what_they_are_for_another_size():
    result = optimized(randomized(Several()), {"a": image(2, 4), "b": image(2, 3)})
    with pytest.raises(
        InputError, match=r"'b': shape \[batch, 3\] is expected, not \[2, 4\].*example_inputs="
    ):
        result(image(2, 4), b=image(2, 4))


@pytest.mark.parametrize("given", [torch.zeros(2, 3, device="meta"), torch.zeros(2, 3).to_sparse()])
def test_a_tensor_without_values_or_of_another_layout_is_an_error(given):
    with pytest.raises(InputError, match="input 'x': a dense tensor with values is expected, not"):
        InputSpec("x", (None, 3), torch.float32).check(given)


def test_arguments_come_in_forward_s_order_however_they_are_given():
    found = captured(randomized(Several()), {"scale": 0.5, "b": image(2, 3), "a": image(2, 4)})
    assert [a.name for a in found.call.arguments] == ["a", "b", "scale"]
    assert [s.name for s in found.call.inputs] == ["a", "b"]
    assert [t.shape[1] for t in found.tensors] == [4, 3]


def test_arrays_stand_for_tensors():
    array = np.arange(6.0, dtype=np.float32).reshape(2, 3)
    (first,), _ = arguments(array)
    (nested, kept), _ = arguments(([array], "kept"))
    _, named = arguments({"x": {"y": array}})
    for found in (first, nested[0], named["x"]["y"]):
        assert torch.equal(found, torch.tensor(array))
    assert kept == "kept"
    frozen = array[::-1]
    frozen.flags.writeable = False
    assert torch.equal(tensor_of(frozen), torch.tensor(frozen.copy()))
    assert array_of(torch.ones(2, dtype=torch.bfloat16)).dtype == np.float32
    with pytest.raises(InputError, match="object"):
        arguments(np.array([None]))
