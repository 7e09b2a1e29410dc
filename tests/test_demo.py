"""Pieces of the demo: honest data, and models that `optimize` takes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

pytest.importorskip("sklearn")

from demo.data import digits
from demo.models import ConvNet, VisionTransformer
from demo.training import accuracy, train
from eqsat_deploy import optimize


def test_parts_of_the_data_are_apart_and_alike() -> None:
    data = digits()
    assert data.train_images.shape == (1257, 1, 8, 8)
    assert data.test_images.shape == (540, 1, 8, 8)
    shares = [torch.bincount(labels) / len(labels) for labels in (data.train_labels, data.test_labels)]
    torch.testing.assert_close(*shares, atol=0.005, rtol=0)
    assert torch.equal(digits().test_images, data.test_images)


@pytest.mark.parametrize(
    ("model", "rule"),
    [(ConvNet, "batch-norm-is-affine"), (VisionTransformer, "self-attention-in-three-parts")],
)
def test_optimize_takes_the_models(model: type[nn.Module], rule: str) -> None:
    torch.manual_seed(0)
    report = optimize(
        model().eval(), torch.randn(2, 1, 8, 8), cost="openvino_int8", extractor="greedy"
    ).report
    assert not report.opaque
    assert any(r.name == rule and r.matches for r in report.rules)


def test_training_learns() -> None:
    torch.manual_seed(0)
    model, data = ConvNet(), digits()
    train(model, data, epochs=3)
    assert not model.training
    assert accuracy(model, data) > 0.8
