"""What a server counts, as Prometheus reads it."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

__all__ = ["CONTENT_TYPE_LATEST", "Metrics"]

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """The numbers of one server, in a registry of its own.

    Attributes:
        requests: predictions asked for, by the status of their answers.
        seconds: from a request's first byte to its answer.
        batch_size: pictures that the model saw at once.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self.requests = Counter(
            "mindtwins_requests",
            "predictions asked for, by the status of the answer (499: the client went away)",
            ["status"],
            registry=self._registry,
        )
        self.seconds = Histogram(
            "mindtwins_request_seconds",
            "from the head of a request to its answer",
            buckets=SECONDS,
            registry=self._registry,
        )
        self.batch_size = Histogram(
            "mindtwins_batch_size",
            "pictures that the model saw at once",
            buckets=[2**power for power in range(9)],
            registry=self._registry,
        )

    def gauge(self, name: str, meaning: str, value: Callable[[], float]) -> None:
        """Show a value that is asked for when the metrics are."""
        Gauge(f"mindtwins_{name}", meaning, registry=self._registry).set_function(value)

    def text(self) -> bytes:
        """All of them."""
        return generate_latest(self._registry)
