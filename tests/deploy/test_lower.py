from __future__ import annotations

import functools
import inspect

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim
from torch.utils._python_dispatch import TorchDispatchMode

from eqsat_deploy.errors import CaptureError
from eqsat_deploy.language import BATCH, IMPORTERS
from eqsat_deploy.lower import lower
from eqsat_deploy.lower.imports import import_call
from eqsat_deploy.soundness import check_egraph
from tests.support.models import Aliasing, Attends, Opaque, Residual, Tied, Transformer, image, randomized
from tests.support.stages import assert_same, captured, kinds, lowered, optimized


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args: Tensor):
        return self.function(*args)


class Counting(TorchDispatchMode):
    """Counts the calls of one overload that compute values, not shapes."""

    def __init__(self, overload):
        super().__init__()
        self.overload, self.on_values = overload, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        value = func(*args, **(kwargs or {}))
        self.on_values += func is self.overload and type(value) is Tensor and not value.is_meta
        return value


def test_equal_applications_are_one_row():
    low = lowered(Function(lambda x: F.relu(x) + F.relu(x)), image(2, 4))
    assert kinds(low).count("unary") == 1


def test_shapes_carry_the_batch_symbol():
    low = lowered(randomized(Transformer(depth=1)), image())
    expanded = low.rows.index(next(r for r in low.rows if r.operator.name == "expand"))
    assert tuple(low.metas[expanded].shape) == (BATCH, 1, 16)
    assert not low.constants[expanded], "a constant expanded to the batch is not constant"


def test_dropout_and_copies_vanish():
    low = lowered(
        Function(lambda x: F.dropout(x, 0.5, False).contiguous().clone().detach() * 1.5), image(2, 4)
    )
    assert kinds(low) == ["input", "scalar", "binary"]


def test_a_batchnorm_with_statistics_of_the_batch_is_not_modelled():
    low = lowered(Function(lambda x: F.batch_norm(x, None, None, training=True)), image())
    assert low.calls
    assert "batch_norm" not in kinds(low)


def test_mutations_are_seen_by_later_readers_only():
    low = lowered(randomized(Aliasing()), image(2, 6))
    assert all(not call.target._schema.is_mutable for call in low.calls)


def test_in_place_activations_become_plain_ones():
    low = lowered(randomized(Residual()), image())
    assert not low.calls
    assert [r.args[0] for r in low.rows if r.operator.name == "unary"] == ["relu", "relu"]


def test_tied_parameters_are_one_row():
    low = lowered(randomized(Tied()), torch.randint(0, 11, (2, 7)))
    names = [name for name, _ in low.parameters]
    assert len({"embedding.weight", "head.weight"} & set(names)) == 1
    assert kinds(low).count("linear") == 3


def test_unknown_operators_stay_with_their_arguments_and_a_reason():
    low = lowered(randomized(Opaque()), image(2, 6))
    assert [str(c.target) for c in low.calls] == ["aten.logcumsumexp.default", "aten.sort.default"]
    assert all(c.reason for c in low.calls)
    assert low.calls[0].args[1:] == (1,)


@pytest.mark.parametrize(
    ("function", "argument"),
    [
        (lambda x: F.avg_pool2d(x, 2, divisor_override=3), "divisor"),
        (lambda x: F.pad(x.unsqueeze(2), (0, 0, 1, 1, 0, 0), mode="reflect"), "reflect"),
        (lambda x: F.softmax(x.half(), 1, dtype=torch.float32), "dtype"),
    ],
    ids=["divisor_override", "reflect", "softmax dtype"],
)
def test_arguments_that_no_operator_models_are_refused_and_not_dropped(function, argument):
    model, x = Function(function), image(2, 3, 4, 4)
    low = lowered(model, x)
    assert any(argument in call.reason for call in low.calls)


def test_random_calls_never_share_a_row():
    low = lowered(Function(lambda x: torch.rand_like(x) - torch.rand_like(x)), image(2, 4))
    assert kinds(low).count("opaque") == 2


def test_equal_pure_opaque_calls_share_a_row():
    low = lowered(Function(lambda x: torch.cumprod(x, 1) - torch.cumprod(x, 1)), image(2, 4))
    assert kinds(low).count("opaque") == 1


