"""The node until a signal ends it."""

import signal

from ..errors import missing_extra
from .config import Config


def run(config: Config) -> None:
    """Serve. Leaves by KeyboardInterrupt, or by what SIGTERM raises; everything that was answered is on the disk then.

    Raises
    ------
    SegError : E-EXTRA, E-SERVE-*, E-MODEL-*.
    """
    try:
        import prometheus_client  # noqa: F401
        import pynetdicom  # noqa: F401
    except ImportError as error:
        raise missing_extra("pynetdicom or prometheus-client", "serve") from error
    from .log import silence_libraries
    from .pipeline import PipelineSegmenter
    from .service import Service

    silence_libraries()
    service = Service(config, PipelineSegmenter())
    service.start()
    try:
        while True:  # the main thread is for signals
            signal.pause()
    finally:
        service.arrivals.sweep()  # what ended in order before us needs no waiting at the next start
