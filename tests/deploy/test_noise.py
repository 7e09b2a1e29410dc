"""How near outputs in INT8 are to those in float."""

from math import inf

import pytest
import torch

from eqsat_deploy.noise import Fidelity

SCORES = torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0], [1.0, 3.0, 3.0], [0.0, 5.0, 0.0]])


def test_what_is_the_same_leaves_no_doubt() -> None:
    fidelity = Fidelity.of([(SCORES, SCORES)])
    assert fidelity == Fidelity(inf, 0, 4)
    assert fidelity.doubts == []


def test_another_class_is_counted_but_not_another_of_equal_ones() -> None:
    found = SCORES.clone()
    found[1] = torch.tensor([1.9, 2.0, 1.0])  # another answer
    found[2] = torch.tensor([1.0, 3.0, 2.9])  # the other of two that were equal
    fidelity = Fidelity.of([(SCORES, found)])
    assert (fidelity.changed, fidelity.samples) == (1, 4)
    assert any("another one in 1 of 4 samples" in doubt for doubt in fidelity.doubts)


def test_an_output_of_another_shape_is_no_scores() -> None:
    image, single = torch.randn(4, 3, 8, 8), torch.randn(4, 1)
    fidelity = Fidelity.of([(image, image + 1), (single, -single)])
    assert (fidelity.changed, fidelity.samples) == (None, 0)


@pytest.mark.parametrize(("error", "doubted"), [(0.2, True), (0.05, False)])
def test_a_signal_near_its_error_is_doubted(error: float, doubted: bool) -> None:
    image = torch.ones(2, 3, 8, 8)
    assert bool(Fidelity.of([(image, image), (image, image + error)]).doubts) == doubted


def test_one_in_a_hundred_may_change() -> None:
    assert Fidelity(30.0, 1, 100).doubts == []
    assert len(Fidelity(30.0, 2, 100).doubts) == 1
