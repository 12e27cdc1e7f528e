"""The node on loopback: who gets in, what is taken, what becomes of it. Rows S01 to S10, D28, D29 and D39 of the
reliability table, each by name."""

import errno
import functools
import json
import random
import socket
import ssl
import struct
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pynetdicom", reason="needs the extra serve")

from nodes import (
    LOOPBACK,
    OTHERS,
    FakePacs,
    FakeSegmenter,
    Orthanc,
    associate,
    certificates,
    free_port,
    get,
    mr_series,
    node_config,
    orthanc_missing,
    raw_store,
    store,
    store_once_there_is_room,
    wait_for,
    write,
)
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage
from pynetdicom import AE

from seg.infer.dicom import decoders
from seg.infer.dicom.decoders import readable
from seg.infer.serve import node as node_module
from seg.infer.serve import service as serving
from seg.infer.serve import wire
from seg.infer.serve import worker as worker_module
from seg.infer.serve.database import jobs
from seg.infer.serve.objects import Facts, read_facts
from seg.infer.serve.service import Service

Start = Callable[..., Service]
HOSTILE = [
    "../../../../tmp/evil",
    "/tmp/evil",
    "..\\..\\evil",
    "1.2.3;touch evil",
    "$(touch evil)",
    "1.2\x00.3",
    "con",
    ".",
]
HOSTILE += ["1..2", "-1.2", "1.2 3", "%2e%2e%2fevil"]


@pytest.fixture
def pacs() -> Iterator[FakePacs]:
    with FakePacs() as made:
        yield made


