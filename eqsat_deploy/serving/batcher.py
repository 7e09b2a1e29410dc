"""Requests to one engine, run together: what waits is run as one batch, after a bounded delay, from a bounded queue."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
from torch import Tensor

from eqsat_deploy.errors import EqsatError

Run = Callable[[Sequence[Tensor]], Sequence[Tensor]]


class QueueFull(EqsatError):
    """As many requests as are allowed wait already; `seconds` is when to try again."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"the queue is full; try again in {seconds} s")
        self.seconds = seconds


class Closed(EqsatError):
    """The server is stopping and takes no new request."""


@dataclass
class Job:
    """One request that waits: its tensors, how many samples they are, since when, and where its results go."""

    tensors: Sequence[Tensor]
    samples: int
    future: asyncio.Future[list[Tensor]]
    since: float = field(default_factory=time.monotonic)


class Batcher:
    """Runs requests on an engine: up to `limit` samples together, none of which waits longer than `delay` seconds for
    others to come; at most `queue` wait.

    `workers` batches run at a time, each in a thread. A request that is cancelled before it runs is not run. `ran` is
    told of every batch: samples, seconds that the oldest waited, and seconds that the engine took.
    """

    def __init__(
        self,
        run: Run,
        *,
        limit: int,
        delay: float = 0.001,
        queue: int = 64,
        workers: int = 1,
        ran: Callable[[int, float, float], None] | None = None,
    ) -> None:
        self.limit, self.delay, self.queue = limit, delay, queue
        self._run, self._ran = run, ran
        self._waiting: deque[Job] = deque()
        self._arrived = asyncio.Condition()
        self._closing = False
        self._pace = 0.0  # seconds a request takes of a worker, lately
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="engine")
        self._workers = [asyncio.create_task(self._work()) for _ in range(workers)]

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return len(self._waiting)

    def check_room(self) -> None:
        """Raises `QueueFull` where no request would be taken, and `Closed` where none is any more."""
        if self._closing:
            raise Closed("the server is stopping")
        if len(self._waiting) >= self.queue:
            seconds = self._pace * len(self._waiting) / len(self._workers)
            raise QueueFull(max(1, min(60, round(seconds))))

    async def submit(self, tensors: Sequence[Tensor], samples: int) -> list[Tensor]:
        """The flat outputs for one request.

        Raises:
            QueueFull: too many wait.
            Closed: `close` was called.
            EqsatError: the engine failed on the batch that the request was part of.
        """
        self.check_room()
        job = Job(tensors, samples, asyncio.get_running_loop().create_future())
        self._waiting.append(job)
        async with self._arrived:
            self._arrived.notify_all()
        return await job.future

    async def close(self) -> None:
        """Take no more requests, finish those that wait, and end."""
        self._closing = True
        async with self._arrived:
            self._arrived.notify_all()
        await asyncio.gather(*self._workers)
        self._pool.shutdown()

    async def _work(self) -> None:
        while jobs := await self._next():
            begin = time.monotonic()
            try:
                loop = asyncio.get_running_loop()
                results = await loop.run_in_executor(self._pool, self._together, jobs)
            except Exception as error:  # each request is told, and the next one may be better
                for job in jobs:
                    if not job.future.done():
                        job.future.set_exception(error)
                continue
            for job, result in zip(jobs, results, strict=True):
                if not job.future.done():
                    job.future.set_result(result)
            taken = time.monotonic() - begin
            self._pace += 0.1 * (taken / len(jobs) - self._pace)
            if self._ran is not None:
                self._ran(sum(job.samples for job in jobs), begin - jobs[0].since, taken)

    async def _next(self) -> list[Job]:
        """The next batch, at least one request; none once closed and empty."""
        async with self._arrived:
            while True:
                self._drop_cancelled()
                if not self._waiting and self._closing:
                    return []
                if not self._waiting:
                    await self._arrived.wait()
                    continue
                left = self._waiting[0].since + self.delay - time.monotonic()
                if left <= 0 or self._closing or sum(job.samples for job in self._waiting) >= self.limit:
                    return self._take()
                try:
                    async with asyncio.timeout(left):
                        await self._arrived.wait()
                except TimeoutError:
                    pass

    def _drop_cancelled(self) -> None:
        if any(job.future.done() for job in self._waiting):
            self._waiting = deque(job for job in self._waiting if not job.future.done())

    def _take(self) -> list[Job]:
        """The oldest requests that fit together: one of another shape, or too large, is for the next batch."""
        jobs = [self._waiting.popleft()]
        samples = jobs[0].samples
        while self._waiting and samples + self._waiting[0].samples <= self.limit:
            jobs.append(self._waiting.popleft())
            samples += jobs[-1].samples
        return jobs

    def _together(self, jobs: Sequence[Job]) -> list[list[Tensor]]:
        if len(jobs) == 1:
            return [list(self._run(jobs[0].tensors))]
        joined = [torch.cat(values) for values in zip(*(job.tensors for job in jobs), strict=True)]
        sizes = [job.samples for job in jobs]
        split = [torch.split(value, sizes) for value in self._run(joined)]
        return [list(values) for values in zip(*split, strict=True)]
