"""Bounds on what a connection may do before a message is understood: from where, how many, how long, how slowly.

pynetdicom reads a message unit (PDU) of whatever length it announces, up to 4 GiB, for as long as it takes, and counts
associations only once they are negotiated. Here a connection from elsewhere, or one too many, is closed at once; a unit
longer than `LONGEST_UNIT`, one that takes too long, or a message longer than the limit ends the connection.
"""

import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Iterable
from socketserver import BaseServer
from typing import Any
from weakref import WeakKeyDictionary

from pynetdicom.association import Association
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer

from . import log
from .config import Network

LONGEST_UNIT = 1 << 20  # bytes; we announce pynetdicom's 16 kB, and an association request is far below this too


class BoundedReader:
    """Reads for one association's socket.

    Parameters
    ----------
    seconds : for one message unit from its first byte to its last.
    most : bytes until `answered` is called.
    """

    def __init__(self, wire: AssociationSocket, seconds: float, most: int) -> None:
        self._wire, self._seconds, self._most = wire, seconds, most
        self._received = 0

    def recv(self, nr_bytes: int) -> bytearray:
        """Exactly so many bytes; fewer when the peer closed. Raises OSError when a bound is passed."""
        count, wire, until = nr_bytes, self._wire.socket, time.monotonic() + self._seconds
        self._received += count
        if wire is None or count > LONGEST_UNIT or self._received > self._most:
            raise OSError("a message is too long")
        data = bytearray()
        while len(data) < count:
            wire.settimeout(max(0.001, until - time.monotonic()))
            part = wire.recv(min(count - len(data), 1 << 16))
            if not part:
                break
            data += part
        wire.settimeout(self._seconds)  # holds for sending
        return data

    def answered(self) -> None:
        """A message was answered: the next one may be as long."""
        self._received = 0


class Handler(RequestHandler):
    """One connection: TLS is negotiated here, in its own thread, and reading is bounded."""

    server: "Server"

    def handle(self) -> None:
        """Greet a peer that was let in."""
        self.request.settimeout(self.server.seconds)
        if isinstance(self.request, ssl.SSLSocket):
            self.request.do_handshake()
        super().handle()

    def _create_association(self) -> Association:
        association = super()._create_association()
        wire = association.dul.socket
        assert wire is not None
        reader = BoundedReader(wire, self.server.seconds, self.server.most)
        wire.recv = reader.recv  # type: ignore[method-assign]
        self.server.readers[association] = reader
        return association


class Server(ThreadedAssociationServer):
    """A server that lets in listed addresses only, and not too many of them.

    Parameters
    ----------
    allowed : networks that may connect.
    connections : at a time.
    seconds, most : see `BoundedReader`.
    """

    daemon_threads = True

    def __init__(
        self,
        *arguments: Any,
        allowed: Iterable[Network],
        connections: int,
        seconds: float,
        most: int,
        **settings: Any,
    ) -> None:
        self.allowed, self.connections, self.seconds, self.most = tuple(allowed), connections, seconds, most
        self.readers: WeakKeyDictionary[Association, BoundedReader] = WeakKeyDictionary()
        self._greeted, self._lock = 0, threading.Lock()
        super().__init__(*arguments, **settings)

    def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
        """Accept; the TLS handshake waits for the connection's own thread."""
        assert self.socket is not None
        connection, address = self.socket.accept()
        if self.ssl_context is not None:
            connection = self.ssl_context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, address

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether this connection is let in."""
        refused = ""
        if not allows(self.allowed, client_address[0]):
            refused = "address"
        elif len(self.active_associations) + self._greeted >= self.connections:
            refused = "too-many"
        if refused:
            log.event("connection-refused", reason=refused)
            return False
        with self._lock:
            self._greeted += 1
        return True

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Handle one connection until it is an association, which has threads of its own."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                self._greeted -= 1

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that failed before it became an association: no TLS, or a wrong certificate, as a rule."""
        log.event("connection-refused", reason="handshake")

    def stop(self) -> None:
        """Let nobody in any more, and end what goes on."""
        BaseServer.shutdown(self)
        self.server_close()
        for association in self.active_associations:
            association.abort()


def allows(networks: Iterable[Network], address: str) -> bool:
    """Whether an address lies in one of the networks; an IPv4 address may come in IPv6 form."""
    found = ipaddress.ip_address(address.partition("%")[0])
    found = getattr(found, "ipv4_mapped", None) or found
    return any(found in network for network in networks)
