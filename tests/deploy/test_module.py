from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from eqsat_deploy.deployment import comparable
from eqsat_deploy.errors import InputError
from eqsat_deploy.module import OptimizedModule
from tests.support.models import Residual, Several, image, randomized
from tests.support.stages import assert_same, optimized


@pytest.fixture(scope="module")
def residual():
    return optimized(randomized(Residual()), image())


@pytest.mark.parametrize("call", [lambda m, x: m(x), lambda m, x: m(x=x)], ids=["positional", "keyword"])
@pytest.mark.parametrize(
    ("x", "words"),
    [
        (image(2, 3, 8, 9), r"\[batch, 3, 8, 8\] is expected, not \[2, 3, 8, 9\]"),
        (image(3, 8, 8), "is expected"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.long), "float32 is expected, not torch.int64"),
    ],
    ids=["height", "rank", "dtype"],
)
def test_inputs_that_it_was_not_specialized_to_are_an_error(residual, call, x, words):
    with pytest.raises(InputError, match=words):
        call(residual, x)


def test_nested_inputs_are_checked_too():
    class Pair(nn.Module):
        def forward(self, pair):
            return pair[0] + pair[1]["b"]

    pair = (image(2, 4), {"b": image(2, 4)})
    result = optimized(Pair().eval(), (pair,))
    assert_same(Pair(), result, (image(5, 4), {"b": image(5, 4, seed=1)}))
    with pytest.raises(InputError, match="is expected"):
        result((image(2, 4), {"b": image(2, 1)}))


def test_inputs_are_told_by_name():
    result = optimized(randomized(Several()), {"a": image(2, 4), "b": image(2, 3)})
    with pytest.raises(InputError, match="'b'"):
        result(b=image(2, 4), a=image(2, 4))


def test_missing_arguments_are_python_s_own_error(residual):
    with pytest.raises(TypeError, match="x"):
        residual(y=1)


def test_copies_keep_the_check_and_the_report(residual):
    twin = copy.deepcopy(residual)
    assert isinstance(twin, OptimizedModule)
    assert twin.report.kernels == residual.report.kernels
    with pytest.raises(InputError):
        twin(image(2, 3, 9, 9))


def test_the_plain_form_computes_the_same(residual):
    assert_same(residual, comparable(residual), image(3, 3, 8, 8))


def test_the_plain_form_is_no_comparison_once_the_weights_have_changed(residual):
    quantized = residual.quantize([image(4, 3, 8, 8)])
    assert comparable(quantized) is not None
    with torch.no_grad():
        next(quantized.parameters()).mul_(1.5)
    assert comparable(quantized) is None
    assert comparable(quantized.quantize([image(4, 3, 8, 8)])) is None


def test_quantized_modules_keep_report_and_plain_form(residual):
    quantized = residual.quantize([image(4, 3, 8, 8)])
    assert quantized.report is not None
    assert comparable(quantized) is not None
    with pytest.raises(InputError):
        quantized(image(2, 3, 9, 9))
