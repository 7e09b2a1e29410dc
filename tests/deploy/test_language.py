"""Every operator: the shape it derives inside the e-graph is the shape its torch body has."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eqsat_deploy.egraph import fact_text, written
from eqsat_deploy.errors import RegistrationError
from eqsat_deploy.language import OPERATORS, decode, encode
from eqsat_deploy.language import expressions as e
from eqsat_deploy.language.expressions import Variable
from eqsat_deploy.language.operator import aten, operator
from eqsat_deploy.language.pointwise import UNARY, clipped, parse_function, upper_bound
from eqsat_deploy.language.shapes import (
    BATCH,
    axes,
    axis,
    batch_size,
    permutation,
    reshape_sizes,
    scale_batch,
    sizes,
    slot,
)  # fmt: skip
from eqsat_extraction.kernel import Kind

SHAPES = st.lists(st.integers(1, 9), min_size=0, max_size=6).map(tuple)


@given(SHAPES)
def test_shapes_survive_their_encoding(shape):
    assert decode(encode(shape)) == shape
    assert len(encode(shape)) == 7


def test_ranks_above_six_have_no_encoding():
    with pytest.raises(ValueError, match="rank 7"):
        encode((1,) * 7)


@given(st.integers(1, 6), st.data())
def test_slots_and_axes_are_inverse(rank, data):
    at = data.draw(st.integers(-rank, rank - 1))
    assert axis(slot(at, rank), rank) == at % rank


@given(st.permutations(range(4)))
def test_permutations_survive_their_encoding(order):
    assert axes(permutation(order), 4) == tuple(order)


def test_axes_outside_a_tensor_are_an_error():
    with pytest.raises(ValueError, match="axis 3"):
        slot(3, 3)


def test_slots_outside_a_tensor_are_an_error():
    with pytest.raises(ValueError, match="slot 5"):
        axis(5, 1)


def test_the_batch_is_filled_in():
    with batch_size(5):
        assert sizes(encode((BATCH, 3, 2 * BATCH))) == [5, 3, 10]
        assert scale_batch(0) == 0
    assert reshape_sizes(encode((BATCH, 3))) == [-1, 3]


@given(a=SHAPES, b=SHAPES)
@settings(max_examples=50)
def test_broadcasting_is_a_slotwise_maximum_where_torch_allows_it(a, b):
    try:
        expected = torch.broadcast_shapes(a, b)
    except RuntimeError:
        return
    assert decode(e.broadcast(encode(a), encode(b))) == tuple(expected)


def test_expressions_compute_on_numbers_and_are_terms_on_variables():
    x = Variable("VI", "x")
    assert e.replace((1, 2, 3), 1, 7) == (1, 7, 3)
    assert written(e.replace(x, 1, 7)) == "(vec-set x 1 7)"
    assert e.gather((5, 6, 7), (2, 0, 1)) == (7, 5, 6)
    assert e.numel((0, 1, 1, 1, 2, 3, 4)) == 24
    assert e.maximum(2, 3) == 3
    assert written(e.maximum(x[0], 3)) == "(max (vec-get x 0) 3)"
    assert fact_text(x[0] + 1 == 4) == "(= (+ (vec-get x 0) 1) 4)"
    assert e.power(4, -0.5) == 0.5
    assert written('a"b') == '"a\\"b"'
    with pytest.raises(TypeError, match="no egglog literal"):
        written(object())


X = torch.empty((2, 6, 9, 8), device="meta")
ROW = torch.empty((4, 5, 6), device="meta")
CASES = {
    "conv2d": (X, torch.empty((4, 3, 3, 2), device="meta"), torch.empty(4, device="meta"), (2, 1), (1, 0), (1, 2), 2),
    "conv_transpose2d": (X, torch.empty((6, 2, 3, 3), device="meta"), torch.empty(4, device="meta"), (2, 2), (1, 0),
                         (1, 0), (1, 1), 2),
    "linear": (ROW, torch.empty((7, 6), device="meta"), torch.empty(7, device="meta")),
    "matmul": (ROW, torch.empty((6, 3), device="meta")),
    "embedding": (torch.empty((2, 5), dtype=torch.int64, device="meta"), torch.empty((9, 4), device="meta")),
    "max_pool2d": (X, (3, 2), (2, 3), (1, 1), (1, 1), 1),
    "avg_pool2d": (X, (3, 2), (2, 2), (1, 0), 1, 0),
    "adaptive_avg_pool2d": (X, (3, 1)),
    "resize": (X, "bilinear", (4, 17), 0),
    "unfold": (X, (3, 2), (2, 3), (1, 1), (2, 1)),
    "fold": (torch.empty((2, 24, 12), device="meta"), (6, 7), (3, 2), (2, 1), (1, 0), (1, 3)),
    "take": (ROW, torch.empty(7, dtype=torch.int64, device="meta"), 5),
    "pad_edges": (X, "reflect", (1, 2), (3, 4)),
    "batch_norm": (X, *[torch.empty(6, device="meta")] * 4, 1e-5),
    "layer_norm": (ROW, *[torch.empty(6, device="meta")] * 2, 1e-5),
    "group_norm": (X, *[torch.empty(6, device="meta")] * 2, 3, 1e-5),
    "softmax": (ROW, 5),
    "log_softmax": (ROW, 5),
    "cumsum": (ROW, 5),
    "standardize": (ROW, 6, 1e-5),
    "reduce": ("mean", ROW, (0, 0, 0, 0, 0, 1, 1)),
    "unary": ("clamp(0.0,6.0)", ROW),
    "binary": ("add", ROW, torch.empty((1, 6), device="meta")),
    "cast": (ROW, "float16"),
    "reshape": (ROW, encode((4, 30))),
    "permute": (ROW, permutation((2, 0, 1))),
    "expand": (torch.empty((1, 5, 1), device="meta"), encode((4, 5, 6))),
    "slice": (ROW, 5, 1, 5, 2),
    "concat": (5, ROW, torch.empty((4, 2, 6), device="meta")),
    "pad": (ROW, (0, 0, 0, 0, 0, 1, 0), (0, 0, 0, 0, 0, 2, 3), 0.0),
    "roll": (ROW, 5, 2),
    "attention": (ROW, torch.empty((4, 3, 6), device="meta"), torch.empty((4, 3, 2), device="meta"), 0.5),
    "compare": ("ge", ROW, torch.empty((1, 6), device="meta")),
    "where": (torch.empty((4, 1, 1), dtype=torch.bool, device="meta"), torch.empty((), device="meta"), ROW),
    "packed_attention": (torch.empty((2, 5, 24), device="meta"), 2, 0.5),
    "zeros": (encode((2, 3)), "float16"),
    "ones": (encode((2, 3)), "bool"),
    "scalar": (2.0,),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_shape_rule_of_an_operator_is_what_torch_computes(name):
    declared, args = OPERATORS[name], CASES[name]
    encoded = tuple(encode(tuple(a.shape)) if isinstance(a, torch.Tensor) else a for a in args)
    assert decode(declared.shape(*encoded)) == tuple(declared.body(*args).shape)


@pytest.mark.parametrize("name", UNARY)
def test_unary_functions_are_named_with_their_constants(name):
    constants = {"clamp": "(0.0,1.0)", "celu": "(1.0)", "clamp_max": "(1.0)", "clamp_min": "(0.0)", "elu": "(1.0)",
                 "leaky_relu": "(0.1)", "pow": "(2.0)", "softplus": "(1.0,20.0)"}  # fmt: skip
    text = name + constants.get(name, "")
    assert parse_function(text)[0] == name
    lowest = 1.25 if name == "acosh" else 0.25
    value = OPERATORS["unary"].body(text, torch.rand(3, dtype=torch.float64) * 0.5 + lowest)
    assert torch.isfinite(value).all()


def test_unknown_functions_and_second_declarations_are_errors():
    with pytest.raises(ValueError, match="not a unary function"):
        parse_function("nonsense")
    with pytest.raises(RegistrationError, match="imported twice: by"):
        aten("relu.default")(lambda x: x)

    def relu_like(x: torch.Tensor) -> torch.Tensor:
        return x

    relu_like.__name__ = "conv2d"
    with pytest.raises(RegistrationError, match="declared twice: in"):
        operator(Kind.POINTWISE, shape=lambda x: x)(relu_like)


@pytest.mark.parametrize("name", ["clamp(0.0,6.0)", "clamp(0.0,0.5)"])
def test_clipping_from_zero_is_two_steps(name):
    bound = upper_bound(name)
    x = torch.linspace(-8, 8, 33)
    assert torch.equal(clipped(x, bound), OPERATORS["unary"](name, x))


@pytest.mark.parametrize("name", ["clamp(-1.0,6.0)", "clamp(0.0,-1.0)", "clamp_max(6.0)", "relu"])
def test_other_functions_clip_at_no_bound(name):
    assert upper_bound(name) is None
