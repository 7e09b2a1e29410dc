from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from eqsat_deploy.capture import capture, shared_copy
from eqsat_deploy.capture.functional import is_mutable
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
    with pytest.raises(CaptureError, match=r"buffer '1\.calls'"):
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


# -- exported programs ---------------------------------------------------------------------------------------------


def in_place(x: Tensor, weight: Tensor) -> Tensor:
    with torch.no_grad():
        y = x * weight
    y[:, 1:].mul_(2.0)
    return torch.relu(y).unbind(1)[0]


class Calls(nn.Module):
    """A function of its arguments and of a weight."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(image(4, seed=3))

    def forward(self, *args: Any) -> Any:
        return self.function(*args, self.weight)


def exported(model: nn.Module, *args: Any) -> torch.export.ExportedProgram:
    shapes = tuple({0: Dim("batch")} for _ in args)
    return torch.export.export(model.eval(), args, dynamic_shapes=(shapes,))


def test_an_exported_program_is_not_edited():
    program = exported(Calls(in_place), image(2, 4))
    before, signature = str(program.graph), copy.deepcopy(program.graph_signature)
    result = optimized(program)
    assert str(program.graph) == before
    assert program.graph_signature == signature
    assert_same(program.module(), result, image(5, 4, seed=1))
    assert_same(Calls(in_place), optimized(program), image(5, 4, seed=1))


def test_examples_beside_an_exported_program_are_those_that_are_used():
    program = exported(Calls(lambda x, w: x * w), image(2, 4))
    found = captured(program, image(3, 4, seed=7))
    assert torch.equal(found.example[0][0], image(3, 4, seed=7))
    program.example_inputs = None
    assert_same(program.module(), optimized(program, image(3, 4)), image(5, 4))


@pytest.mark.parametrize(
    ("example", "options", "words"),
    [(None, {"dynamic_shapes": ({0: Dim("batch")},)}, "torch.export.export"), (image(2, 5), {}, r"\[batch, 4\]"),
     ((image(2, 4), image(2, 4)), {}, "forward"), ({"z": image(2, 4)}, {}, "forward")],
    ids=["shapes", "size", "number", "name"],
)  # fmt: skip
def test_what_does_not_fit_an_exported_program_is_refused_with_the_reason(example, options, words):
    program = torch.export.export(nn.Linear(4, 3).eval(), (image(2, 4),), dynamic_shapes=({0: Dim("batch")},))
    with pytest.raises(InputError, match=words):
        captured(program, example, **options)


# -- what aliases what ---------------------------------------------------------------------------------------------


def written(view):
    """A function that changes a view of a fresh tensor in place, between two readers of it."""

    def function(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        y = x * weight
        before = y + 0
        view(y).mul_(2.0)
        return before, y + 1

    return function


VIEWS = {
    "mT": lambda y: y.unflatten(1, (2, 2)).mT,
    "T": lambda y: y[:, 1:].T,
    "t": lambda y: y.t(),
    "adjoint": lambda y: y.unflatten(1, (2, 2)).adjoint(),
    "reshape_as": lambda y: y.reshape_as(y),
    "view_as": lambda y: y.view_as(y),
    "ravel": lambda y: y.ravel(),
    "diagonal": lambda y: y.unflatten(1, (2, 2)).diagonal(0, 1, 2),
    "movedim": lambda y: y.movedim(0, 1),
    "squeeze": lambda y: y.unsqueeze(1).squeeze(1),
    "expand_as": lambda y: y.expand_as(y),
    "narrow": lambda y: y.narrow(1, 1, 2),
    "chunk": lambda y: y.chunk(2, 1)[1],
    "tensor_split": lambda y: y.tensor_split(2, 1)[0],
    "hsplit": lambda y: y.hsplit(2)[1],
    "swapdims": lambda y: y.swapdims(0, 1),
    "positive": lambda y: y.positive(),
    "contiguous": lambda y: y.contiguous(),
    "type_as": lambda y: y.type_as(y),
    "to": lambda y: y.to(torch.float32),
    "dropout": lambda y: torch.dropout(y, 0.5, False),
    "dropout of a view": lambda y: torch.dropout(y[:, 1:], 0.5, False),
    "detach": lambda y: y.detach(),
    "real": lambda y: torch.real(y),
    "changed before": lambda y: torch.relu_(y),
    "dropout_": lambda y: torch.dropout_(y, 0.5, False),
    "unsqueeze_": lambda y: y[:, 1:].unsqueeze_(0),
    "clone": lambda y: y.clone(),
    "itself": lambda y: y,
    "view of a view": lambda y: y.t()[1:].mT,
}


@pytest.mark.parametrize("name", VIEWS)
def test_writes_through_every_view_are_seen(name):
    model = Calls(written(VIEWS[name]))
    assert_same(model, optimized(model, (image(2, 4),)), image(3, 4, seed=1), tolerance=1e-6)


@pytest.mark.parametrize(
    ("view", "words"),
    [(lambda y: torch.einsum("ij->ji", y), "einsum.*returns a view"), (torch.atleast_3d, "returns a view"),
     (lambda y: y.unfold(1, 2, 2), "fixes the batch")],
    ids=["einsum", "atleast_3d", "unfold"],
)  # fmt: skip
def test_writes_that_torch_loses_are_refused(view, words):
    with pytest.raises(CaptureError, match=words):
        optimized(Calls(written(view)), (image(2, 4),))


@pytest.mark.parametrize(
    "function",
    [
        lambda x, w: (lambda y: (y.relu_(), y.mul_(2.0), y)[0] + y)(x * w),
        lambda x, w: (lambda y: (y.relu_() + 0, y.add_(1.0))[0] + y)(x * w),
        lambda x, w: (lambda y: (y.masked_fill_(y > 0, 3.0), y.add_(x, alpha=2))[1])(x * w),
        lambda x, w: (lambda y: y.copy_(x.flip(1)) + y)(x * w),
        lambda x, w: (lambda y: (y.half().add_(x * w), y)[0].float() + y)(x * w),
        lambda x, w: (lambda y: (y.zero_(), y + x)[1])(x * w),
    ],
    ids=["the result is the tensor", "read between", "masked", "copied", "another dtype", "zeroed"],
)
def test_in_place_operators_on_fresh_tensors(function):
    model = Calls(function)
    assert_same(model, optimized(model, (image(2, 4),)), image(3, 4, seed=1), tolerance=1e-3)


def window_mask(x: Tensor, w: Tensor) -> Tensor:
    """Numbers of windows, as torchvision's Swin writes them."""
    mask = x.new_zeros((4, 4))
    for i, rows in enumerate((slice(0, 2), slice(2, None))):
        for j, columns in enumerate((slice(0, 1), slice(1, None))):
            mask[rows, columns] = 2 * i + j
    mask[0].add_(0.5)
    return x @ (w * mask.masked_fill(mask != 0, 3.0) + mask)


