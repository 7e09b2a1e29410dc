from __future__ import annotations

import pytest
import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from eqsat_deploy.errors import InputError
from eqsat_deploy.inputs import example_arguments
from tests.support.models import Residual, image, randomized
from tests.support.stages import optimized


@pytest.mark.parametrize(
    ("given", "args", "kwargs"),
    [
        (torch.ones(2), 1, []),
        ((torch.ones(2), 3), 2, []),
        ([torch.ones(2)], 1, []),
        ({"x": torch.ones(2)}, 0, ["x"]),
    ],
    ids=["tensor", "tuple", "list", "dict"],
)
def test_given_inputs(given, args, kwargs):
    positional, named = example_arguments(nn.Identity(), given)
    assert len(positional) == args
    assert list(named) == kwargs


def test_anything_else_is_an_error():
    with pytest.raises(InputError, match="not str"):
        example_arguments(nn.Identity(), "2x3")


def test_shape_propagated_placeholders():
    traced = fx.symbolic_trace(nn.Linear(4, 3))
    ShapeProp(traced).propagate(image(5, 4))
    (x,), _ = example_arguments(traced)
    assert x.shape == (5, 4)


def test_lightning_s_example_array():
    model = nn.Linear(4, 3)
    model.example_input_array = image(2, 4)
    (x,), _ = example_arguments(model)
    assert x is model.example_input_array


def test_timm_s_configuration():
    model = nn.Conv2d(3, 4, 3)
    model.pretrained_cfg = {"input_size": (3, 32, 32)}
    (x,), _ = example_arguments(model)
    assert x.shape == (2, 3, 32, 32)


def test_transformers_dummy_inputs():
    model = nn.Embedding(9, 4)
    model.dummy_inputs = {"input": torch.zeros(2, 3, dtype=torch.long)}
    assert list(example_arguments(model)[1]) == ["input"]


def test_a_probe_says_what_it_assumed():
    with pytest.warns(UserWarning, match=r"\['batch', 3, 224, 224\]"):
        (x,), _ = example_arguments(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
    assert x.shape == (2, 3, 224, 224)


def test_a_probe_leaves_the_model_alone():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    before = model[1].running_mean.clone()
    with pytest.warns(UserWarning, match="assuming"):
        example_arguments(model)
    assert model.training
    assert torch.equal(model[1].running_mean, before)


def test_what_cannot_be_inferred_says_what_was_tried():
    class Picky(nn.Module):
        def forward(self, x, y):
            return x + y

    with pytest.raises(InputError, match=r"example_inputs=.*tensor"):
        example_arguments(Picky())


def test_parameters_of_another_dtype_are_met():
    model = nn.Linear(4, 3).double()
    with pytest.warns(UserWarning, match="float64"):
        (x,), _ = example_arguments(model)
    assert x.dtype == torch.float64


def test_a_rebuilt_module_knows_its_inputs():
    result = optimized(randomized(Residual()), image())
    (x,), _ = example_arguments(result)
    assert x.shape == (2, 3, 8, 8)
