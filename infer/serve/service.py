"""One process: threads that receive, one that segments, one that sends, one that shows; all they share is the queue."""

import threading
import time
from collections.abc import Callable

from . import log
from .arrivals import Arrivals
from .config import Config
from .database import counts, jobs
from .metrics import Metrics
from .names import Key
from .node import Node, no_room
from .queue import Queue
from .segmenter import Segmenter
from .sender import Sender
from .web import PROMETHEUS, Web, as_json
from .worker import Worker

IDLE_SECONDS = 0.2  # between looks into the queue


class Clock:
    """Seconds since 1970 that nobody sets back while the process runs."""

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()

    def __call__(self) -> float:
        return self._offset + time.monotonic()


class Service:
    """A node, from its configuration."""

    def __init__(self, config: Config, segmenter: Segmenter) -> None:
        """Open the queue, take up what was under way, and take the ports.

        Raises
        ------
        SegError : E-SERVE-STATE, E-SERVE-PORT, E-OUT-*, or what the segmenter raises for a model that it cannot load.
        """
        for model in sorted({rule.model for rule in config.rules}):
            segmenter.identity(model)
        clock = Clock()
        self.config, self.queue = config, Queue(config.state)
        self.arrivals = arrivals = Arrivals(self.queue, clock)
        self.queue.recover(config.limits.runs, clock())
        self.metrics = Metrics(self.queue)
        self.node = Node(config, self.queue, Key(config.state / "key"), arrivals, self.metrics, clock)
        pages = {"/healthz": self._health, "/metrics": self._figures, "/queue": self._jobs}
        self.web = Web(config.http_port, pages)
        self._stopping = threading.Event()
        worker = Worker(config, self.queue, segmenter, arrivals, self.metrics, clock)
        sender = Sender(config, self.queue, self.metrics, clock)
        self._threads = [
            threading.Thread(target=self._loop, args=(step,), name=name, daemon=True)
            for name, step in (("segment", worker.step), ("send", sender.step))
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()
        self.node.start()
        self.web.start()
        log.event("listening", aet=self.config.aet, port=self.node.port, where=f"http port {self.web.port}")

    def stop(self) -> None:
        """End, waiting for what is being segmented and sent. A process need not: the queue survives it anyhow."""
        self._stopping.set()
        self.node.stop()
        self.web.stop()
        for thread in self._threads:
            thread.join()
        self.queue.close()

    def healthy(self) -> bool:
        """Whether all threads work and an object would be taken."""
        threads = all(thread.is_alive() for thread in self._threads) and self.node.alive()
        return threads and not no_room(self.queue, self.config.limits, 0)

    def _loop(self, step: Callable[[], bool]) -> None:
        while not self._stopping.is_set():
            try:
                busy = step()
            except Exception as error:  # a full disk, say: the queue is as it was, and this is tried again
                log.event("internal-error", where=log.place(error))
                busy = False
            if not busy:
                self._stopping.wait(IDLE_SECONDS)

    def _health(self) -> tuple[int, str, bytes]:
        healthy = self.healthy()
        return as_json({"healthy": healthy}, 200 if healthy else 503)

    def _figures(self) -> tuple[int, str, bytes]:
        return 200, PROMETHEUS, self.metrics.text()

    def _jobs(self) -> tuple[int, str, bytes]:
        return as_json({"counts": counts(self.queue.database), "jobs": jobs(self.queue.database)})
