from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

from eqsat_deploy.language import BATCH
from eqsat_deploy.lower import lower
from eqsat_deploy.soundness import check_egraph
from tests.support.models import Aliasing, Attends, Opaque, Residual, Tied, Transformer, image, randomized
from tests.support.stages import assert_same, captured, kinds, lowered, optimized


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args: Tensor):
        return self.function(*args)


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