def test_constant_calls_are_evaluated_once():
    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("index", torch.tensor([2, 0, 1]))
            self.table = nn.Parameter(torch.randn(3, 4))

        def forward(self, x):
            return x + torch.cumprod(self.table[self.index], 0)

    low = lowered(randomized(Table()), image(2, 3, 4))
    assert not low.calls


def test_what_many_constant_calls_read_is_computed_once():
    class Doubled(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("start", torch.arange(4.0))

        def forward(self, x):
            constant = self.start
            for _ in range(1000):  # read twice each: 2 ** 1000 evaluations where nothing is kept
                constant = constant * 0.25 + constant * 0.5
            return x + torch.cumprod(constant, 0) + torch.cumprod(constant + 1, 0)

    found = captured(Doubled(), image(2, 4))
    with Counting(torch.ops.aten.add.Tensor) as counting:
        low = lower(found)
    assert not low.calls
    assert counting.on_values == 1001


def test_attention_that_is_left_whole_says_why():
    found = captured(randomized(Attends("unknown")), image(4, 5, 8))
    with pytest.warns(UserWarning, match=r"multihead_attention.*shape.*not known"):
        low = lower(found)
    assert [c for c in low.calls if "multihead_attention" in str(c.target)]


@pytest.mark.parametrize("call", ["self", "cross", "mask", "weights", "unread"])
def test_attention_whose_shapes_are_known_is_modelled(call):
    low = lowered(randomized(Attends(call)), image(2, 5, 8))
    assert not low.calls
    assert ("self_attention" in kinds(low)) == (call in ("self", "weights", "unread"))


def test_a_size_that_is_no_multiple_of_the_batch_stays_outside_the_language():
    low = lowered(Function(lambda x: torch.cat([x, x[:1]], 0) * 2), image(2, 4))
    assert [c.target for c in low.calls] == [
        torch.ops.aten.slice.Tensor, torch.ops.aten.cat.default, torch.ops.aten.mul.Tensor,
    ]  # fmt: skip


def test_a_pool_of_unknown_size_is_left_alone_and_named():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.AdaptiveAvgPool2d(8))
    shapes = ({0: Dim("batch"), 2: Dim("height", min=4, max=64)},)
    found = captured(model, image(), dynamic_shapes=shapes)
    with pytest.warns(UserWarning, match=r"adaptive_avg_pool2d.*shape.*not known"):
        low = lower(found)
    assert "adaptive_avg_pool2d" not in kinds(low)


def test_rows_remember_where_they_came_from():
    low = lowered(randomized(Residual()), image())
    paths = {low.origin[i][1] for i, row in enumerate(low.rows) if row.operator.name == "conv2d"}
    assert paths == {"stem.0", "conv"}


def test_an_operator_that_is_refused_once_it_is_taken_apart_leaves_no_row():
    model = Function(lambda x: F.pad(x.permute(1, 2, 0), [0, 1]))  # a size of the batch and one
    low = lowered(model, image(2, 3, 4))
    assert kinds(low) == ["input", "permute", "opaque"]
    assert check_egraph(model, image(2, 3, 4)).ok


def test_attention_over_the_batch_with_a_key_of_its_own_stays_whole():
    """Positions are the batch, and there is one key more: no operator has a size of the batch and one."""

    class OverTheBatch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, add_zero_attn=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x, need_weights=False)[0]

    model, x = randomized(OverTheBatch()), image(2, 5, 8)
    low = lowered(model, x)
    assert kinds(low).count("opaque") == 1
    assert check_egraph(model, x).ok
    assert_same(model, optimized(model, x), x)


# -- products over constants, arguments by schema, sizes -------------------------------------------------------------


