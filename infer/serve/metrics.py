"""Figures for Prometheus. Labels are states and status codes: never a name, never a received value."""

import shutil
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from .database import counts
from .queue import Queue

SECONDS = (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)


class Metrics(Collector):
    """Counters of this process, and gauges read from the queue when they are asked for."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._registry = CollectorRegistry()
        self.received = Counter(
            "seg_serve_objects", "Received objects by C-STORE status.", ["status"], registry=self._registry
        )
        self.deliveries = Counter(
            "seg_serve_deliveries", "Deliveries of results by outcome.", ["outcome"], registry=self._registry
        )
        self.seconds = Histogram(
            "seg_serve_segmentation_seconds", "Time of a segmentation.", buckets=SECONDS, registry=self._registry
        )
        self._registry.register(self)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The gauges."""
        jobs = GaugeMetricFamily("seg_serve_jobs", "Jobs by state; arriving: series not complete.", labels=["state"])
        for state, count in counts(self._queue.database).items():
            jobs.add_metric([state], count)
        yield jobs
        yield GaugeMetricFamily("seg_serve_stored_bytes", "Objects kept.", self._queue.stored_bytes())
        free = shutil.disk_usage(self._queue.files).free
        yield GaugeMetricFamily("seg_serve_free_bytes", "Left on the disk.", free)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)
