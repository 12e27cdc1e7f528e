"""The DICOM node: answers C-ECHO and takes objects in by C-STORE.

Success is answered when the object is on the disk and in the queue. An object that is not whole, not what the request
said, or from an association that is not a peer's gets a failure status and leaves nothing behind. What is no volume (a
report, a screenshot, a segmentation of before) is dropped with a warning status: many an archive sends whole studies,
and sends nothing of one that is not taken as a whole.
"""

import os
import shutil
import sqlite3
import ssl
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pynetdicom._config as settings
from pydicom import uid as uids
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, evt
from pynetdicom.dimse_primitives import C_STORE

from ..dicom.decoders import readable
from ..errors import Exit, SegError
from . import log
from .arrivals import Arrivals
from .config import Config, Limits, networks
from .metrics import Metrics
from .names import Key
from .objects import Facts, Truncated, read_facts
from .queue import Arrival, Queue
from .wire import Handler, Server, allows

SUCCESS, NOT_AUTHORISED, NO_RESOURCES, MISMATCH, NOT_UNDERSTOOD = 0x0000, 0x0124, 0xA700, 0xA900, 0xC000
DISCARDED = 0xB006  # a warning: taken, and not kept
VOLUMES = (
    uids.CTImageStorage,
    uids.EnhancedCTImageStorage,
    uids.LegacyConvertedEnhancedCTImageStorage,
    uids.MRImageStorage,
    uids.EnhancedMRImageStorage,
    uids.LegacyConvertedEnhancedMRImageStorage,
    uids.PositronEmissionTomographyImageStorage,
    uids.EnhancedPETImageStorage,
    uids.LegacyConvertedEnhancedPETImageStorage,
)
PLAIN = (uids.ExplicitVRLittleEndian, uids.ImplicitVRLittleEndian)
VERIFICATION = "1.2.840.10008.1.1"  # the SOP class of C-ECHO
ROOM_FOR_HEADERS = 1 << 20  # of message units, beside the object


