from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from eqsat_deploy.capture import capture, shared_copy
from eqsat_deploy.errors import CaptureError, InputError
from tests.support.models import (
    Attends,
    Counting,
    Residual,
    Several,
    Tied,
    Transformer,
    Unexportable,
    image,
    randomized,
)
from tests.support.stages import assert_same, captured, optimized


def test_the_batch_is_symbolic_and_every_other_dimension_is_fixed():
    found = captured(randomized(Residual()), image(1, 3, 8, 8))
    assert found.batch_axes == (0,)
    assert found.batch_symbol is not None
    placeholder = next(n for n in found.graph.nodes if n.name == found.inputs[0])
    assert [isinstance(d, int) for d in placeholder.meta["val"].shape] == [False, True, True, True]


def test_examples_of_one_are_repeated_because_export_specializes_a_batch_of_one():
    found = captured(randomized(Residual()), image(1, 3, 8, 8))
    (example,) = found.example[0]
    assert example.shape[0] == 2


def test_capture_works_on_a_copy_that_shares_parameters():
    model = randomized(Transformer()).train()
    hooks = []
    model.head.register_forward_hook(lambda *_: hooks.append(1))
    kinds = [type(m) for m in model.modules()]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    addresses = {k: v.data_ptr() for k, v in model.state_dict().items()}
    found = captured(model, image())
    assert [type(m) for m in model.modules()] == kinds
    assert all(m.training for m in model.modules())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert {k: v.data_ptr() for k, v in model.state_dict().items()} == addresses
    parameters = {n for n, _ in model.named_parameters()}
    shared = {t.data_ptr() for n, t in found.constants.values() if n in parameters}
    assert shared == {addresses[n] for n in parameters}


def test_a_shared_copy_shares_parameters_and_nothing_else():
    model = randomized(Residual())
    other = shared_copy(model)
    assert other.head is not model.head
    assert other.head.weight is model.head.weight
    assert other.norm.running_mean is not model.norm.running_mean
    assert torch.equal(other.norm.running_mean, model.norm.running_mean)


def test_attention_stays_one_node():
    found = captured(randomized(Transformer(depth=1)), image())
    targets = [str(n.target) for n in found.graph.nodes if n.op == "call_function"]
    assert sum("multihead_attention" in t for t in targets) == 1
    assert not any("softmax" in t or "scaled_dot_product" in t for t in targets)


def test_subclasses_of_attention_are_not_replaced():
    class Own(nn.MultiheadAttention):
        def forward(self, *args, **kwargs):
            out, weights = super().forward(*args, **kwargs)
            return out * 2, weights

    model = Attends()
    model.attention = Own(8, 2, batch_first=True)
    found = captured(randomized(model), image(2, 5, 8))
    assert not any("eqsat_deploy" in str(n.target) for n in found.graph.nodes)


def test_a_model_that_does_not_export_is_told_by_its_line():
    with pytest.raises(CaptureError, match=r"models\.py:\d+.*if x\.sum\(\) > 0"):
        captured(randomized(Unexportable()), image(2, 4))


class Clamping(nn.Module):
    """Writes to a parameter, through a view of what shares its memory."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([-3.0, 3.0, 0.5, 2.0]))

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data.view(2, 2)[0].clamp_(-1.0, 1.0)  # the line that writes
        return x * self.weight


class Caching(nn.Module):
    """Fills a buffer with what it computes, and counts by assignment."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("cache", torch.zeros(4, 4))
        self.register_buffer("steps", torch.tensor(0))
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        self.cache[:2].copy_(y[:2].detach())
        self.steps = self.steps + 1
        return y + self.cache.sum()


