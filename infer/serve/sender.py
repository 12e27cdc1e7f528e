"""Results go to their receivers by C-STORE, again and again until they are taken.

A result sent twice has the same SOP Instance UID and the same bytes: to the receiver it is one object.
"""

import ssl
from collections.abc import Callable, Sequence
from pathlib import Path

from pydicom import dcmread
from pydicom.filereader import read_file_meta_info
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.status import code_to_category

from . import log
from .config import Config, Peer
from .metrics import Metrics
from .queue import Job, Queue

LONGEST_WAIT = 3600.0
PLAIN = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)


class Undelivered(Exception):
    """Why a receiver did not take a result, in our words."""


class Sender:
    """Delivers what the queue holds for delivery."""

    def __init__(self, config: Config, queue: Queue, metrics: Metrics, clock: Callable[[], float]) -> None:
        self._config, self._queue, self._metrics, self._clock = config, queue, metrics, clock

    def step(self) -> bool:
        """Try the next delivery. False: there is none."""
        job = self._queue.outgoing(self._clock())
        if job is None:
            return False
        try:
            self._deliver(job)
        except Undelivered as error:
            self._postpone(job, str(error))
        except Exception as error:  # the other deliveries go on
            self._postpone(job, log.place(error))
        else:
            self._queue.delivered(job, self._clock())
            self._metrics.deliveries.labels("done").inc()
            log.event("delivered", job=job.id, series=job.series, peer=job.receiver, count=len(job.files))
        return True

    def _deliver(self, job: Job) -> None:
        peer = self._config.peer(job.receiver)
        if peer is None or not peer.port:
            raise Undelivered(f"no [[peer]] {job.receiver} with a port")
        send(self._config, peer, [self._queue.path(file) for file in job.files])

    def _postpone(self, job: Job, reason: str) -> None:
        limits, wait = self._config.limits, self._config.waits.retry * 2 ** min(job.runs, 30)
        now = self._clock()
        self._queue.postpone(job, reason, now + min(wait, LONGEST_WAIT), limits.sends, now)
        self._metrics.deliveries.labels("failed").inc()
        log.event("delivery-failed", job=job.id, series=job.series, peer=job.receiver, runs=job.runs + 1, reason=reason)


def send(config: Config, peer: Peer, paths: Sequence[Path]) -> None:
    """Store files at a peer. Raises Undelivered unless all were taken."""
    ae = AE(ae_title=config.aet)
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = ae.connection_timeout = config.waits.network
    metas = [read_file_meta_info(path) for path in paths]
    for kind, syntax in {(meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID) for meta in metas}:
        for one in PLAIN if syntax in PLAIN else (syntax,):
            ae.add_requested_context(kind, UID(one))
    association = ae.associate(peer.host, peer.port, ae_title=peer.aet, tls_args=_tls(config, peer))
    if not association.is_established:
        raise Undelivered("the association was rejected" if association.is_rejected else "no connection")
    try:
        for path in paths:
            _store(association, path)
    except BaseException:
        association.abort()
        raise
    association.release()


def _store(association: Association, path: Path) -> None:
    try:
        answer = association.send_c_store(dcmread(path))
    except (ValueError, RuntimeError) as error:
        raise Undelivered("the object's kind was not accepted") from error
    if "Status" not in answer:
        raise Undelivered("no answer")
    if code_to_category(answer.Status) not in ("Success", "Warning"):
        raise Undelivered(f"status {answer.Status:04X}")


def _tls(config: Config, peer: Peer) -> tuple[ssl.SSLContext, str] | None:
    if not peer.tls or config.tls is None:
        return None
    context = ssl.create_default_context(cafile=config.tls.authority)
    context.load_cert_chain(config.tls.certificate, config.tls.key)
    return context, peer.host