class Weighted(nn.Module):
    """A function of an input and of a weight (4, 6), a bias (6) and a stack of weights (2, 4, 6)."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function
        self.weight, self.bias = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(6))
        self.stack = nn.Parameter(torch.randn(2, 4, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self)


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (lambda x, m: x @ m.weight, "linear"),
        (lambda x, m: torch.mm(x, m.weight), "linear"),
        (lambda x, m: torch.addmm(m.bias, x, m.weight), "linear"),
        (lambda x, m: torch.addmm(x.sum(1, keepdim=True), x, m.weight), "linear"),
        (lambda x, m: torch.addmm(m.bias[:1], x, m.weight), "linear"),
        (lambda x, m: x.unsqueeze(1) @ m.weight + m.bias, "linear"),
        (lambda x, m: torch.einsum("nc,cd->nd", x, m.weight), "linear"),
        (lambda x, m: torch.einsum("cd,nc->dn", m.weight, x), "linear"),
        (lambda x, m: x[:, None, None] @ m.stack, "matmul"),
        (lambda x, m: x[:, :, None] @ x[:, None], "matmul"),
        (lambda x, m: m.weight.T @ x.T, "matmul"),
    ],
)
def test_products_over_a_constant_matrix_are_linear(function, kind):
    model, x = Weighted(function), image(2, 4)
    low = lowered(model, x)
    assert {"linear", "matmul"} & set(kinds(low)) == {kind}
    assert not low.calls
    assert_same(model, optimized(model, x), image(3, 4, seed=1))


def overload(name: str):
    packet, _, own = name.partition(".")
    return getattr(getattr(torch.ops.aten, packet), own)


@pytest.mark.parametrize("name", [n for n in IMPORTERS if "::" not in n])
def test_importers_take_what_the_schema_gives(name):
    """Every argument, or all but ones that are left at their default."""
    schema = overload(name)._schema
    given = []

    def importer(*args, **kwargs):
        bound = inspect.signature(IMPORTERS[name]).bind(*args, **kwargs)
        given.append(bound.arguments)

    functools.update_wrapper(importer, IMPORTERS[name])
    required = [a for a in schema.arguments if not a.has_default_value()]
    values = tuple(object() for a in required if not a.kwarg_only)
    import_call(importer, overload(name), values, {a.name: object() for a in required if a.kwarg_only})
    assert given


def test_arguments_that_are_false_are_passed():
    """With `include_pad` false and by name, as exported programs of other front ends have it."""
    graph_model = Function(
        lambda x: torch.ops.aten.avg_pool2d.default(x, [2, 2], [2, 2], [1, 1], count_include_pad=False)
    )
    x = image(2, 3, 6, 6)
    (pool,) = [r for r in lowered(graph_model, x).rows if r.operator.name == "avg_pool2d"]
    assert pool.args[-1] == 0
    assert_same(graph_model, optimized(graph_model, x), image(3, 3, 6, 6))
    model = Function(lambda x: torch.ops.aten.std.correction(x, [1], correction=0, keepdim=False))
    assert_same(model, optimized(model, x), image(3, 3, 6, 6))


@pytest.mark.parametrize("factor", [1, 3])
def test_a_size_that_would_be_taken_for_the_batch_is_refused_as_that(factor):
    with pytest.raises(CaptureError, match="stands for the batch"):
        lowered(Function(lambda x: x.expand(x.shape[0], factor * BATCH)[:, :4] * 2), image(2, 1))


@pytest.mark.parametrize("size", [1_000_003, 2_000_006])
def test_a_size_of_a_million_and_three_is_a_size(size):
    model = nn.Embedding(size, 1, _weight=torch.arange(float(size))[:, None])
    ids = torch.tensor([[0, size - 1], [5, 7]])
    assert_same(model, optimized(model, ids), ids[:1])
    assert_same(
        Function(lambda x: x.expand(-1, size)[:, -2:] + 1),
        optimized(Function(lambda x: x.expand(-1, size)[:, -2:] + 1), image(2, 1)),
        image(3, 1),
    )


@pytest.mark.parametrize(("side", "rounds"), [(7, 0), (8, 1)])
@pytest.mark.parametrize("pool", [nn.MaxPool2d, nn.AvgPool2d])
def test_a_pool_that_rounds_up_where_nothing_is_rounded_rounds_down(pool, side, rounds):
    model = pool(3, 2, ceil_mode=True).eval()
    low = lowered(model, image(2, 3, side, side))
    (row,) = (r for r in low.rows if "pool" in r.operator.name)
    assert row.operator.attribute_names.index("ceil") >= 0
    assert (
        dict(zip(row.operator.attribute_names, row.operator.split(row.args)[1], strict=True))["ceil"]
        == rounds
    )
    assert_same(model, optimized(model, image(2, 3, side, side)), image(3, 3, side, side))
