from __future__ import annotations

import pytest
import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from eqsat_deploy.errors import InputError
from eqsat_deploy.inputs import draw_integers, example_arguments
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


class Tokens(nn.Module):
    """Token ids, types of tokens and a mask, of which no sample may be all padding."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.types = nn.Embedding(50, 4), nn.Embedding(2, 4)

    def forward(self, ids, types, mask):
        assert bool(mask.any(-1).all()), "a sample of padding alone"
        scores = (self.words(ids) + self.types(types)).sum(-1)
        return scores.masked_fill(mask == 0, float("-inf")).softmax(-1)


def test_integers_are_drawn_over_what_the_model_accepts():
    zeros = torch.zeros(4, 9, dtype=torch.long)
    (ids, types, mask), _ = draw_integers(Tokens(), ((zeros, zeros.int(), zeros.bool()), {}))
    assert 2 < int(ids.max()) < 50
    assert len(ids.unique()) > 9
    assert set(types.unique().tolist()) == {0, 1}
    assert mask.dtype == torch.bool
    assert mask[:, 0].all()
    assert not mask.all()
    assert bool(Tokens()(ids, types, mask).isfinite().all())


def test_integers_that_are_drawn_twice_are_the_same_and_floats_stay():
    given = (torch.zeros(2, 9, dtype=torch.long), image(2, 4))
    model = nn.Sequential()
    model.forward = lambda ids, x: nn.functional.embedding(ids, torch.ones(7, 2))
    first, second = (draw_integers(model.forward, (given, {}))[0] for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert first[1] is given[1]


def test_dummy_inputs_that_do_not_run_are_no_inputs():
    model = nn.Conv2d(3, 4, 3)
    model.dummy_inputs = {"input_ids": torch.zeros(2, 3, dtype=torch.long)}
    with pytest.warns(UserWarning, match=r"\['batch', 3, 224, 224\]"):
        args, kwargs = example_arguments(model)
    assert (len(args), kwargs) == (1, {})


def test_a_transformers_model_needs_no_inputs():
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 32}
    vision = transformers.ViTModel(transformers.ViTConfig(image_size=32, patch_size=16, **small)).eval()
    _, kwargs = example_arguments(vision)
    assert kwargs["pixel_values"].shape == (2, 3, 32, 32)
    found = optimized(randomized(vision))
    x = image(3, 3, 32, 32)
    assert type(found(pixel_values=x)) is type(vision(pixel_values=x))
    text = randomized(transformers.BertModel(transformers.BertConfig(vocab_size=60, **small)))
    assert "input_ids" in example_arguments(text)[1]
    assert not optimized(text).report.notes
