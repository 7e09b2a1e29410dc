from __future__ import annotations

import math

import numpy as np
import pytest

from eqsat_deploy.errors import ExtractionError
from eqsat_deploy.freeze import Space
from eqsat_deploy.language import conv2d
from eqsat_deploy.price import kernel_of, price, specs_of
from eqsat_extraction.cost_models import find_cost_model
from tests.support.models import Residual, image, randomized
from tests.support.stages import space


@pytest.fixture(scope="module")
def residual() -> Space:
    return space(randomized(Residual()), image())


class Model:
    """A cost model that remembers what it is asked."""

    name, unit, float_dtype, int8 = "own", "us", "float32", True

    def __init__(self, answer=1.0):
        self.asked, self.answer = [], answer

    def price(self, kernel):
        self.asked.append(kernel)
        return self.answer


def test_equal_kernels_are_priced_once(residual):
    model = Model()
    priced = price(residual, model)
    assert len(set(model.asked)) == len(model.asked)
    assert np.isfinite(priced.costs).all()


def test_leaves_are_free(residual):
    priced = price(residual, Model())
    for index, (_, node) in enumerate(residual.choices):
        if node.operator.name in ("input", "constant"):
            assert priced.costs[index] == 0


def test_the_batch_scales_shapes(residual):
    number, node = next((c, n) for c, n in residual.choices if n.operator is conv2d and not n.integer)
    one, eight = (kernel_of(specs_of(residual, Model(), batch), number, node) for batch in (1, 8))
    assert one.inputs[0].shape == (1, *eight.inputs[0].shape[1:])
    assert eight.inputs[0].shape[0] == 8
    assert eight.flops == pytest.approx(8 * one.flops)
    assert one.inputs[1] == eight.inputs[1]
    assert one.inputs[1].constant


def test_a_model_without_integers_makes_them_infinite(residual):
    priced = price(residual, find_cost_model("openvino_fp32"))
    integer = [math.isinf(priced.costs[i]) for i, (_, n) in enumerate(residual.choices) if n.integer]
    assert integer
    assert all(integer)


@pytest.mark.parametrize("answer", [-1.0, float("nan")])
def test_prices_below_zero_or_undefined_are_errors_that_name_the_kernel(residual, answer):
    with pytest.raises(ExtractionError, match="cost model 'own'"):
        price(residual, Model(answer))


def test_kernels_are_described_in_words(residual):
    words = {str(n) for _, n in residual.choices}
    assert "conv2d + relu" in words or "conv2d + add + relu" in words
    assert any(w.endswith("[int8]") for w in words)
