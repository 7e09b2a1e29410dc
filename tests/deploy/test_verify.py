from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import fx, nn

from benchmarks._models import mutate
from eqsat_deploy.errors import VerificationError
from eqsat_deploy.inputs import example_arguments
from eqsat_deploy.verify import relative_error, verify
from tests.support.models import Opaque, Residual, Tied, Transformer, image, randomized
from tests.support.stages import captured, optimized


@pytest.mark.parametrize(
    ("make", "example"),
    [(Residual, image()), (Transformer, image()), (Opaque, image(2, 6)), (Tied, torch.randint(0, 11, (2, 7)))],
    ids=["residual", "transformer", "opaque", "tied"],
)  # fmt: skip
@pytest.mark.parametrize("seed", range(3))
def test_a_planted_mutation_is_caught(make, example, seed):
    model = randomized(make())
    result = optimized(model, example)
    found = captured(model, example)
    assert verify(found, result).error < 1e-4
    broken = copy.deepcopy(result)
    mutate(broken, seed)
    with pytest.raises(VerificationError, match="check_egraph"):
        verify(found, broken)


def test_an_error_at_one_batch_size_only_is_caught():
    class Batch(nn.Module):
        def forward(self, x):
            return x * (1.0 if x.shape[0] == 2 else 1.01)

    found = captured(nn.Identity(), image(2, 4))
    with pytest.raises(VerificationError, match="at batch 3"):
        verify(found, Batch())


def test_zeros_prove_nothing():
    head = nn.Linear(4, 3)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    with pytest.warns(UserWarning, match="zero, so the verification shows nothing"):
        verified = verify(captured(head, image(2, 4)), head)
    assert "shows nothing" in verified.notes[0]


def test_a_report_says_that_zeros_prove_nothing():
    head = nn.Linear(4, 3)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    result = optimized(head.eval(), image(2, 4))
    assert any("zero" in note for note in result.report.notes)


def test_outputs_of_another_number_shape_or_dtype_are_errors():
    found = captured(nn.Identity(), image(2, 4))
    for wrong in (lambda x: (x, x), lambda x: x[:, :3], lambda x: x.double()):
        with pytest.raises(VerificationError):
            verify(found, wrong)


@pytest.mark.parametrize(
    ("a", "b", "error"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 2.0], [1.0, 2.2], 0.1),
        ([0.0, 0.0], [0.0, 1e-12], float("inf")),
        ([float("nan"), 1.0], [float("nan"), 1.0], 0.0),
        ([float("nan"), 1.0], [0.0, 1.0], float("inf")),
        ([float("inf"), 1.0], [float("-inf"), 1.0], float("inf")),
    ],
)
def test_relative_errors(a, b, error):
    found = relative_error([torch.tensor(a, dtype=torch.float64)], [torch.tensor(b, dtype=torch.float64)])
    assert found == pytest.approx(error)


def test_the_original_s_own_rounding_is_allowed():
    class Cancels(nn.Module):
        def forward(self, x):
            return (x + 1e4) - 1e4

    class Exact(nn.Module):
        def forward(self, x):
            return x

    verified = verify(captured(Cancels(), image(2, 4)), Exact())
    assert 1e-4 < verified.error <= verified.tolerance


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args):
        return self.function(*args)


def test_an_infinite_rounding_error_allows_nothing():
    found = captured(Function(lambda x: (x * 3e38) * 10 * 0 + x), image(2, 4))  # infinite in float32 alone
    with pytest.warns(UserWarning, match="NaN or infinite"):
        assert verify(found, found.module).notes
    found = captured(Function(lambda x: torch.where(x > 0, (x * 3e38) * 10, x)), image(2, 4))
    with pytest.raises(VerificationError, match="output 0"):
        verify(found, Function(lambda x: torch.where(x > 0, (x * 3e38) * 10, x * 1.5)))


def test_every_output_is_held_to_its_own_dtype():
    found = captured(Function(lambda x: (x, x.half(), (x * 10).long())), image(2, 4))
    verify(found, Function(lambda x: (x, (x * 1.001).half(), (x * 10).long())))
    for wrong in (
        lambda x: (x * 1.001, x.half(), (x * 10).long()),
        lambda x: (x, x.half(), (x * 10).long() + 1),
    ):
        with pytest.raises(VerificationError, match=r"output [02]"):
            verify(found, Function(wrong))


def test_random_operators_are_compared_under_one_seed_or_named():
    found = captured(Function(lambda x: x + torch.rand_like(x)), image(2, 4))
    assert verify(found, Function(lambda x: torch.rand_like(x) + x)).notes == ()
    with pytest.warns(UserWarning, match=r"shows nothing: rand_like \(aten\.rand_like\.default\)"):
        verified = verify(found, Function(lambda x: x + torch.rand_like(x) + torch.rand_like(x)))
    assert verified.notes
    switched_off = captured(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)), image(2, 4))
    with pytest.raises(VerificationError):
        verify(switched_off, nn.Linear(4, 4))


def test_a_model_that_computes_something_else_each_time_is_said_to():
    count = itertools.count(1)
    found = captured(Function(lambda x: x * float(next(count))), image(2, 4))
    with pytest.raises(VerificationError, match="of the model itself differs"):
        verify(found, nn.Identity())


def test_samples_that_are_mixed_up_are_seen_though_the_example_is_of_one():
    found = captured(nn.Linear(4, 3), image(1, 4))
    linear = found.module
    with pytest.raises(VerificationError, match="at batch 3"):
        verify(found, Function(lambda x: linear(x.flip(0))))


def test_confused_tokens_are_seen_where_they_were_inferred():
    module = fx.symbolic_trace(Tied().eval())
    (tokens,) = module.graph.find_nodes(op="placeholder")
    tokens.meta["val"] = torch.zeros(2, 7, dtype=torch.long)
    args, _ = example_arguments(module)
    assert len(args[0].unique()) > 4
    found = captured(module, args)
    with pytest.raises(VerificationError):
        verify(found, Function(lambda ids: found.module(10 - ids)))
