"""What the tests of the network parts share: small series, a segmenter without a network, a node, Orthanc."""

import hashlib
import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pynetdicom._config as settings
import pytest
from pydicom import Dataset, dcmread, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    BasicTextSRStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
    generate_uid,
)
from pynetdicom import AE, evt

from seg.infer.errors import Exit, SegError
from seg.infer.serve.config import Config, parse_config

LOOPBACK = "127.0.0.1"


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def mr_series(name: str, slices: int = 4, *, size: int = 16, **tags: Any) -> list[Dataset]:
    """An axial MR series, 1 x 1 x 2 mm, with one bright block; its UIDs depend on `name` alone."""
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]))
    series, study, frame = (generate_uid(entropy_srcs=[name, level]) for level in ("series", "study", "frame"))
    made = []
    for number in range(slices):
        pixels = rng.integers(90, 110, (size, size)).astype(np.uint16)
        if slices // 4 <= number < max(1, 3 * slices // 4):
            pixels[size // 4 : size // 2, size // 4 : 3 * size // 4] += 200
        one = Dataset()
        one.file_meta = FileMetaDataset()
        one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        one.SOPClassUID = one.file_meta.MediaStorageSOPClassUID = MRImageStorage
        one.SOPInstanceUID = generate_uid(entropy_srcs=[name, str(number)])
        one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID
        one.StudyInstanceUID, one.SeriesInstanceUID, one.FrameOfReferenceUID = study, series, frame
        one.PatientName, one.PatientID, one.PatientBirthDate, one.PatientSex = f"Test^{name}", name, "", ""
        one.StudyDate, one.StudyTime, one.AccessionNumber, one.StudyID = "20260101", "120000", "", "1"
        one.ReferringPhysicianName, one.Manufacturer, one.Modality = "", "Test", "MR"
        one.ImageType, one.SeriesNumber, one.InstanceNumber = ["ORIGINAL", "PRIMARY", "OTHER"], 1, number + 1
        one.PositionReferenceIndicator = ""
        one.ImagePositionPatient, one.ImageOrientationPatient = [0, 0, 2 * number], [1, 0, 0, 0, 1, 0]
        one.PixelSpacing, one.SliceThickness = [1, 1], 2
        one.Rows, one.Columns, one.SamplesPerPixel, one.PhotometricInterpretation = size, size, 1, "MONOCHROME2"
        one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 16, 15, 0
        one.PixelData = pixels.tobytes()
        for keyword, value in tags.items():
            setattr(one, keyword, value)
        made.append(one)
    return made


def write(datasets: Sequence[Dataset], folder: Path) -> list[Path]:
    """As files 0.dcm, 1.dcm, ... of a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number}.dcm" for number in range(len(datasets))]
    for path, dataset in zip(paths, datasets, strict=True):
        dcmwrite(path, dataset, enforce_file_format=True)
    return paths


class FakeSegmenter:
    """Makes an object of the class Segmentation that says which inputs it saw; refuses a description "poison"."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.seconds = 0.0

    def identity(self, model: str) -> str:
        return f"fake {model}"

    def segment(self, folder: Path, model: str) -> list[Dataset]:
        inputs = [dcmread(path) for path in sorted(folder.iterdir())]
        self.seen.append(len(inputs))
        time.sleep(self.seconds)
        text = inputs[0].get("SeriesDescription", "")
        if text == "poison":
            raise SegError("E-DCM-GAP", Exit.INPUT_REFUSED, str(folder), "a slice is missing", "send the whole series")
        if text == "large":
            raise RuntimeError("Failed to allocate memory for requested buffer of size 8388608")
        if text == "crash":
            raise RuntimeError(f"of {inputs[0].PatientName}")
        made = Dataset()
        made.file_meta = FileMetaDataset()
        made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = SegmentationStorage
        made.SOPInstanceUID = generate_uid()
        made.StudyInstanceUID, made.SeriesInstanceUID = inputs[0].StudyInstanceUID, generate_uid()
        made.PatientID, made.PatientName, made.Modality = inputs[0].PatientID, inputs[0].PatientName, "SEG"
        made.Rows = made.Columns = 8
        made.InstanceNumber, made.NumberOfFrames = 1, len(inputs)
        made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
        made.BitsAllocated = made.BitsStored = 8
        made.HighBit, made.PixelRepresentation, made.PixelData = 7, 0, bytes(64 * len(inputs))
        return [made]


def node_config(state: Path, peers: Sequence[dict[str, Any]], **changes: Any) -> Config:
    """A node for tests: free ports, short waits, one model for everything."""
    waits = {"released": 0.2, "quiet": 2.0, "cut": 2.0, "network": 5.0, "retry": 0.1, **changes.pop("waits", {})}
    content: dict[str, Any] = {"state": str(state), "port": 0, "http_port": 0, "peer": list(peers)}
    content |= {"rule": [{"model": "fake"}], "waits": waits}
    return parse_config({**content, **changes})


OTHERS = (SegmentationStorage, BasicTextSRStorage, SecondaryCaptureImageStorage)


def store(port: int, datasets: Sequence[Dataset], *, aet: str = "PACS", called: str = "SEG") -> list[int]:
    """C-STORE over one association, released in order; the statuses."""
    association = associate(port, aet=aet, called=called)
    assert association.is_established
    return store_over(association, datasets)


def store_once_there_is_room(port: int, datasets: Sequence[Dataset]) -> list[int]:
    """As `store`, by a sender that asks again while the node has no room for one more connection."""

    def established() -> Any:
        association = associate(port)
        return association if association.is_established else None

    return store_over(wait_for(established, 30), datasets)


def store_over(association: Any, datasets: Sequence[Dataset]) -> list[int]:
    """C-STORE over an association, which is then released; the statuses."""
    statuses = [int(association.send_c_store(dataset).Status) for dataset in datasets]
    association.release()
    return statuses


def associate(port: int, *, aet: str = "PACS", called: str = "SEG", **settings: Any) -> Any:
    """An association for MR images, what else a study holds, and C-ECHO."""
    ae = AE(ae_title=aet)
    ae.acse_timeout = ae.dimse_timeout = 10
    for kind in (MRImageStorage, *OTHERS):
        ae.add_requested_context(kind, ExplicitVRLittleEndian)
    ae.add_requested_context("1.2.840.10008.1.1")
    return ae.associate(LOOPBACK, port, ae_title=called, **settings)


def raw_store(port: int, folder: Path, dataset: Dataset) -> int:
    """C-STORE of what the library's own checks would not let through: the request's UID is always 1.2.3."""
    dataset.file_meta.MediaStorageSOPInstanceUID, dataset.preamble = "1.2.3", bytes(128)
    path = folder / "raw.dcm"
    dcmwrite(path, dataset, enforce_file_format=False)
    before, settings.STORE_SEND_CHUNKED_DATASET = settings.STORE_SEND_CHUNKED_DATASET, True
    try:
        association = associate(port)
        status = int(association.send_c_store(path).Status)
        association.release()
    finally:
        settings.STORE_SEND_CHUNKED_DATASET = before
        path.unlink()
    return status


def wait_for(condition: Callable[[], Any], seconds: float = 90.0) -> Any:
    """The first true value of `condition`; fails after `seconds`."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError("waited in vain")


def get(url: str) -> Any:
    """JSON of an address on this machine."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)


class Orthanc:
    """A real PACS on loopback, in a folder of its own."""

    def __init__(self, folder: Path, peers: dict[str, int], **settings: Any) -> None:
        """Write its configuration; `peers` are AE titles and ports of nodes it may send to."""
        self.http, self.dicom, self._folder = free_port(), free_port(), folder
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "Name": "test",
            "StorageDirectory": str(folder / "storage"),
            "HttpPort": self.http,
            "DicomPort": self.dicom,
            "DicomAet": "ORTHANC",
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "HttpBindAddresses": [LOOPBACK],
            "DicomAlwaysAllowEcho": True,
            "DicomAlwaysAllowStore": True,
            "DicomModalities": {aet: [aet, LOOPBACK, port] for aet, port in peers.items()},
            "StableAge": 1,
            "Plugins": ["/usr/share/orthanc/plugins/libOrthancDicomWeb.so"],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
            **settings,
        }
        (folder / "orthanc.json").write_text(json.dumps(config))

    def __enter__(self) -> "Orthanc":
        with open(self._folder / "log", "ab") as log:
            self._process = subprocess.Popen(["Orthanc", str(self._folder / "orthanc.json")], stdout=log, stderr=log)
        wait_for(self._answers, 30)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(20)

    def _answers(self) -> bool:
        assert self._process.poll() is None, "Orthanc did not start"
        try:
            return bool(self.rest("system"))
        except OSError:
            return False

    def rest(self, path: str, body: Any = None) -> Any:
        """GET, or POST of bytes or JSON."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://{LOOPBACK}:{self.http}/{path}", data)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def upload(self, paths: Sequence[Path]) -> str:
        """Put files in; the identifier of their study."""
        return str([self.rest("instances", path.read_bytes())["ParentStudy"] for path in paths][-1])

    def segmentations(self) -> dict[str, list[str]]:
        """PatientID -> SOP Instance UIDs of its objects of modality SEG."""
        found: dict[str, list[str]] = {}
        query = {"Level": "Series", "Query": {"Modality": "SEG"}, "Expand": True}
        for series in self.rest("tools/find", query):
            patient = self.rest(f"series/{series['ID']}/patient")["MainDicomTags"]["PatientID"]
            for instance in series["Instances"]:
                uid = self.rest(f"instances/{instance}")["MainDicomTags"]["SOPInstanceUID"]
                found.setdefault(patient, []).append(uid)
        return found


def orthanc_missing() -> str:
    """Why Orthanc cannot be used here; "" if it can."""
    plugin = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
    if shutil.which("Orthanc") is None or not plugin.exists():
        return "needs the Debian packages orthanc and orthanc-dicomweb (.ci/run installs them)"
    return ""


class FakePacs:
    """Takes segmentations on loopback, after failing as often as it is told to."""

    def __init__(self, aet: str = "PACS", *, failures: int = 0, ssl_context: Any = None) -> None:
        self.port, self.objects, self.failures = free_port(), [], failures
        self.aet, self._ssl = aet, ssl_context

    def __enter__(self) -> "FakePacs":
        ae = AE(ae_title=self.aet)
        ae.add_supported_context(SegmentationStorage)
        handlers = [(evt.EVT_C_STORE, self._store)]
        address = (LOOPBACK, self.port)
        self._server = ae.start_server(address, block=False, evt_handlers=handlers, ssl_context=self._ssl)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()

    def _store(self, event: Any) -> int:
        if self.failures:
            self.failures -= 1
            return 0xA700
        path = event.request._dataset_path  # the node in this process makes pynetdicom keep objects in files
        self.objects.append(dcmread(path) if path else event.dataset)
        return 0

    @property
    def uids(self) -> list[str]:
        """SOP Instance UIDs, in the order of arrival."""
        return [str(one.SOPInstanceUID) for one in self.objects]


def certificates(folder: Path) -> Path:
    """An authority (ca), a node and a peer signed by it, and a stranger with an authority of its own, as PEM files."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the command openssl to make certificates")
    folder.mkdir(exist_ok=True)

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], check=True, capture_output=True, cwd=folder)

    new = ("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2")
    extension = ("-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost")
    for authority in ("ca", "strange-ca"):
        openssl(*new, "-keyout", f"{authority}.key", "-out", f"{authority}.pem", "-subj", f"/CN={authority}")
    for name, authority in (("node", "ca"), ("peer", "ca"), ("stranger", "strange-ca")):
        signed = ("-CA", f"{authority}.pem", "-CAkey", f"{authority}.key")
        basic = ("-addext", "basicConstraints=critical,CA:FALSE")
        openssl(
            *new, *extension, *basic, *signed, "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}"
        )
    return folder
