"""A model on the GPU goes the whole way there, and what is made of it answers where it is asked.

It needs a GPU and torch, not TensorRT.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import eqsat_deploy as eqd
from eqsat_deploy.errors import InputError
from eqsat_deploy.noise import decibels
from eqsat_deploy.quantization import finetune

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]


class Net(nn.Module):
    """Convolutions, attention, and constants that the forward pass makes on the device it runs on."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 256, 4, 4), nn.BatchNorm2d(256), nn.ReLU())
        self.block = nn.TransformerEncoderLayer(256, 4, 1024, dropout=0.0, batch_first=True)
        self.register_buffer("scale", torch.full((256,), 0.5))
        self.head = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.stem(x).flatten(2).transpose(1, 2)
        places = torch.arange(tokens.shape[1], device=tokens.device) / tokens.shape[1]
        tokens = self.block(tokens * self.scale + places[:, None])
        return self.head(tokens.mean(1))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval().cuda()


@pytest.fixture(scope="module")
def optimized(model: nn.Module) -> eqd.OptimizedModule:
    return eqd.optimize(model, (batch(2),), cost="trt_int8", batch=256)


def batch(size: int, seed: int = 0, device: str = "cuda") -> Tensor:
    return torch.randn(size, 3, 64, 64, generator=torch.Generator().manual_seed(seed)).to(device)


def places(module: nn.Module) -> set[str]:
    return {tensor.device.type for tensor in (*module.parameters(), *module.buffers())}


def test_what_is_made_of_it_stays_on_its_device(model, optimized) -> None:
    assert places(optimized) == {"cuda"}
    assert places(model) == {"cuda"}
    x = batch(5, seed=1)
    found = optimized(x)
    assert found.device.type == "cuda"
    with torch.no_grad():
        assert decibels(model(x), found) > 60


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_it_is_calibrated_on_batches_from_anywhere(model, optimized, device: str) -> None:
    quantized = optimized.quantize([batch(16, seed, device) for seed in range(4)])
    assert places(quantized) == {"cuda"}
    x = batch(8, seed=9)
    with torch.no_grad():
        assert decibels(model(x), quantized(x)) > 25
    assert quantized.report.integer_kernels > 0


@pytest.mark.parametrize("cost", ["openvino_int8", "ort_int8"])
def test_an_engine_on_the_cpu_is_built_from_it(model, cost: str) -> None:
    optimized = eqd.optimize(model, (batch(2),), cost=cost)
    engine = optimized.quantize([batch(16, seed) for seed in range(4)]).build()
    x = batch(2, seed=9)
    found = engine(x)
    assert found.device.type == "cuda"
    with torch.no_grad():
        assert decibels(model(x), found) > 25


def test_it_is_trained_there(optimized) -> None:
    quantized = optimized.quantize([batch(16)])
    tuned = finetune(quantized, copy.deepcopy(optimized), [batch(16, seed) for seed in range(3)])
    assert places(tuned) == {"cuda"}


def test_a_saved_module_is_loaded_anywhere(model, optimized, tmp_path) -> None:
    x = batch(2, seed=3)
    torch.save(optimized, tmp_path / "module.pt")
    there = torch.load(tmp_path / "module.pt", weights_only=False)
    here = torch.load(tmp_path / "module.pt", weights_only=False, map_location="cpu")
    assert torch.equal(there(x), optimized(x))
    with torch.no_grad():
        assert decibels(optimized(x).cpu(), here(x.cpu())) > 60


def test_example_inputs_are_taken_from_anywhere(model) -> None:
    found = eqd.optimize(model, (batch(2, device="cpu"),), cost="trt_int8")
    assert places(found) == {"cuda"}


def test_an_exported_program_is_taken_from_there(model) -> None:
    program = torch.export.export(model, (batch(2),))
    x = batch(2, seed=3)
    found = eqd.optimize(program, (batch(2),), cost="trt_int8")(x)
    assert found.is_cuda
    with torch.no_grad():
        assert decibels(model(x), found) > 60
    assert {value.device.type for value in program.state_dict.values()} == {"cuda"}


class Named(nn.Module):
    """Names the device in its forward, which no other can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x) + torch.arange(8, device="cuda")


def test_a_device_named_in_forward_is_refused_with_what_to_write() -> None:
    with pytest.raises(InputError, match=r"in forward: return self.head.*take the device from a tensor"):
        eqd.optimize(Named().eval().cuda(), (torch.zeros(2, 8).cuda(),), cost="trt_int8")


class Kept(nn.Module):
    """Keeps its device and a tensor that is neither parameter nor buffer, and makes one as long as the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 8)
        self.place = torch.device("cuda")
        self.shift = torch.arange(8.0, device="cuda")

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x) + self.shift + torch.arange(x.shape[0], device=self.place)[:, None]


def test_devices_and_tensors_that_a_model_keeps_are_moved_with_its_copy() -> None:
    model, x = Kept().eval().cuda(), torch.randn(5, 8).cuda()
    optimized = eqd.optimize(model, (x[:2],), cost="trt_int8")
    with torch.no_grad():
        assert decibels(model(x), optimized(x)) > 60
        assert decibels(model(x).cpu(), optimized.cpu()(x.cpu())) > 60
    assert model.place.type == model.shift.device.type == "cuda"