class Node:
    """Receives until it is stopped."""

    def __init__(
        self,
        config: Config,
        queue: Queue,
        key: Key,
        arrivals: Arrivals,
        metrics: Metrics,
        clock: Callable[[], float],
    ) -> None:
        self._config, self._queue, self._key = config, queue, key
        self._arrivals, self._metrics, self._clock = arrivals, metrics, clock
        self._networks = {peer.aet: networks(peer) for peer in config.peers}
        self._before = settings.STORE_RECV_CHUNKED_DATASET, tempfile.tempdir
        settings.STORE_RECV_CHUNKED_DATASET = True  # objects go to a file piece by piece, not through memory,
        tempfile.tempdir = str(queue.incoming)  # and the file is where nobody else looks, not in /tmp
        self._server = self._listen()
        self._thread = threading.Thread(target=self._server.serve_forever, name="dicom", daemon=True)

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def stop(self) -> None:
        """End all associations."""
        self._server.stop()
        settings.STORE_RECV_CHUNKED_DATASET, tempfile.tempdir = self._before

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_address[1])

    def alive(self) -> bool:
        """Whether it listens."""
        return self._thread.is_alive()

    def _listen(self) -> Server:
        config = self._config
        ae = AE(ae_title=config.aet)
        ae.require_called_aet = True
        ae.require_calling_aet = [peer.aet for peer in config.peers]
        ae.maximum_associations = config.limits.associations
        ae.acse_timeout = ae.dimse_timeout = config.waits.network
        ae.network_timeout = config.waits.network + config.waits.quiet  # an idle one is told complete before it is cut
        syntaxes = [*PLAIN, *readable()]  # of those a sender offers, the first; senders convert what is not taken
        for abstract in VOLUMES:
            ae.add_supported_context(abstract, syntaxes)
        for other in AllStoragePresentationContexts:
            if other.abstract_syntax not in VOLUMES:
                ae.add_supported_context(str(other.abstract_syntax), ALL_TRANSFER_SYNTAXES)
        ae.add_supported_context(VERIFICATION)
        try:
            server = ae.make_server(
                (config.host, config.port),
                ssl_context=_tls(config),
                evt_handlers=[
                    (evt.EVT_C_ECHO, self._echo),
                    (evt.EVT_C_STORE, self._store),
                    (evt.EVT_DIMSE_SENT, self._answered),
                    (evt.EVT_RELEASED, self._released),
                ],
                server_class=Server,
                request_handler=Handler,
                allowed=[network for found in self._networks.values() for network in found],
                connections=config.limits.associations,
                seconds=config.waits.network,
                most=(config.limits.object_megabytes << 20) + ROOM_FOR_HEADERS,
            )
        except OSError as error:
            found = f"cannot listen on {config.host} port {config.port} ({error.strerror or error})"
            fix = "choose another port, or stop what uses it; check the files of [tls]"
            raise SegError("E-SERVE-PORT", Exit.RUNTIME, "", found, fix) from error
        assert isinstance(server, Server)
        return server

    def _is_peer(self, association: evt.Event) -> bool:
        """Whether the association comes from where its AE title is at home."""
        requestor = association.assoc.requestor
        return allows(self._networks.get(requestor.ae_title, ()), requestor.address)

    def _echo(self, event: evt.Event) -> int:
        return SUCCESS if self._is_peer(event) else NOT_AUTHORISED

    def _answered(self, event: evt.Event) -> None:
        reader = self._server.readers.get(event.assoc)
        if reader is not None:
            reader.answered()

    def _released(self, _: evt.Event) -> None:
        self._arrivals.sweep()

    def _store(self, event: evt.Event) -> int:
        reason = ""
        try:
            status, reason = self._take(event) if self._is_peer(event) else (NOT_AUTHORISED, "address")
        except (OSError, MemoryError, sqlite3.Error) as error:
            status, reason = NO_RESOURCES, log.place(error)
        except Truncated:
            status, reason = NO_RESOURCES, "truncated"
        except Exception as error:  # of a parser that was given anything at all
            status, reason = NOT_UNDERSTOOD, log.place(error)
        self._metrics.received.labels(f"{status:04X}").inc()
        if reason:
            log.event("object-refused", status=f"{status:04X}", reason=reason)
        return status

    def _take(self, event: evt.Event) -> tuple[int, str]:
        """Status, and the reason of one that is not success."""
        path, request = Path(event.dataset_path), event.request
        assert isinstance(request, C_STORE)
        if request.AffectedSOPClassUID not in VOLUMES:
            return DISCARDED, "no-volume"
        size = path.stat().st_size
        if reason := no_room(self._queue, self._config.limits, size):
            return NO_RESOURCES, reason
        facts = read_facts(path)
        if not facts.uids_are_valid():
            return NOT_UNDERSTOOD, "uid"
        if (facts.sop_class, facts.sop_instance) != (request.AffectedSOPClassUID, request.AffectedSOPInstanceUID):
            return MISMATCH, "uid"
        arrival = self._arrival(facts, size, event.assoc.requestor.ae_title)
        self._arrivals.note(event.assoc, arrival.series)
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        self._queue.accept(arrival, path, self._clock())
        return SUCCESS, ""

    def _arrival(self, facts: Facts, size: int, sender: str) -> Arrival:
        series, instance = self._key.name(facts.series), self._key.name(facts.sop_instance)
        return Arrival(series, instance, facts.digest, size, sender, facts.series_length())


def no_room(queue: Queue, limits: Limits, size: int) -> str:
    """Why an object of `size` bytes, which is on the disk already, cannot be kept; "" if it can."""
    if shutil.disk_usage(queue.files).free < limits.free_megabytes << 20:
        return "disk-full"
    if queue.stored_bytes() + size > limits.store_megabytes << 20:
        return "store-full"
    return ""


def _tls(config: Config) -> ssl.SSLContext | None:
    """Both sides show certificates: a peer without one that the authority signed does not get in."""
    if config.tls is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=config.tls.authority)
    context.load_cert_chain(config.tls.certificate, config.tls.key)
    context.verify_mode = ssl.CERT_REQUIRED
    return context