class Filling(nn.Module):
    """Fills a buffer when it runs for the first time, and reads it from then on."""

    def __init__(self) -> None:
        super().__init__()
        self.ready = False
        self.register_buffer("scale", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        if not self.ready:
            self.scale.fill_(2.0)
            self.ready = True
        return x * self.scale


class Listing(nn.Module):
    """Keeps tensors where no buffer is registered."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = [torch.zeros(4)]

    def forward(self, x: Tensor) -> Tensor:
        self.seen[0].add_(1.0)
        return x + self.seen[0]


def state(model: nn.Module) -> dict[str, Tensor]:
    return {n: t.detach().clone() for n, t in (*model.named_parameters(), *model.named_buffers())}


@pytest.mark.parametrize(
    ("make", "refused"),
    [(Residual, None), (Filling, None), (Counting, "buffer 'calls'"), (Caching, "buffer '(cache|steps)'"),
     (Clamping, r"parameter 'weight'.*test_capture\.py.*clamp_"), (Listing, "keep no tensors")],
    ids=["plain", "filled once", "counter", "cache", "parameter", "list"],
)  # fmt: skip
@pytest.mark.parametrize("given", [True, False], ids=["given", "inferred"])
def test_no_parameter_or_buffer_of_the_caller_s_changes_also_when_the_model_is_refused(make, refused, given):
    model = make().eval() if make is not Residual else randomized(Residual())
    example = None if not given else image() if make is Residual else image(2, 4)
    model.example_input_array = image() if make is Residual else image(2, 4)
    before, attributes = state(model), set(vars(model))
    if refused is None:
        optimized(model, example)
    else:
        with pytest.raises(CaptureError, match=refused) as error:
            optimized(model, example)
        assert "eval mode or" not in str(error.value)
    after = state(model)
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert set(vars(model)) == attributes
    assert not getattr(model, "ready", False)
    assert not getattr(model, "seen", [image(1) * 0])[0].any()


def test_a_probe_for_inputs_changes_nothing_either():
    model = nn.Sequential(nn.Linear(4, 4), Counting())
    with pytest.raises(CaptureError, match="buffer '1.calls'"):
        optimized(model)
    assert model[1].calls.item() == 0


@pytest.mark.parametrize(
    ("example", "words"),
    [(image(2, 4, 8, 8), r"float32\[2, 4, 8, 8\]"), (image(2, 3), "float32"), ((image(), image()), "example_inputs="),
     (image().long(), "int64")],
    ids=["shape", "rank", "number", "dtype"],
)  # fmt: skip
def test_inputs_that_do_not_fit_are_an_error_that_shows_them(example, words):
    with pytest.raises(InputError, match=words):
        captured(randomized(Residual()), example)


def test_forward_may_take_any_number_of_arguments():
    class Sum(nn.Module):
        def forward(self, *tensors):
            return sum(tensors)

    found = capture(Sum(), (image(2, 4), image(2, 4), image(2, 4)))
    assert found.batch_axes == (0, 0, 0)


def test_the_batch_may_be_another_axis():
    class Second(nn.Module):
        def forward(self, x):
            return x.softmax(0)

    found = captured(Second(), image(5, 2, 8), dynamic_shapes=({1: Dim("batch")},))
    assert found.batch_axes == (1,)


def test_keyword_inputs_and_nested_results_keep_their_structure():
    model = randomized(Several())
    found = captured(model, {"a": image(2, 4), "b": image(2, 3), "scale": 0.5})
    result = model(image(2, 4), b=image(2, 3), scale=0.5)
    assert torch.utils._pytree.tree_structure(result) == found.call.outputs


def test_an_exported_program_is_taken_as_it_is():
    model = randomized(Residual())
    program = torch.export.export(model, (image(),), dynamic_shapes=({0: Dim("batch")},))
    found = captured(program, None)
    assert found.batch_axes == (0,)


def test_tied_parameters_are_one_tensor():
    model = randomized(Tied())
    found = captured(model, torch.randint(0, 11, (2, 7)))
    tensors = [t for n, t in found.constants.values() if n in ("embedding.weight", "head.weight")]
    assert len({t.data_ptr() for t in tensors}) == 1


def test_deepcopied_models_capture_alike():
    model = randomized(Residual())
    first, second = (captured(m, image()) for m in (model, copy.deepcopy(model)))
    assert [str(n.target) for n in first.graph.nodes] == [str(n.target) for n in second.graph.nodes]


def test_regions_without_gradients_or_autocast_are_part_of_the_graph():
    class Regions(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            with torch.autocast(device_type="cpu", enabled=False):
                y = torch.relu(x) + self.linear(x).float()
                with torch.no_grad():
                    z = y.clone()
                    z.mul_(2.0)
            first, second = (y + z).chunk(2, 1)
            return y, first * second

    model = randomized(Regions())
    found = captured(model, image(2, 4))
    assert not found.graph.find_nodes(op="get_attr")
    assert_same(model, optimized(model, image(2, 4)), image(5, 4))


def test_a_model_whose_train_returns_nothing_is_captured():
    class Frozen(Residual):
        def train(self, mode: bool = True) -> None:
            super().train(mode)
            self.norm.training = False

    model = randomized(nn.Sequential(Frozen()))[0]
    assert_same(model, optimized(model, image()), image())
    assert_same(model, optimized(model), image(2, 3, 224, 224))
