"""What ``/metrics`` counts."""

from tests.serve.helpers import FakeGenerator, serving


def test_metrics(generator):
    with serving(generator, max_batch=2, max_wait=0) as running:
        running.post({"texts": ["how", "what", "is"]})
        running.post({"text": ""})
        running.ask("GET", "/secret/../1234")
        metrics = running.metrics()
        kind = running.ask("GET", "/metrics")[1]["Content-Type"]
    assert kind.startswith("text/plain") and metrics["mist_queue_texts"] == 0 and metrics["mist_texts_total"] == 3
    assert metrics['mist_requests_total{path="/generate",status="200"}'] == 1
    assert metrics['mist_requests_total{path="/generate",status="422"}'] == 1
    assert metrics['mist_requests_total{path="other",status="404"}'] == 1
    assert metrics['mist_request_seconds_count{path="/generate"}'] == 2
    assert metrics["mist_batch_texts_sum"] == 3 and metrics['mist_batch_texts_bucket{le="2.0"}'] == 2
    assert metrics["mist_model_seconds_count"] == 2 and metrics["mist_model_seconds_sum"] > 0


def test_two_applications_share_no_metrics():
    with serving(FakeGenerator()) as one, serving(FakeGenerator()) as other:
        one.post({"text": "how"})
        assert one.metrics()["mist_texts_total"] == 1 and other.metrics()["mist_texts_total"] == 0
