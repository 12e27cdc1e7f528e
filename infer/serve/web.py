"""What a person or a monitor may ask over HTTP, on loopback: /healthz, /metrics, /queue. Nothing can be changed."""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from ..errors import Exit, SegError
from .config import LOOPBACK

Page = Callable[[], tuple[int, str, bytes]]  # status, content type, body
JSON, PROMETHEUS = "application/json", "text/plain; version=0.0.4; charset=utf-8"


class _Handler(BaseHTTPRequestHandler):
    pages: dict[str, Page]
    timeout = 5.0  # seconds of silence
    server_version, sys_version = "seg-serve", ""

    def do_GET(self) -> None:
        page = self.pages.get(self.path.partition("?")[0])
        status, kind, body = page() if page else (404, JSON, b"{}")
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Requests are not logged: a path is a received value."""


class Web:
    """The server of these pages."""

    def __init__(self, port: int, pages: dict[str, Page]) -> None:
        """Listen. Raises SegError E-SERVE-PORT."""
        handler = type("Handler", (_Handler,), {"pages": pages})
        try:
            self._server = ThreadingHTTPServer((LOOPBACK, port), handler)
        except OSError as error:
            found = f"cannot listen on {LOOPBACK} port {port} ({error.strerror})"
            raise SegError("E-SERVE-PORT", Exit.RUNTIME, "", found, "choose another http_port") from error
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that hung up
        self._thread = threading.Thread(target=self._server.serve_forever, name="http", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_address[1])


def as_json(value: object, status: int = 200) -> tuple[int, str, bytes]:
    """A page."""
    return status, JSON, json.dumps(value).encode()
