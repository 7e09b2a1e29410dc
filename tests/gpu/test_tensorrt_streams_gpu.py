"""Streams, memory and CUDA graphs of the TensorRT engine on a real GPU, with torch's kernels where TensorRT's are.

It needs a GPU and torch, not TensorRT, so that it runs where that cannot be had. What slow kernels put off on purpose
would be read or written too early if the streams did not wait for each other.
"""

from __future__ import annotations

import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from eqsat_deploy.engines import tensorrt_run
from eqsat_deploy.engines.tensorrt_run import Worker

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]
SLOW = 2_000_000  # clock cycles, about a millisecond
TENSORS: dict[int, weakref.ref[Tensor]] = {}


class Context:
    """Computes y = 2 x + 1 after a while, on the stream and the addresses that it is given."""

    def __init__(self) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert memory % tensorrt_run.ALIGNMENT == 0
        self.addresses[name] = memory
        return True

    def infer_shapes(self) -> list[str]:
        return []

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shapes["x"]

    def execute_async_v3(self, stream_handle: int) -> bool:
        x, y = (TENSORS[self.addresses[name]]() for name in ("x", "y"))
        assert x is not None
        assert y is not None
        with torch.cuda.stream(torch.cuda.ExternalStream(stream_handle)):
            torch.cuda._sleep(SLOW)
            torch.mul(x, 2, out=y)
            torch.cuda._sleep(SLOW)
            y.add_(1)
        return True


class Loaded:
    """What a worker asks of an engine, without one."""

    def __init__(self) -> None:
        self.device = torch.device("cuda", torch.cuda.current_device())
        self.inputs, self.outputs = {"x": torch.float32}, {"y": torch.float32}

    def profile(self, batch: int) -> int:
        return 0

    def context(self, profile: int, stream: Any) -> Context:
        return Context()


@pytest.fixture(autouse=True)
def _addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    address = Tensor.data_ptr

    def data_ptr(tensor: Tensor) -> int:
        found = address(tensor)
        TENSORS[found] = weakref.ref(tensor)
        return found

    monkeypatch.setattr(Tensor, "data_ptr", data_ptr)


@pytest.fixture(params=[False, True], ids=["plain", "graphs"])
def worker(request: pytest.FixtureRequest) -> Worker:
    return Worker(Loaded(), graphs=request.param)  # type: ignore[arg-type]


def batches(count: int, size: int = 4) -> list[Tensor]:
    return [torch.full((size, 1 << 16), float(index), device="cuda") for index in range(count)]


def test_a_call_that_waits_is_done(worker: Worker) -> None:
    for x in batches(3):
        y = worker({"x": x}, 4)["y"]
        assert worker.stream.query()
        assert torch.equal(y, 2 * x + 1)


def test_a_call_that_does_not_wait_returns_at_once_and_is_in_order(worker: Worker) -> None:
    worker({"x": batches(1)[0]}, 4)  # records
    torch.cuda.synchronize()
    xs = batches(12)
    found = [worker({"x": x}, 4, wait=False)["y"] * 1 for x in xs]
    assert not torch.cuda.current_stream().query()
    for x, y in zip(xs, found, strict=True):
        assert torch.equal(y, 2 * x + 1)


def test_what_is_queued_before_a_call_is_seen(worker: Worker) -> None:
    for value in (1.0, 2.0, 3.0):
        x = torch.zeros(4, 1 << 16, device="cuda")
        torch.cuda._sleep(10 * SLOW)
        x += value
        assert torch.equal(worker({"x": x}, 4, wait=False)["y"], torch.full_like(x, 2 * value + 1))


def test_memory_that_is_let_go_of_is_not_reused_too_early(worker: Worker) -> None:
    """Inputs that have to be converted, and results, are released while the work is under way."""
    expected, found = [], []
    for x in batches(8):
        strided = torch.stack([x, x])[:, :, ::2].double()  # is converted and made contiguous
        found.append(worker({"x": strided[0]}, 4, wait=False)["y"].sum())
        expected.append((2 * strided[0] + 1).sum())
        del strided
        for _ in range(4):
            torch.full((4, 1 << 15), float("nan"), device="cuda")
            torch.full((4, 1 << 16), float("nan"), device="cuda")
    torch.testing.assert_close(torch.stack(found).double(), torch.stack(expected))


def test_gpu_memory_is_read_in_place_and_odd_addresses_are_copied() -> None:
    worker = Worker(Loaded())  # type: ignore[arg-type]
    x = torch.randn(4, 1 << 16, device="cuda")
    worker({"x": x}, 4)
    context: Any = worker.context(4)
    assert context.addresses["x"] == x.data_ptr()
    odd = torch.randn(4 * (1 << 16) + 1, device="cuda")[1:].reshape(4, -1)
    assert torch.equal(worker({"x": odd}, 4)["y"], 2 * odd + 1)
    assert context.addresses["x"] != odd.data_ptr()


def test_graphs_are_of_one_size_each_and_results_their_own() -> None:
    worker = Worker(Loaded(), graphs=True)  # type: ignore[arg-type]
    kept = []
    for size in (1, 3, 1, 2, 3, *range(4, 14), 1):
        x = torch.randn(size, 1 << 12, device="cuda")
        y = worker({"x": x}, size)["y"]
        kept.append((y, 2 * x + 1))
    assert sorted(worker._recorded) == [*range(1, tensorrt_run.GRAPHS + 1)]
    assert all(torch.equal(y, expected) for y, expected in kept)


@pytest.mark.parametrize("graphs", [False, True])
def test_threads_with_streams_of_their_own(graphs: bool) -> None:
    workers = [Worker(Loaded(), graphs=graphs) for _ in range(3)]  # type: ignore[arg-type]

    def serve(index: int) -> bool:
        with torch.cuda.stream(torch.cuda.Stream()):
            held = []
            for step in range(20):
                x = torch.full((2, 1 << 14), float(100 * index + step), device="cuda")
                held.append((workers[index]({"x": x}, 2, wait=step % 2 == 0)["y"], 2 * x + 1))
            return all(torch.equal(y, expected) for y, expected in held)

    with ThreadPoolExecutor(3) as pool:
        assert all(pool.map(serve, range(3)))
