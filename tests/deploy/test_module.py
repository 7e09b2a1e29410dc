from __future__ import annotations

import copy
import gc
import io
import pickle
import warnings
import weakref

import pytest
import torch
from torch import nn

from eqsat_deploy.deployment import comparable, deployment, device_of, located
from eqsat_deploy.errors import InputError
from eqsat_deploy.freeze import Space
from eqsat_deploy.lower import Lowered
from eqsat_deploy.module import OptimizedModule
from eqsat_deploy.search import Search
from tests.support.models import Opaque, Residual, Several, image, randomized
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


def test_missing_arguments_are_an_error_that_says_what_is_expected(residual):
    with pytest.raises(InputError, match=r"'x': call it as forward\(x\), with x \[batch, 3, 8, 8\] float32"):
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


class WithBuffers(nn.Module):
    """An opaque call that reads buffers and a frozen parameter; two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.table.weight
        self.frozen = nn.Parameter(torch.rand(4) + 0.5, requires_grad=False)
        self.register_buffer("order", torch.tensor([2, 0, 1, 3]))
        self.register_buffer("offset", torch.rand(4))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.table(ids) * self.frozen
        return self.head(torch.lerp(torch.cumprod(x, -1), self.offset[self.order], 0.5))


def test_what_was_a_buffer_frozen_or_tied_stays_so():
    model = randomized(WithBuffers())
    model.frozen.requires_grad_(False)
    ids = torch.randint(0, 7, (2, 5))
    result = optimized(model, ids)
    trained = {name for name, p in result.named_parameters() if p.requires_grad}
    assert len(trained) == 1, trained
    assert sum(p.shape == (7, 4) for p in result.parameters()) == 1
    assert not any("offset" in name or "order" in name for name, _ in result.named_parameters())
    assert_same(model, result, ids)
    result(ids).sum().backward()
    assert all(p.grad is not None for p in result.parameters() if p.requires_grad)


def test_running_statistics_that_an_opaque_call_reads_are_no_parameters():
    model = nn.Sequential(nn.Conv3d(1, 2, 1), nn.BatchNorm3d(2), nn.ReLU()).eval()
    result = optimized(randomized(model), torch.randn(2, 1, 2, 2, 2))
    assert not any("running" in name for name, _ in result.named_parameters())
    result(torch.randn(2, 1, 2, 2, 2)).sum().backward()


def saved(module):
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("quantized", [False, True], ids=["float", "int8"])
@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), saved],
    ids=["deepcopy", "pickle", "torch.save"],
)
def test_copies_are_the_same_module_with_the_same_record(residual, copied, quantized):
    module = residual.quantize([image(4, 3, 8, 8)]) if quantized else residual
    twin = copied(module)
    assert isinstance(twin, OptimizedModule)
    assert [n.name for n in twin.graph.nodes] == [n.name for n in module.graph.nodes]
    assert deployment(twin).placement == deployment(module).placement
    assert twin.report.to_dict() == module.report.to_dict()
    assert comparable(twin) is not None
    assert_same(module, twin, image(3, 3, 8, 8), tolerance=0.0)
    with pytest.raises(InputError):
        twin(image(2, 3, 9, 9))


def test_operator_overloads_survive_pickling():
    model = randomized(Opaque())
    result = optimized(model, image(2, 6))
    assert_same(result, pickle.loads(pickle.dumps(result)), image(3, 6), tolerance=0.0)


def alive():
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of objects that warn when they are looked at
        return {id(o) for o in gc.get_objects() if isinstance(o, Search | Lowered | Space)}


def test_a_quantized_module_keeps_neither_the_e_graph_nor_the_model():
    before = alive()  # what reports of other tests are of
    model = randomized(Residual())
    result = optimized(model, image()).quantize([image(4, 3, 8, 8)])
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    assert alive() <= before
    weights = sum(t.nbytes for t in result.state_dict().values())
    assert len(pickle.dumps(result)) < 3 * weights + 200_000


def test_functions_that_torch_makes_inside_another_are_pickled_by_name():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.MaxPool2d(2), nn.ReLU(), nn.AdaptiveMaxPool2d(2)).eval()
    module = optimized(model, image(2, 3, 9, 9))
    assert any("<locals>" in getattr(node.target, "__qualname__", "") for node in module.graph.nodes)
    assert_same(module, pickle.loads(pickle.dumps(module)), image(3, 3, 9, 9), tolerance=0.0)


class Counting(nn.Module):
    """Makes a tensor as long as the batch, where its input is."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x) + torch.arange(x.shape[0], device=x.device)[:, None]


def test_what_it_makes_is_made_where_it_is_moved_to():
    module = optimized(Counting().eval(), torch.randn(2, 8))
    assert module(torch.randn(3, 8)).shape == (3, 8)
    moved = copy.deepcopy(module).to("meta")
    assert moved.forward(torch.randn(3, 8, device="meta")).is_meta
    assert not module(torch.randn(3, 8)).is_meta


def test_a_copy_elsewhere_takes_its_record_along(residual):
    here, there = device_of(residual), torch.device("meta")
    assert located(residual, here) is residual
    moved = located(residual, there)
    assert device_of(moved) == there
    assert {value.device for value in deployment(moved).samples} == {there}
    assert {value.device for value in deployment(residual).samples} == {here}
    assert device_of(residual) == here
