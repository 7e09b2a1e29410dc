"""A GPU for `fake_tensorrt`: streams that do their work when they are synchronized, CUDA graphs, and events."""

from __future__ import annotations

import contextlib
import itertools
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

from torch import Tensor


class Job:
    """Work of a context, on the shapes and the memory that it had when it was queued.

    That memory must not be released before, unless a stream waits for the work: torch gives released memory to what
    is queued later on the stream that it was allocated on, which is the caller's.
    """

    ordered = False

    def __init__(self, context: Any, memory: dict[str, weakref.ref[Tensor]]) -> None:
        self.context, self.state = context, context.state
        self.shapes, self.given = dict(context.shapes), memory
        self.memory = {name: found().detach() for name, found in memory.items()}  # type: ignore[union-attr]

    def __call__(self) -> None:
        released = [name for name, given in self.given.items() if given() is None]
        assert self.ordered or not released, f"memory of {released} was released before it was used"
        self.context.compute(self.shapes, self.memory)


class Stream:
    """Stands for `torch.cuda.Stream`: does what is queued on it when it is synchronized."""

    known: ClassVar[weakref.WeakValueDictionary[int, Stream]] = weakref.WeakValueDictionary()
    handles = itertools.count(4711)
    recording: CUDAGraph | None = None
    current: Stream

    def __init__(self, device: Any = None) -> None:
        self.cuda_stream = next(Stream.handles)
        self.queue: list[Callable[[], Any]] = []
        Stream.known[self.cuda_stream] = self

    def wait_stream(self, stream: Stream) -> None:
        for job in stream.queue:
            if isinstance(job, Job):
                job.ordered = True
        self.queue.append(stream.synchronize)

    def synchronize(self) -> None:
        while self.queue:
            self.queue.pop(0)()


class CUDAGraph:
    """Stands for `torch.cuda.CUDAGraph`."""

    job: Job | None = None

    def replay(self) -> None:
        assert self.job is not None
        assert self.job.context.state == self.job.state, "its context was changed"
        self.job()


@contextlib.contextmanager
def stream(entered: Stream) -> Iterator[None]:
    """Stands for `torch.cuda.stream`. What torch computes inside is computed at once, so all before it has to be."""
    before, Stream.current = Stream.current, entered
    if Stream.recording is None:
        entered.synchronize()
    try:
        yield
    finally:
        Stream.current = before


@contextlib.contextmanager
def graph(
    cuda_graph: CUDAGraph, pool: Any = None, stream: Any = None, capture_error_mode: str = "global"
) -> Any:
    """Stands for `torch.cuda.graph`."""
    assert capture_error_mode == "thread_local", "other threads go on allocating"
    Stream.recording = cuda_graph
    try:
        yield
    finally:
        Stream.recording = None


class Event:
    """Stands for `torch.cuda.Event`."""

    def __init__(self, enable_timing: bool = False) -> None:
        self.timing = enable_timing

    def record(self) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end_event: Event) -> float:
        assert self.timing
        return (end_event.at - self.at) * 1e3