def one_of_two(x: Tensor, w: Tensor) -> Tensor:
    ones, zeros = torch.ones(4), torch.zeros(4)
    ones[1:].mul_(3.0)
    zeros[0] = w[0]
    return x * ones + zeros


MASKS = {
    "window": (window_mask, True),
    "out of order": (lambda x, w: (lambda m: (x * m, m.add_(1.0), m)[0] + m)(torch.ones(4)), False),
    "read by a constant": (lambda x, w: (lambda m: (m + 1, m.add_(1.0))[0] * x + m)(torch.ones(4)), False),
    "by data": (lambda x, w: (lambda m: m.copy_(w) * x)(torch.zeros(4)), False),
    "two": (one_of_two, False),
    "chosen by a constant": (
        lambda x, w: x * torch.zeros(4).index_put_((torch.tensor([0, 2]),), torch.tensor([5.0, 6.0])) + w,
        True,
    ),
}


@pytest.mark.parametrize("name", MASKS)
def test_tensors_filled_with_numbers_are_constants(name, monkeypatch):
    function, whole = MASKS[name]
    model = Calls(function)
    assert_same(model, optimized(model, (image(2, 4),)), image(3, 4, seed=1))
    monkeypatch.setattr("eqsat_deploy.capture.model.functional", lambda program: program)
    graph = captured(model, (image(2, 4),)).graph
    written = [node for node in graph.nodes if is_mutable(node)]
    assert bool(written) is not whole
    assert name != "two" or "aten.ones" not in str(graph)


