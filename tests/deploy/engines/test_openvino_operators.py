"""PReLU and recurrent layers are one operator of OpenVINO's each."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eqsat_deploy.errors import EngineError
from tests.support.stages import optimized, outputs


class Recurrent(nn.Module):
    """All results of a recurrent network over (batch, steps, 6), the batch first in each."""

    def __init__(self, kind: str, batch_first: bool = True, **options: Any) -> None:
        super().__init__()
        self.network = getattr(nn, kind)(6, 5, batch_first=batch_first, **options)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        first = self.network.batch_first
        steps, last = self.network(x if first else x.transpose(0, 1))
        states = last if isinstance(last, tuple) else (last,)
        return steps if first else steps.transpose(0, 1), *(state.transpose(0, 1) for state in states)


@pytest.mark.parametrize(
    ("kind", "options", "layers"),
    [
        ("LSTM", {"num_layers": 2, "bidirectional": True, "batch_first": False}, 2),
        ("LSTM", {"bias": False}, 1),
        ("GRU", {"num_layers": 2, "bidirectional": True, "batch_first": False}, 2),
        ("GRU", {"bias": False}, 1),
        ("RNN", {"bidirectional": True}, 1),
        ("RNN", {"nonlinearity": "relu", "num_layers": 2}, 2),
        ("LSTM", {"proj_size": 3}, 0),  # OpenVINO has none with a projection
    ],
)
def test_recurrent_layers_stay_whole(kind: str, options: dict[str, Any], layers: int) -> None:
    torch.manual_seed(0)
    model = Recurrent(kind, **options).eval()
    engine = optimized(model, torch.randn(2, 3, 6), cost="openvino_fp32").build()
    whole = [op for op in engine.model.get_ops() if op.get_type_name() == f"{kind}Sequence"]
    assert len(whole) >= layers
    assert all("/" in op.get_friendly_name() for op in whole), "traced back to the module's call"
    for batch in (1, 2, 3):
        x = torch.randn(batch, 3, 6)
        for ours, theirs in zip(outputs(engine, x), outputs(model, x), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_recurrent_layer_has_as_many_operators_for_any_number_of_steps() -> None:
    def operators(steps: int) -> int:
        model = Recurrent("LSTM").eval()
        return len(optimized(model, torch.randn(2, steps, 6), cost="openvino_fp32").build().model.get_ops())

    assert operators(32) == operators(4)


def test_what_stands_around_a_recurrent_layer_is_int8() -> None:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.after = nn.Linear(256, 512), nn.Linear(64, 512)
            self.network = nn.GRU(512, 64, batch_first=True)
            self.out = nn.Linear(512, 512)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.out(torch.relu(self.after(self.network(torch.relu(self.before(x)))[0])))
            return y

    torch.manual_seed(0)
    batches = [torch.randn(16, 8, 256) for _ in range(2)]
    quantized = optimized(Tagger().eval(), batches[0], cost="openvino_int8").quantize(batches)
    layers = {node: layer for layer in quantized.build().layers() for node in layer.nodes}
    for name in ("before", "out"):
        assert layers[name].precision == "int8", layers[name]


def test_a_prelu_is_part_of_its_convolution() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.PReLU(16), nn.Conv2d(16, 16, 3), nn.PReLU(), nn.Conv2d(16, 4, 1)
    ).eval()
    engine = optimized(model, torch.randn(2, 3, 16, 16), cost="openvino_fp32").build()
    assert [layer.type for layer in engine.layers() if layer.type != "Reorder"] == ["Convolution"] * 3
    x = torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(outputs(engine, x)[0], outputs(model, x)[0], rtol=1e-4, atol=1e-5)


def test_an_operator_that_openvino_does_not_have_is_named_with_its_node() -> None:
    class Spectrum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.rfft(self.linear(x)).abs()

    module = optimized(Spectrum().eval(), torch.randn(2, 16), cost="openvino_fp32")
    with pytest.raises(EngineError, match=r"no operator for aten\._fft_r2c\.default \(node fft_rfft"):
        module.build()
