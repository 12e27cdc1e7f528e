"""Which associations bring which series: a series whose associations have all ended is sooner complete."""

import threading
from collections.abc import Callable

from pynetdicom.association import Association

from .queue import Queue


class Arrivals:
    """Associations and the series (keyed hashes) they brought so far. Any thread may call."""

    def __init__(self, queue: Queue, clock: Callable[[], float]) -> None:
        self._queue, self._clock = queue, clock
        self._lock = threading.Lock()
        self._brings: dict[Association, set[str]] = {}
        self._cut: set[str] = set()

    def note(self, association: Association, series: str) -> None:
        """An association brings an object of a series. One that begins after another was cut is a new try."""
        with self._lock:
            brought = self._brings.setdefault(association, set())
            if series not in brought:
                brought.add(series)
                self._cut.discard(series)

    def sweep(self) -> None:
        """Tell the queue of the series that no association brings any more: released, or cut if one broke."""
        ended: dict[str, list[str]] = {"released": [], "cut": []}
        with self._lock:
            for association in [a for a in self._brings if a.is_released or a.is_aborted or not a.is_alive()]:
                series = self._brings.pop(association)
                if not association.is_released:
                    self._cut |= series
                for name in series - {name for others in self._brings.values() for name in others}:
                    ended["cut" if name in self._cut else "released"].append(name)
                    self._cut.discard(name)
        for state, names in ended.items():
            if names:
                self._queue.ended(names, state, self._clock())