@pytest.fixture
def start(tmp_path: Path, pacs: FakePacs, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Start a node that knows the PACS; `segmenter` is the one it uses."""
    monkeypatch.setattr(serving, "IDLE_SECONDS", 0.02)
    running: list[Service] = []

    def make(**changes: Any) -> Service:
        segmenter = changes.pop("segmenter", FakeSegmenter())
        peers = changes.pop("peer", [{"aet": "PACS", "host": LOOPBACK, "port": pacs.port}])
        service = Service(node_config(tmp_path / "state", peers, **changes), segmenter)
        service.segmenter = segmenter  # type: ignore[attr-defined]
        service.start()
        running.append(service)
        return service

    yield make
    for service in running:
        service.stop()


def states(service: Service) -> list[str]:
    return [job["state"] for job in reversed(jobs(service.queue.database))]


def seen(service: Service) -> list[int]:
    """How many objects each segmentation was given."""
    return service.segmenter.seen  # type: ignore[attr-defined, no-any-return]


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


# The way of one series


def test_series_becomes_one_segmentation_at_its_sender(start: Start, pacs: FakePacs) -> None:
    service = start()
    assert store(service.node.port, mr_series("a")) == [0, 0, 0, 0]
    wait_for(lambda: states(service) == ["done"])
    (result,) = pacs.objects
    assert (result.Modality, result.PatientID, result.StudyInstanceUID) == (
        "SEG",
        "a",
        mr_series("a")[0].StudyInstanceUID,
    )
    assert seen(service) == [4]


def test_echo_is_answered(start: Start) -> None:
    service = start()
    association = associate(service.node.port)
    assert association.send_c_echo().Status == 0
    association.release()


def test_many_senders_at_once_lose_nothing(start: Start, pacs: FakePacs) -> None:
    service = start()
    names = [f"p{number}" for number in range(6)]
    threads = [threading.Thread(target=store, args=(service.node.port, mr_series(name))) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait_for(lambda: states(service) == ["done"] * 6)
    assert sorted(str(one.PatientID) for one in pacs.objects) == names
    assert seen(service) == [4] * 6


def test_result_goes_to_the_named_receiver(start: Start, pacs: FakePacs) -> None:
    sender = {"aet": "SCANNER", "host": LOOPBACK}
    service = start(peer=[sender, {"aet": "PACS", "host": LOOPBACK, "port": pacs.port}], send_to="PACS")
    store(service.node.port, mr_series("a"), aet="SCANNER")
    wait_for(lambda: pacs.uids)


def test_each_of_two_senders_of_a_series_gets_its_result(start: Start, pacs: FakePacs) -> None:
    """Also where both send it before it is settled; a named receiver gets it once."""
    with FakePacs("OTHER") as other:
        peers = [{"aet": one.aet, "host": LOOPBACK, "port": one.port} for one in (pacs, other)]
        service = start(peer=peers, waits={"released": 1.5})
        for aet in ("PACS", "OTHER"):
            assert store(service.node.port, mr_series("a"), aet=aet) == [0] * 4
        wait_for(lambda: states(service) == ["done", "done"], 20)
        assert pacs.uids == other.uids
        assert len(pacs.uids) == 1
        assert {(job["sender"], job["receiver"]) for job in jobs(service.queue.database)} == {
            ("PACS, OTHER", "PACS"),
            ("PACS, OTHER", "OTHER"),
        }


def test_sender_that_listens_nowhere_is_told_in_the_queue(start: Start, pacs: FakePacs) -> None:
    service = start(peer=[{"aet": "SCANNER", "host": LOOPBACK}, {"aet": "PACS", "host": LOOPBACK, "port": pacs.port}])
    store(service.node.port, mr_series("a"), aet="SCANNER")
    wait_for(lambda: states(service) == ["failed"])
    assert jobs(service.queue.database)[0]["code"] == "E-SERVE-RECEIVER"


def test_series_without_a_rule_is_ignored(start: Start, pacs: FakePacs) -> None:
    service = start(rule=[{"model": "m", "modality": "CT"}])
    store(service.node.port, mr_series("a"))
    wait_for(lambda: states(service) == ["ignored"])
    assert seen(service) == []


def test_inputs_are_deleted_when_they_are_no_longer_kept(start: Start, pacs: FakePacs, tmp_path: Path) -> None:
    service = start(keep_hours=0)
    store(service.node.port, mr_series("a"))
    wait_for(lambda: states(service) == ["done"])
    store(service.node.port, mr_series("b"))
    wait_for(lambda: states(service) == ["done", "done"])
    wait_for(lambda: not list((tmp_path / "state" / "files").glob("1.dcm")))


# S01, D29, S10: hostile values


@pytest.mark.parametrize("keyword", ["SeriesInstanceUID", "StudyInstanceUID", "SOPInstanceUID"])
def test_hostile_uid_is_refused_and_makes_no_file(start: Start, tmp_path: Path, keyword: str) -> None:
    service = start()
    before = files(tmp_path)
    for value in HOSTILE:
        one = mr_series("a", 1)[0]
        one[keyword]._value = value
        assert raw_store(service.node.port, tmp_path, one) == 0xC000
    assert files(tmp_path) == before


def test_request_for_another_object_is_a_mismatch(start: Start, tmp_path: Path) -> None:
    service = start()
    assert raw_store(service.node.port, tmp_path, mr_series("a", 1)[0]) == 0xA900


def test_unknown_titles_and_addresses_do_not_get_in(start: Start, pacs: FakePacs) -> None:
    peers = [
        {"aet": "PACS", "host": LOOPBACK, "port": pacs.port},
        {"aet": "FAR", "host": LOOPBACK, "addresses": ["192.0.2.0/24"]},
    ]
    service = start(peer=peers)
    port = service.node.port
    for aet, called in (("EVIL", "SEG"), ("PACS", "OTHER"), ("pacs", "SEG"), ("PACS;ls", "SEG")):
        assert associate(port, aet=aet, called=called).is_rejected
    far = associate(port, aet="FAR")  # a known title from where it is not at home
    assert far.send_c_echo().Status == 0x0124
    assert far.send_c_store(mr_series("a", 1)[0]).Status == 0x0124
    far.release()


def test_connection_from_elsewhere_is_closed_at_once(start: Start, pacs: FakePacs) -> None:
    peer = {"aet": "PACS", "host": LOOPBACK, "port": pacs.port, "addresses": ["192.0.2.0/24"]}
    service = start(peer=[peer])
    with socket.create_connection((LOOPBACK, service.node.port), timeout=5) as connection:
        assert connection.recv(1) == b""


@pytest.mark.parametrize(
    ("address", "inside"),
    [
        ("10.1.2.3", True),
        ("10.2.0.1", False),
        ("::ffff:10.1.2.3", True),
        ("fe80::1%eth0", False),
        ("2001:db8::5", True),
    ],
)
def test_addresses_in_all_forms(address: str, inside: bool) -> None:
    import ipaddress

    networks = [ipaddress.ip_network("10.1.0.0/16"), ipaddress.ip_network("2001:db8::/32")]
    assert wire.allows(networks, address) is inside


# S02: the wire


def request_unit() -> bytes:
    """An A-ASSOCIATE-RQ as pynetdicom makes it."""
    ae = AE(ae_title="PACS")
    ae.add_requested_context("1.2.840.10008.1.1")
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        listener.listen()
        caught: list[bytes] = []

        def catch() -> None:
            connection, _ = listener.accept()
            caught.append(connection.recv(1 << 16))
            connection.close()

        thread = threading.Thread(target=catch)
        thread.start()
        ae.associate(LOOPBACK, listener.getsockname()[1], ae_title="SEG")
        thread.join()
    return caught[0]


def closed_within(connection: socket.socket, seconds: float) -> bool:
    connection.settimeout(seconds)
    try:
        while connection.recv(1 << 16):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        pass
    return True


def test_unit_that_claims_4_gb_ends_the_connection(start: Start) -> None:
    service = start()
    for kind in (1, 4):
        with socket.create_connection((LOOPBACK, service.node.port)) as connection:
            if kind == 4:
                connection.sendall(request_unit())
                assert connection.recv(1) == b"\x02"
            connection.sendall(struct.pack(">BBL", kind, 0, 0xFFFFFFF0) + bytes(1000))
            assert closed_within(connection, 5)


def test_object_longer_than_the_limit_ends_the_association(start: Start, tmp_path: Path) -> None:
    service = start(limits={"object_megabytes": 1})
    association = associate(service.node.port)
    answer = association.send_c_store(mr_series("big", 1, size=1200)[0])  # 2.9 MB
    assert "Status" not in answer
    wait_for(lambda: not files(tmp_path / "state" / "files"))
    small = mr_series("a")
    assert store(service.node.port, small) == [0] * 4
    association = associate(service.node.port)
    for one in mr_series("b", 40, size=200):  # 3.2 MB together: each message counts for itself
        assert association.send_c_store(one).Status == 0
    association.release()


def test_half_open_and_slow_connections_end(start: Start) -> None:
    service = start(waits={"network": 1.0})
    with (
        socket.create_connection((LOOPBACK, service.node.port)) as silent,
        socket.create_connection((LOOPBACK, service.node.port)) as slow,
    ):
        began = time.monotonic()

        def drip() -> None:
            for byte in struct.pack(">BBL", 1, 0, 5000) + bytes(5000):
                try:
                    slow.send(bytes([byte]))
                except OSError:
                    return
                time.sleep(0.1)

        threading.Thread(target=drip, daemon=True).start()
        assert closed_within(silent, 6)
        assert closed_within(slow, 6)
        assert time.monotonic() - began < 8


def test_more_connections_than_allowed_are_closed(start: Start) -> None:
    service = start(limits={"associations": 3}, waits={"network": 2.0})
    connections = [socket.create_connection((LOOPBACK, service.node.port), timeout=5) for _ in range(60)]
    try:
        time.sleep(0.5)
        still = [connection for connection in connections if not closed_within(connection, 0.05)]
        assert len(still) <= 3
        assert len(service.node._server.active_associations) <= 3
    finally:
        for connection in connections:
            connection.close()
    wait_for(lambda: not service.node._server.active_associations, 20)
    assert store_once_there_is_room(service.node.port, mr_series("a", 1)) == [0]


def test_noise_does_not_stop_the_node(start: Start) -> None:
    service = start(waits={"network": 2.0})
    rng = random.Random(0)
    good = request_unit()
    for _ in range(60):
        data = bytearray(good)
        for _ in range(rng.randrange(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        with socket.create_connection((LOOPBACK, service.node.port)) as connection:
            connection.sendall(bytes(data[: rng.randrange(1, len(data) + 1)]))
    wait_for(lambda: len(service.node._server.active_associations) < 5)
    assert store_once_there_is_room(service.node.port, mr_series("a", 1)) == [0]
    assert service.healthy()


# S04, D28


def test_object_that_is_not_whole_is_refused(start: Start, tmp_path: Path) -> None:
    service = start()
    one = mr_series("a", 1)[0]
    del one.PixelData
    assert store(service.node.port, [one]) == [0xA700]
    assert files(tmp_path / "state" / "files") == files(tmp_path / "state" / "incoming") == set()


def test_association_cut_in_the_middle_of_an_object_leaves_nothing(start: Start, tmp_path: Path) -> None:
    service = start()
    association = associate(service.node.port)
    thread = threading.Thread(target=association.send_c_store, args=(mr_series("big", 1, size=3000)[0],), daemon=True)
    thread.start()
    wait_for(lambda: files(tmp_path / "state" / "incoming"))
    association.dul.socket.socket.shutdown(socket.SHUT_RDWR)
    thread.join(10)
    assert files(tmp_path / "state" / "files") == set()
    assert states(service) == []


def test_what_is_kept_and_sent_has_an_empty_preamble(
    start: Start, pacs: FakePacs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[bytes] = []
    from seg.infer.serve import sender

    real = sender.send
    monkeypatch.setattr(sender, "send", lambda *a: (sent.extend(path.read_bytes() for path in a[2]), real(*a)))
    segmenter = FakeSegmenter()
    made = segmenter.segment

    def with_preamble(folder: Path, model: str) -> list[Dataset]:
        results = made(folder, model)
        results[0].preamble = b"MZ" * 64
        return results

    segmenter.segment = with_preamble  # type: ignore[method-assign]
    service = start(segmenter=segmenter)
    store(service.node.port, mr_series("a"))
    wait_for(lambda: states(service) == ["done"])
    kept = [path.read_bytes() for path in (tmp_path / "state" / "files").iterdir()]
    assert len(sent) == 1
    assert all(data[:132] == bytes(128) + b"DICM" for data in kept + sent)


# S06, S08, S09


def test_receiver_that_fails_gets_the_result_later_and_once(start: Start, pacs: FakePacs) -> None:
    pacs.failures = 3
    service = start()
    store(service.node.port, mr_series("a"))
    wait_for(lambda: states(service) == ["done"])
    assert len(pacs.uids) == 1
    assert seen(service) == [4]


def test_receiver_that_is_down_gets_the_result_when_it_is_up(start: Start) -> None:
    port = free_port()
    service = start(peer=[{"aet": "PACS", "host": LOOPBACK, "port": port}])
    store(service.node.port, mr_series("a"))
    wait_for(lambda: [job for job in jobs(service.queue.database) if job["runs"] >= 2])
    (job,) = jobs(service.queue.database)
    assert (job["state"], job["code"], job["message"]) == ("sending", "E-SERVE-SEND", "no connection")
    pacs = FakePacs()
    pacs.port = port
    with pacs:
        wait_for(lambda: states(service) == ["done"])
        assert len(pacs.uids) == 1


def test_study_sent_twice_gives_one_result(start: Start, pacs: FakePacs) -> None:
    service = start()
    for _ in range(2):
        assert store(service.node.port, mr_series("a")) == [0] * 4
        wait_for(lambda: states(service) == ["done"])
        wait_for(lambda: not service.queue.database.one("SELECT 1 FROM series WHERE state != 'settled'"))
    assert len(pacs.uids) == 1
    assert seen(service) == [4]


def test_updated_study_gives_another_result(start: Start, pacs: FakePacs) -> None:
    service = start()
    store(service.node.port, mr_series("a"))
    wait_for(lambda: states(service) == ["done"])
    store(service.node.port, mr_series("a", SeriesDescription="corrected"))
    wait_for(lambda: states(service) == ["done", "done"])
    assert len(set(pacs.uids)) == 2


def test_same_inputs_and_model_give_the_same_uids_on_any_installation(tmp_path: Path, pacs: FakePacs) -> None:
    for state in ("one", "two"):
        peers = [{"aet": "PACS", "host": LOOPBACK, "port": pacs.port}]
        service = Service(node_config(tmp_path / state, peers), FakeSegmenter())
        service.start()
        store(service.node.port, mr_series("a"))
        wait_for(lambda s=service: states(s) == ["done"])
        service.stop()
    assert len(pacs.uids) == 2
    assert len(set(pacs.uids)) == 1


@pytest.mark.parametrize("limits", [{"free_megabytes": 10**9}, {"store_megabytes": 1}])
def test_full_disk_or_store_is_out_of_resources(start: Start, tmp_path: Path, limits: dict[str, int]) -> None:
    service = start(limits=limits)
    statuses = store(service.node.port, mr_series("a", 3, size=600))  # 0.7 MB each
    assert statuses == ([0xA700] * 3 if "free_megabytes" in limits else [0, 0xA700, 0xA700])
    assert len(files(tmp_path / "state" / "files")) == statuses.count(0)
    assert files(tmp_path / "state" / "incoming") == set()
    if "free_megabytes" in limits:
        with pytest.raises(urllib.error.HTTPError, match="503"):
            get(f"http://{LOOPBACK}:{service.web.port}/healthz")


def test_database_that_cannot_be_written_is_out_of_resources(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    import sqlite3

    service = start()
    monkeypatch.setattr(
        service.queue, "accept", lambda *_: (_ for _ in ()).throw(sqlite3.OperationalError("disk full"))
    )
    assert store(service.node.port, mr_series("a", 1)) == [0xA700]


# D39


def test_series_that_grows_is_run_again_and_never_merged(start: Start, pacs: FakePacs) -> None:
    service = start()
    series = mr_series("a", 30)
    store(service.node.port, series[:20])
    wait_for(lambda: states(service) == ["done"])
    store(service.node.port, series[20:])
    wait_for(lambda: states(service) == ["done", "done"])
    assert seen(service) == [20, 30]
    assert [one.NumberOfFrames for one in pacs.objects] == [20, 30]
    assert len(set(pacs.uids)) == 2


def test_series_shorter_than_it_says_is_refused_until_it_is_whole(start: Start, pacs: FakePacs) -> None:
    service = start()
    series = mr_series("a", 30, NumberOfSeriesRelatedInstances=30)
    store(service.node.port, series[:20])
    wait_for(lambda: states(service) == ["failed"])
    (job,) = jobs(service.queue.database)
    assert (job["code"], job["message"].partition(".")[0]) == ("E-SERVE-INCOMPLETE", "20 of 30 objects came")
    store(service.node.port, series[20:])
    wait_for(lambda: states(service) == ["failed", "done"])
    assert seen(service) == [30]


def test_expected_count_ends_the_waiting_before_the_association_does(start: Start) -> None:
    service = start(waits={"quiet": 1000.0, "cut": 1000.0, "released": 1000.0})
    association = associate(service.node.port)
    for one in mr_series("a", 3, NumberOfSeriesRelatedInstances=3):
        assert association.send_c_store(one).Status == 0
    wait_for(lambda: states(service) == ["done"])
    association.release()


def test_broken_association_is_no_end_of_a_series(start: Start) -> None:
    service = start(waits={"released": 0.2, "cut": 3.0})
    series = mr_series("a", 6)
    association = associate(service.node.port)
    for one in series[:3]:
        association.send_c_store(one)
    association.abort()
    time.sleep(1.0)
    assert states(service) == []
    store(service.node.port, series)  # the sender tries again
    wait_for(lambda: states(service) == ["done"])
    assert seen(service) == [6]


def test_two_associations_that_share_a_series_both_have_to_end(start: Start) -> None:
    service = start(waits={"released": 0.2, "quiet": 1000.0})
    series = mr_series("a", 6)
    first, second = associate(service.node.port), associate(service.node.port)
    for one, association in zip(series[:4], [first, second] * 2, strict=True):
        association.send_c_store(one)
    first.release()
    time.sleep(1.0)
    assert states(service) == []
    for one in series[4:]:
        second.send_c_store(one)
    second.release()
    wait_for(lambda: states(service) == ["done"])
    assert seen(service) == [6]


# What a series may do to the others


def test_poisoned_series_fails_alone(start: Start, pacs: FakePacs) -> None:
    service = start(limits={"runs": 2})
    for name, text in (("p", "poison"), ("c", "crash"), ("l", "large"), ("good", "fine")):
        store(service.node.port, mr_series(name, SeriesDescription=text))
    wait_for(lambda: sorted(states(service)) == ["done", "failed", "failed", "failed"])
    assert [str(one.PatientID) for one in pacs.objects] == ["good"]
    found = {job["code"]: job for job in jobs(service.queue.database)}
    assert found["E-DCM-GAP"]["message"] == "a slice is missing. Fix: send the whole series."
    assert found["E-DCM-GAP"]["runs"] == 1
    assert found["E-INTERNAL"]["message"].startswith("RuntimeError at nodes.py:")
    assert found["E-INTERNAL"]["runs"] == found["E-LIMIT-MEMORY"]["runs"] == 2
    text = json.dumps(get(f"http://{LOOPBACK}:{service.web.port}/queue"))
    assert "a slice is missing" in text


@pytest.mark.parametrize("damage", ["removed", "cut", "unreadable"])
def test_received_file_that_cannot_be_read_is_its_series_failure_alone(
    start: Start, pacs: FakePacs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    """And when the series is sent again, what is gone is taken again."""
    service = start(waits={"released": 1.5})
    store(service.node.port, mr_series("a"))
    path = tmp_path / "state" / "files" / "1.dcm"
    if damage == "removed":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:400])
    else:

        def failing(asked: Path) -> Facts:
            if asked == path:
                raise OSError(errno.EIO, "Input/output error")
            return read_facts(asked)

        monkeypatch.setattr(worker_module, "read_facts", failing)
    store(service.node.port, mr_series("b"))
    wait_for(lambda: states(service) == ["failed", "done"], 15)
    (failed,) = [job for job in jobs(service.queue.database) if job["state"] == "failed"]
    assert failed["code"] == "E-SERVE-READ"
    assert "send the series again" in failed["message"]
    if damage == "removed":
        store(service.node.port, mr_series("a"))
        wait_for(lambda: states(service) == ["failed", "done", "done"], 15)
        assert seen(service) == [4, 4]


# Watching


def test_pages_show_health_queue_and_figures(start: Start) -> None:
    service = start()
    base = f"http://{LOOPBACK}:{service.web.port}"
    store(service.node.port, mr_series("a"))
    wait_for(lambda: states(service) == ["done"])
    assert get(f"{base}/healthz") == {"healthy": True}
    page = get(f"{base}/queue")
    assert page["counts"] == {"arriving": 0, "done": 1}
    assert page["jobs"][0]["count"] == 4
    figures = urllib.request.urlopen(f"{base}/metrics").read().decode()
    assert 'seg_serve_objects_total{status="0000"} 4.0' in figures
    assert 'seg_serve_jobs{state="done"} 1.0' in figures
    assert 'seg_serve_deliveries_total{outcome="done"} 1.0' in figures
    assert "seg_serve_segmentation_seconds_count 1.0" in figures
    request = urllib.request.Request(f"{base}/queue", data=b"x")
    with pytest.raises(urllib.error.HTTPError, match="501"):
        urllib.request.urlopen(request)
    assert service.web._server.server_address[0] == service.node._server.server_address[0] == LOOPBACK


def test_status_prints_the_queue_beside_the_running_node(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from seg.infer.serve.status import print_status

    service = start()
    store(service.node.port, mr_series("a"))
    wait_for(lambda: states(service) == ["done"])
    print_status(tmp_path / "state")
    shown = capsys.readouterr().out
    assert "done 1" in shown
    assert "4 objects  from PACS  to PACS" in shown


# TLS


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certificates(tmp_path_factory.mktemp("tls"))


def client(folder: Path, name: str | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=folder / "ca.pem")
    if name is not None:
        context.load_cert_chain(folder / f"{name}.pem", folder / f"{name}.key")
    return context


def test_tls_lets_in_who_shows_a_certificate_and_calls_the_receiver_over_tls(start: Start, tls: Path) -> None:
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=tls / "ca.pem")
    server.load_cert_chain(tls / "peer.pem", tls / "peer.key")
    server.verify_mode = ssl.CERT_REQUIRED
    paths = {"certificate": "node.pem", "key": "node.key", "authority": "ca.pem"}
    with FakePacs(ssl_context=server) as pacs:
        service = start(
            peer=[{"aet": "PACS", "host": LOOPBACK, "port": pacs.port, "tls": True}],
            tls={key: str(tls / value) for key, value in paths.items()},
        )
        port = service.node.port
        assert not associate(port).is_established  # no TLS
        for name in (None, "stranger"):
            assert not associate(port, tls_args=(client(tls, name), LOOPBACK)).is_established
        good = associate(port, tls_args=(client(tls, "peer"), LOOPBACK))
        assert [good.send_c_store(one).Status for one in mr_series("a", 3, size=300)] == [0, 0, 0]
        good.release()
        wait_for(lambda: states(service) == ["done"])
        assert len(pacs.uids) == 1


def test_only_volumes_are_kept(start: Start, pacs: FakePacs, tmp_path: Path) -> None:
    """A study comes whole, with a segmentation of before, a report and a screenshot: its scan alone counts."""
    service = start()
    others = []
    for number, kind in enumerate(OTHERS):
        (other,) = mr_series("other", 1)
        other.SOPClassUID = other.file_meta.MediaStorageSOPClassUID = kind
        other.SOPInstanceUID = other.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{number}"
        others.append(other)
    assert store(service.node.port, [*others, *mr_series("a", 3)]) == [0xB006] * 3 + [0] * 3
    wait_for(lambda: states(service) == ["done"])
    assert [str(one.PatientID) for one in pacs.objects] == ["a"]
    assert list((tmp_path / "state" / "incoming").iterdir()) == []
    deflated = "1.2.840.10008.1.2.1.99"
    assert deflated not in (*node_module.PLAIN, *readable())


def accepted(port: int, *syntaxes: str) -> list[str]:
    """What the node takes of transfer syntaxes that are offered for one MR image together."""
    ae = AE(ae_title="PACS")
    ae.acse_timeout = 10
    ae.add_requested_context(MRImageStorage, list(syntaxes))
    association = ae.associate(LOOPBACK, port, ae_title="SEG")
    found = [str(context.transfer_syntax[0]) for context in association.accepted_contexts]
    association.release()
    return found


@pytest.mark.parametrize("extra", [True, False])
def test_compressed_objects_are_taken_that_can_be_read(
    start: Start, monkeypatch: pytest.MonkeyPatch, extra: bool
) -> None:
    """The toolkit's own decoders count, not pydicom's. What is lossy comes after what is not."""
    pytest.importorskip("imagecodecs", reason="the extra codecs is not installed")
    if not extra:
        monkeypatch.setattr(decoders, "DECODERS", {**decoders.DECODERS, **dict.fromkeys(decoders.LOSSLESS, ())})
        monkeypatch.setattr(decoders, "decoder_for", functools.cache(decoders.decoder_for.__wrapped__))
    port = start().node.port
    for syntax in decoders.DECODERS:
        taken = extra or syntax not in decoders.LOSSLESS
        assert accepted(port, syntax) == [syntax] * taken
    assert accepted(port, decoders.JPEG_2000_LOSSY, decoders.JPEG_2000) == [decoders.JPEG_2000]
    assert accepted(port, decoders.JPEG_2000, ExplicitVRLittleEndian) == [ExplicitVRLittleEndian]
    assert accepted(port, "1.2.840.10008.1.2.1.99") == []


def test_orthanc_sends_a_study_that_holds_its_segmentation(start: Start, tmp_path: Path) -> None:
    """Orthanc sends nothing of a study of which one object is not taken."""
    if reason := orthanc_missing():
        pytest.skip(reason)
    port = free_port()
    with Orthanc(tmp_path / "orthanc", {"SEG": port}) as orthanc:
        service = start(port=port, peer=[{"aet": "ORTHANC", "host": LOOPBACK, "port": orthanc.dicom}])
        study = orthanc.upload(write(mr_series("a", 3), tmp_path / "scan"))
        for taken in (3, 4):  # the scan; the scan and its segmentation
            sent = orthanc.rest("modalities/SEG/store", {"Resources": [study], "Synchronous": True})
            assert (sent["InstancesCount"], sent["FailedInstancesCount"]) == (taken, 0)
            wait_for(lambda: states(service) == ["done"] and orthanc.segmentations())
        time.sleep(1)
        assert len(orthanc.segmentations()["a"]) == 1
        assert states(service) == ["done"]
