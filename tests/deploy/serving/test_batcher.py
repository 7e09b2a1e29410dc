"""What waits is run together, in order, and everybody gets their own rows."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from eqsat_deploy.serving.batcher import Batcher, Closed, QueueFull


class Engine:
    """Doubles rows; can be held, and remembers the sizes of its batches."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.open = threading.Event()
        self.open.set()
        self.busy = threading.Event()

    def __call__(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        self.busy.set()
        assert self.open.wait(10)
        self.sizes.append(len(tensors[0]))
        if bool((tensors[0] < 0).any()):
            raise RuntimeError("negative")
        return [2 * tensors[0], tensors[0].sum(1)]


def run(work: Callable[[Engine], Awaitable[Any]]) -> tuple[Engine, Any]:
    engine = Engine()
    return engine, asyncio.run(asyncio.wait_for(work(engine), 20))


def rows(value: float, count: int = 1) -> tuple[list[Tensor], int]:
    return [torch.full((count, 2), value)], count


async def held(engine: Engine, batcher: Batcher) -> asyncio.Task[Any]:
    """A request that the engine is busy with until it is opened."""
    engine.open.clear()
    engine.busy.clear()
    task = asyncio.create_task(batcher.submit(*rows(100)))
    while not engine.busy.is_set():
        await asyncio.sleep(0.001)
    return task


def test_what_waits_is_run_together_and_split_again() -> None:
    async def work(engine: Engine) -> Any:
        batcher = Batcher(engine, limit=4, delay=0)
        first = await held(engine, batcher)
        tasks = [asyncio.create_task(batcher.submit(*rows(n, 1 + n % 2))) for n in range(5)]
        await asyncio.sleep(0)
        engine.open.set()
        found = await asyncio.gather(first, *tasks)
        await batcher.close()
        return found

    engine, found = run(work)
    assert engine.sizes == [1, 4, 3]  # 1 + 2 + 1, then 2 + 1: no request is cut in two
    for n, (double, total) in enumerate(found[1:]):
        assert torch.equal(double, torch.full((1 + n % 2, 2), 2.0 * n))
        assert torch.equal(total, torch.full((1 + n % 2,), 2.0 * n))


def test_a_batch_waits_for_others_and_not_for_longer_than_the_delay() -> None:
    async def work(engine: Engine) -> Any:
        told: list[Any] = []
        batcher = Batcher(engine, limit=3, delay=5.0, ran=lambda *about: told.append(about))
        full = [asyncio.create_task(batcher.submit(*rows(n))) for n in range(2)]
        await asyncio.sleep(0.02)
        assert engine.sizes == []
        await asyncio.gather(*full, batcher.submit(*rows(3)))  # full: nobody waits for the delay
        batcher.delay = 0.02
        await batcher.submit(*rows(4))
        await batcher.close()
        return told

    engine, told = run(work)
    assert engine.sizes == [3, 1]
    assert [samples for samples, _, _ in told] == [3, 1]
    assert all(queued > 0 and taken > 0 for _, queued, taken in told)
    assert told[1][1] >= 0.02


def test_one_too_many_is_told_when_to_come_back() -> None:
    async def work(engine: Engine) -> Any:
        batcher = Batcher(engine, limit=1, delay=0, queue=2)
        tasks = [await held(engine, batcher)]
        tasks += [asyncio.create_task(batcher.submit(*rows(n))) for n in range(2)]
        await asyncio.sleep(0)
        assert batcher.waiting == 2
        with pytest.raises(QueueFull, match=r"try again in \d+ s") as raised:
            await batcher.submit(*rows(9))
        engine.open.set()
        await asyncio.gather(*tasks)
        await batcher.submit(*rows(5))
        await batcher.close()
        return raised.value.seconds

    engine, seconds = run(work)
    assert engine.sizes == [1] * 4
    assert 1 <= seconds <= 60


def test_a_request_that_is_cancelled_is_not_run() -> None:
    async def work(engine: Engine) -> Any:
        batcher = Batcher(engine, limit=4, delay=0)
        first = await held(engine, batcher)
        tasks = [asyncio.create_task(batcher.submit(*rows(n))) for n in range(3)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        await asyncio.sleep(0)
        engine.open.set()
        found = await asyncio.gather(first, *tasks, return_exceptions=True)
        await batcher.close()
        return found

    engine, found = run(work)
    assert engine.sizes == [1, 2]
    assert isinstance(found[2], asyncio.CancelledError)
    assert found[3][0][0, 0] == 4.0


def test_a_batch_that_fails_is_not_the_end() -> None:
    async def work(engine: Engine) -> Any:
        batcher = Batcher(engine, limit=1, delay=0)
        with pytest.raises(RuntimeError, match="negative"):
            await batcher.submit(*rows(-1))
        found = await batcher.submit(*rows(1))
        await batcher.close()
        return found

    assert run(work)[1][0][0, 0] == 2.0


@pytest.mark.parametrize("workers", [1, 3])
def test_closing_finishes_what_waits_and_takes_no_more(workers: int) -> None:
    async def work(engine: Engine) -> Any:
        batcher = Batcher(engine, limit=2, delay=10.0, workers=workers)
        tasks = [asyncio.create_task(batcher.submit(*rows(n))) for n in range(7)]
        await asyncio.sleep(0)
        closing = asyncio.create_task(batcher.close())
        await asyncio.sleep(0)
        with pytest.raises(Closed):
            await batcher.submit(*rows(9))
        found = await asyncio.gather(*tasks)
        await closing
        return found

    engine, found = run(work)
    assert sum(engine.sizes) == 7
    assert [double[0, 0].item() for double, _ in found] == [2.0 * n for n in range(7)]
