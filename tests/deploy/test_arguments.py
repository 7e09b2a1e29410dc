"""Whatever is passed, a public function answers with an error of ours that names the argument."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import eqsat_deploy as eqd
from eqsat_deploy.errors import EqsatError
from tests.support.models import image, randomized
from tests.support.stages import optimized

MODEL = randomized(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
WRONG = st.one_of(
    st.integers(max_value=-1),
    st.text(alphabet="xyz?", min_size=1),
    st.booleans(),
    st.binary(min_size=1),
    st.just(float("nan")),
    st.builds(object),
    st.lists(st.integers(), min_size=1),
    st.dictionaries(st.text(), st.integers(), min_size=1),
    st.sampled_from([nn.Linear, torch.float32, print]),
)


@pytest.fixture(scope="module")
def quantized() -> Any:
    return optimized(MODEL, image(2, 4)).quantize([image(2, 4)])


@pytest.mark.parametrize(
    "name", ["batch", "time_limit", "work_limit", "budget", "extractor", "rules", "seed"]
)
@settings(max_examples=25, deadline=None)
@given(value=WRONG)
def test_optimize_names_the_argument(name: str, value: Any):
    if name == "rules" and isinstance(value, dict):
        return
    with pytest.raises(EqsatError, match=r"rule|time_limit|" + name):
        eqd.optimize(MODEL, image(2, 4), cost="kernels", **{name: value})