# -- what cannot be captured says why ------------------------------------------------------------------------------


def branching(x: Tensor, w: Tensor) -> Tensor:
    return x * w if x.shape[0] == 2 else x


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (
            lambda x, w: (x * w).view(2, -1),
            r"fixes a size that must be free.*test_capture\.py:\d+.*view\(2, -1\)",
        ),
        (branching, r"fixes a size that must be free.*test_capture\.py:\d+.*shape\[0\] == 2"),
        (
            lambda x, w: x * w if x.sum() > 0 else x,
            r"control flow depends on the values.*test_capture\.py:\d+.*x\.sum",
        ),
        (
            lambda x, w: x[:, : int(x[0, 0].abs()) + 1] * w[0],
            r"values of a tensor.*test_capture\.py:\d+.*abs",
        ),
    ],
    ids=["hard-coded", "branch on the batch", "branch on a value", "size by value"],
)
def test_what_does_not_export_names_the_line_and_torch_is_silent(function, words, capfd, caplog):
    with pytest.raises(CaptureError, match=words) as error:
        captured(Calls(function), (image(2, 4),))
    assert "Constraints violated" not in str(error.value)
    assert capfd.readouterr() == ("", "")
    assert not [r for r in caplog.records if r.levelname in ("WARNING", "ERROR")]


def test_an_empty_batch_is_refused_as_what_it_is():
    with pytest.raises(InputError, match="no samples"):
        captured(nn.Identity(), torch.zeros(0, 4))


def test_nan_and_meta_examples_are_refused():
    x = image(2, 4)
    x[0, 1] = float("nan")
    with pytest.raises(InputError, match=r"example_inputs.*NaN"):
        captured(nn.Identity(), x)
    with pytest.raises(InputError, match=r"example_inputs.*meta device"):
        captured(nn.Identity(), torch.zeros(2, 4, device="meta"))


def scripted() -> nn.Module:
    return torch.jit.script(nn.Linear(4, 4))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (None, "NoneType"), ("resnet", "str"), (lambda x: x, "function"),
        (nn.Linear, r"class Linear.*Linear\(\.\.\.\)"),
        (scripted, "ScriptModule"), (lambda: nn.Linear(4, 4, device="meta"), "'weight' is on the meta device"),
        (lambda: nn.LazyLinear(3), "'weight' has no shape"), (nn.Linear(4, 4).state_dict(), "Dict"),
    ],
    ids=["none", "text", "function", "class", "script", "meta", "lazy", "state"],
)  # fmt: skip
@pytest.mark.parametrize("example", [image(2, 4), None], ids=["given", "inferred"])
def test_what_is_no_model_is_an_error_that_says_what_to_pass(model, words, example):
    made = model() if words in ("ScriptModule",) or "device" in words or "shape" in words else model
    with pytest.raises(InputError, match=f"model: .*{words}"):
        optimized(made, example)


def test_what_cannot_be_copied_is_named():
    model = nn.Linear(4, 4)
    model.lock = __import__("threading").Lock()
    with pytest.raises(CaptureError, match=r"cannot be copied.*lock"):
        captured(model, image(2, 4))


def test_weights_that_a_hook_computes_are_copied():
    model = torch.nn.utils.weight_norm(nn.Linear(4, 3))
    model(image(2, 4))  # leaves a computed weight behind, which cannot be deep-copied
    assert_same(model.eval(), optimized(model, image(2, 4)), image(3, 4))


def test_examples_may_come_out_of_another_network():
    x = nn.Linear(4, 4)(image(2, 4))
    assert_same(nn.Tanh(), optimized(nn.Tanh(), x), image(3, 4))
