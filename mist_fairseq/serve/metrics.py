"""Prometheus metrics of one application."""

from collections.abc import Callable

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30]
_TEXTS = [1, 2, 4, 8, 16, 32, 64, 128]


class Metrics:
    """Counters and histograms in a registry of their own.

    Args:
        waiting, running: texts in the queue and in the model now.
    """

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, waiting: Callable[[], int], running: Callable[[], int]):
        registry = self._registry = CollectorRegistry()
        self._requests = Counter(
            "mist_requests",
            "Requests answered; 499 stands for a client that left before.",
            ["path", "status"],
            registry=registry,
        )
        self._latency = Histogram(
            "mist_request_seconds",
            "From a request's head to its answer's last byte.",
            ["path"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._batches = Histogram("mist_batch_texts", "Texts of a batch.", buckets=_TEXTS, registry=registry)
        self._model = Histogram(
            "mist_model_seconds", "Time in the model, a batch.", buckets=_SECONDS, registry=registry
        )
        self._texts = Counter("mist_texts", "Texts answered.", registry=registry)
        Gauge("mist_queue_texts", "Texts that wait for the model.", registry=registry).set_function(waiting)
        Gauge("mist_model_texts", "Texts in the model.", registry=registry).set_function(running)

    def answered(self, path: str, status: int, seconds: float):
        """A request was."""
        self._requests.labels(path, str(status)).inc()
        self._latency.labels(path).observe(seconds)

    def generated(self, texts: int):
        """Of a request, all were."""
        self._texts.inc(texts)

    def batch(self, texts: int, seconds: float):
        """The model was run."""
        self._batches.observe(texts)
        self._model.observe(seconds)

    def text(self) -> bytes:
        """In Prometheus' exposition format."""
        return generate_latest(self._registry)
