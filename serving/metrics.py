"""`Metrics`: the metrics for Prometheus. Labels have few values: endpoints, statuses, phases, reasons; never a text.

metrics = Metrics(model)
with metrics.sequence() as told:
    told.take(event)
    told.reason = "stop"
metrics.text()
"""

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from dpad.runtime.decoding.event import StepEvent
from dpad.serving.remote_model import Model, RemoteModel

REASONS = ("stop", "length", "deadline", "cancelled", "error")
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """The metrics of one server."""

    def __init__(self, model: Model) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Model(model))
        own: Any = {"registry": self._registry}
        self._requests = Counter("dpad_requests", "Requests answered.", ["endpoint", "status"], **own)
        self._seconds = Histogram(
            "dpad_request_seconds", "Seconds of a request.", ["endpoint"], buckets=_SECONDS, **own
        )
        self._admitted = Counter("dpad_sequences_admitted", "Sequences admitted.", **own)
        self._finished = Counter("dpad_sequences_finished", "Sequences ended, by reason.", ["reason"], **own)
        self._tokens = Counter("dpad_tokens", "Tokens of prompts and answers.", ["kind"], **own)
        self._phases = Counter("dpad_sequence_seconds", "Seconds of sequences, by phase.", ["phase"], **own)
        for reason in REASONS:
            self._finished.labels(reason)

    def request(self, endpoint: str, status: int, seconds: float) -> None:
        """Count an answered request; `endpoint` is a route, not a path."""
        self._requests.labels(endpoint, str(status)).inc()
        self._seconds.labels(endpoint).observe(seconds)

    def tokens(self, prompt: int, completion: int) -> None:
        """Count the tokens of one request."""
        self._tokens.labels("prompt").inc(prompt)
        self._tokens.labels("completion").inc(completion)

    @contextmanager
    def sequence(self) -> Iterator["Told"]:
        """Count one sequence, from its admission to its end; its reason is `error` if the block raises an error."""
        self._admitted.inc()
        told = Told()
        try:
            yield told
        except Exception:
            told.reason = "error"
            raise
        finally:
            self._finished.labels(told.reason).inc()
            for phase, seconds in told.seconds().items():
                self._phases.labels(phase).inc(seconds)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)


class Told:
    """Seconds of a sequence by phase, and why it ended: `cancelled` unless `reason` is set."""

    def __init__(self) -> None:
        self.reason = "cancelled"
        self._began, self._wait = perf_counter(), -1.0
        self._refresh = self._denoise = 0.0

    def take(self, event: StepEvent) -> None:
        """Add the event of a pass."""
        if self._wait < 0:
            self._wait = max(0.0, perf_counter() - self._began - event.engine_seconds)
        if event.step == 0:
            self._refresh += event.engine_seconds
        else:
            self._denoise += event.engine_seconds

    def seconds(self) -> dict[str, float]:
        """Seconds before its first pass, in refreshes, in other passes, and in everything else."""
        total = perf_counter() - self._began
        wait = total if self._wait < 0 else self._wait
        loop = max(0.0, total - wait - self._refresh - self._denoise)
        return {"wait": wait, "refresh": self._refresh, "denoise": self._denoise, "loop": loop}


class _Model(Collector):
    """The model's status at the time of a scrape."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def collect(self) -> Iterator[Metric]:
        """The current values."""
        status, most = self._model.status, self._model.facts.slots
        yield GaugeMetricFamily("dpad_sequences_running", "Sequences that are decoded now.", status.running)
        yield GaugeMetricFamily("dpad_sequences_waiting", "Sequences that wait for slots.", status.waiting)
        yield GaugeMetricFamily("dpad_pool_slots_used", "Slots of keys and values in use.", status.slots)
        yield GaugeMetricFamily("dpad_pool_slots", "Slots of keys and values in the pool.", most)
        yield CounterMetricFamily("dpad_passes", "Forward passes.", status.passes)
        if isinstance(self._model, RemoteModel):
            yield CounterMetricFamily("dpad_engine_restarts", "Engines after the first.", self._model.restarts)
