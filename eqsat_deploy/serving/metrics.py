"""What is counted and timed while serving, as Prometheus reads it."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
SAMPLES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "eqsat_requests", "Inference requests answered", ("model", "status"), registry=self.registry
        )
        self.seconds = Histogram(
            "eqsat_request_seconds", "From a request's headers to its response", ("model",),
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self.queued = Histogram(
            "eqsat_queue_seconds", "The oldest request of a batch waited", ("model",),
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self.engine = Histogram(
            "eqsat_engine_seconds", "A batch took", ("model",), buckets=SECONDS, registry=self.registry
        )
        self.samples = Histogram(
            "eqsat_batch_samples", "Samples run together", ("model",), buckets=SAMPLES, registry=self.registry
        )
        self.waiting = Gauge("eqsat_waiting", "Requests that wait", ("model",), registry=self.registry)

    def watch(self, model: str, waiting: Callable[[], float]) -> Callable[[int, float, float], None]:
        """Read how many wait from `waiting`; what it returns is to be told of every batch."""
        self.waiting.labels(model).set_function(waiting)

        def ran(samples: int, queued: float, taken: float) -> None:
            self.samples.labels(model).observe(samples)
            self.queued.labels(model).observe(queued)
            self.engine.labels(model).observe(taken)

        return ran

    def text(self) -> bytes:
        """In Prometheus's text format."""
        return generate_latest(self.registry)
