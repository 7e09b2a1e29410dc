from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from benchmarks._models import mutate
from eqsat_deploy.errors import VerificationError
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
