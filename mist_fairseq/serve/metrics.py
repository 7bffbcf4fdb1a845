"""Prometheus metrics of one application."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30]
_TEXTS = [1, 2, 4, 8, 16, 32, 64, 128]


class Metrics:
    """Counters, gauges and histograms in a registry of their own; each is called ``mist_`` and its attribute's name."""

    def __init__(self):
        own = self.registry = CollectorRegistry()
        described = "Requests answered; 499 stands for a client that left before."
        self.requests = Counter("mist_requests", described, ["path", "status"], registry=own)
        described = "From a request's head to its answer's last byte."
        self.request_seconds = Histogram("mist_request_seconds", described, ["path"], buckets=_SECONDS, registry=own)
        self.texts = Counter("mist_texts", "Texts answered.", registry=own)
        self.queue_texts = Gauge("mist_queue_texts", "Texts that wait for the model.", registry=own)
        self.model_texts = Gauge("mist_model_texts", "Texts in the model.", registry=own)
        self.batch_texts = Histogram("mist_batch_texts", "Texts of a batch.", buckets=_TEXTS, registry=own)
        described = "Time in the model, a batch."
        self.model_seconds = Histogram("mist_model_seconds", described, buckets=_SECONDS, registry=own)
