"""A node with a fake segmenter that kills itself at one exact point, once the file `armed` lies beside its state.

python killed_node.py STATE PORT HTTP_PORT PACS_PORT POINT
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nodes import LOOPBACK, FakeSegmenter, node_config

from seg.infer.serve import sender
from seg.infer.serve.queue import Queue
from seg.infer.serve.service import Service

# What is wrapped, and whether to die before or after it does its work.
POINTS: dict[str, tuple[Any, str, bool]] = {
    "object written": (Queue, "accept", False),
    "object numbered": (Queue, "_keep", True),
    "object accepted": (Queue, "accept", True),
    "series settled": (Queue, "settle", True),
    "job claimed": (Queue, "claim", True),
    "series segmented": (FakeSegmenter, "segment", True),
    "result written": (Queue, "finish", False),
    "result queued": (Queue, "finish", True),
    "result on its way": (sender, "send", False),
    "result sent": (sender, "send", True),
    "result delivered": (Queue, "delivered", True),
    "inputs deleted": (Path, "unlink", False),
}
RETURNS_NOTHING = ("finish", "send", "delivered")


def dying(work: Callable[..., Any], armed: Path, after: bool) -> Callable[..., Any]:
    """`work`, before or after which the process dies; after it, unless it says that there was nothing to do."""

    def wrapped(*arguments: Any, **settings: Any) -> Any:
        value = work(*arguments, **settings) if after else None
        if armed.exists() and (not after or value or work.__name__ in RETURNS_NOTHING):
            os.kill(os.getpid(), signal.SIGKILL)
        return value if after else work(*arguments, **settings)

    return wrapped


def main(state: str, port: str, http_port: str, pacs_port: str, point: str) -> None:
    """Serve until killed."""
    if point:
        owner, name, after = POINTS[point]
        setattr(owner, name, dying(getattr(owner, name), Path(state).parent / "armed", after))
    peers = [{"aet": "PACS", "host": LOOPBACK, "port": int(pacs_port)}]
    waits = {"released": 0.2, "cut": 60.0}
    config = node_config(
        Path(state), peers, port=int(port), http_port=int(http_port), waits=waits, keep_hours=0, limits={"runs": 50}
    )
    Service(config, FakeSegmenter()).start()
    signal.pause()


if __name__ == "__main__":
    main(*sys.argv[1:])
