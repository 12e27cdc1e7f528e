"""Series from a PACS into a folder (QIDO-RS, WADO-RS), and objects into a PACS (STOW-RS), by `dicomweb-client`.

Files are numbered, never named by what was received, and have an empty preamble. What a PACS says is checked: the count
against its own index, the UIDs against those asked for, and of what was stored that it says so.
"""

import os
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import TYPE_CHECKING, Any

from ..errors import Exit, SegError
from .address import Address
from .session import TooLong, connected

if TYPE_CHECKING:
    from dicomweb_client.web import DICOMwebClient
    from pydicom import Dataset
    from requests import HTTPError, Response

MOST_DATA = 1 << 34  # bytes of one series; a scan above --max-voxels is far below
MOST_INDEX = 1 << 26
WHOLE = 1 << 40  # chunk size that keeps an object in one piece: a retry could not send the pieces again
REPEAT_AFTER = (1.0, 4.0, 16.0)  # seconds
BUSY = (429, 503, 504)
FAILURES = ("FailedSOPSequence", "OtherFailuresSequence")  # the latter of what the archive could not even name
VOLUMES = ("CT", "MR", "PT")
BOUNDARY = b"0f3cf5c0-70e0-41ef-baef-c6f9f65ec3e1"  # that dicomweb-client writes between objects


def download(address: Address, folder: str) -> int:
    """Fetch a series, or all series of a study that may be volumes, into an empty folder; returns the count of files.

    Raises
    ------
    SegError : E-WEB-ADDRESS, E-WEB-AUTH, E-WEB-CONNECT, E-WEB-EMPTY, E-WEB-PARTS, E-WEB-ANSWER, E-LIMIT-WEB, E-OUT-*.
    """
    if not address.study:
        fix = "add /studies/UID or /studies/UID/series/UID"
        raise SegError("E-WEB-ADDRESS", Exit.USAGE, address.text, "names no study or series", fix)
    count = 0
    for series, expected in _series(address).items():
        got = 0
        for dataset in _retrieve(address, series):
            _save(dataset, os.path.join(folder, f"{count}.dcm"))
            count, got = count + 1, got + 1
        if expected is not None and got != expected:
            found, fix = f"{got} objects came", "try again when the series is whole in the archive"
            raise SegError("E-WEB-PARTS", Exit.INPUT_REFUSED, address.text, found, fix, f"{expected} of its index")
    return count


def list_series(address: Address) -> list[str]:
    """UIDs of the series of a study that may be volumes. Raises SegError as `download`."""
    return list(_series(address))


def check_storing(address: Address) -> None:
    """Make sure, before anything is computed, that a PACS answers and lets us in.

    Raises
    ------
    SegError : E-WEB-ADDRESS, E-WEB-AUTH, E-WEB-CONNECT.
    """
    if address.study:
        fix = "give the address of the service alone: the object itself names its study"
        raise SegError("E-WEB-ADDRESS", Exit.USAGE, address.text, "names a study or series", fix)
    nothing = f"2.25.{uuid.uuid4().int}"  # the answer is an empty list: no patient's data for a question of access
    with _errors(address, Exit.OUTPUT), connected(address, MOST_INDEX) as client:
        client.search_for_studies(search_filters={"StudyInstanceUID": nothing})


def store(address: Address, datasets: "Sequence[Dataset]") -> None:
    """Store objects in a PACS. Nothing is stored under a UID that is there already but the same object.

    Raises
    ------
    SegError : E-WEB-STORE, E-WEB-AUTH, E-WEB-CONNECT, exit 30.
    """
    for dataset in datasets:
        dataset.preamble = bytes(128)
        if BOUNDARY in _encoded(dataset):
            raise _refused(address, "the object holds the mark that ends an object")
        answer, silent = _send(address, dataset)
        failed = [item for name in FAILURES for item in answer.get(name) or []]
        stored = [item.get("ReferencedSOPInstanceUID") for item in answer.get("ReferencedSOPSequence") or []]
        if failed:
            reasons = ", ".join(sorted({f"{int(item.get('FailureReason') or 0):04X}" for item in failed}))
            raise _refused(address, f"the archive did not store the object ({reasons})")
        if dataset.SOPInstanceUID not in stored and not silent:
            why = "it names another one" if stored else "it does not say that it did"
            raise _refused(address, f"the archive did not store the object ({why})")


def _send(address: Address, dataset: "Dataset") -> "tuple[Dataset, bool]":
    """Send one object. An archive that is busy or away for a moment gets it again: the work is done already.

    Returns
    -------
    What was stored and what was not (PS3.18 annex I), and whether the archive answered with the status 200 alone: some
    do, where the standard has them name each stored object. No other status says that all is stored.
    """
    silent = False

    def watch(response: "Response") -> None:
        nonlocal silent
        silent = response.status_code == 200 and not response.content

    for wait in (*REPEAT_AFTER, None):
        try:
            with _errors(address, Exit.OUTPUT), connected(address, MOST_INDEX, chunk=WHOLE, watch=watch) as client:
                return client.store_instances([dataset]), silent
        except SegError as error:
            busy = any(f"status {code}" in error.found for code in BUSY)
            if wait is None or not (busy or error.code == "E-WEB-CONNECT"):
                raise
            time.sleep(wait)
    raise AssertionError


def _series(address: Address) -> dict[str, int | None]:
    """UIDs of the series to fetch, with the count of their objects where the index knows it."""
    found: dict[str, int | None] = {}
    with _errors(address, Exit.INPUT_MISSING), connected(address, MOST_INDEX) as client:
        for row in _index(client, address):
            uid, modality = str(_value(row, "0020000E")), str(_value(row, "00080060"))
            if uid == address.series or (not address.series and modality in VOLUMES):
                count = _value(row, "00201209")
                found[uid] = int(count) if count is not None else None
    if not found:
        what = "no such series" if address.series else f"no series of the study is {', '.join(VOLUMES)}"
        raise SegError("E-WEB-EMPTY", Exit.INPUT_MISSING, address.text, what, "check the UIDs in the archive")
    return found


def _index(client: "DICOMwebClient", address: Address) -> Iterator[dict[str, Any]]:
    """What the archive knows of the series, page by page, until a page brings nothing new."""
    filters = {"SeriesInstanceUID": address.series} if address.series else {}
    seen: set[str] = set()
    while True:
        count = ["NumberOfSeriesRelatedInstances"]
        page = client.search_for_series(address.study, offset=len(seen), fields=count, search_filters=filters)
        new = {str(_value(row, "0020000E")): row for row in page}
        if set(new) <= seen:
            return
        yield from (row for uid, row in new.items() if uid not in seen)
        seen |= set(new)


def _value(row: "dict[str, Any]", tag: str) -> Any:
    """First value of an element of DICOM JSON (PS3.18 annex F), None if it has none."""
    values = row.get(tag, {}).get("Value") or [None]
    return values[0]


def _retrieve(address: Address, series: str) -> "Iterator[Dataset]":
    """The objects of a series; uncompressed if the archive can do that, else as they are stored."""
    with _errors(address, Exit.INPUT_MISSING), connected(address, MOST_DATA) as client:
        for dataset in _parts(client, address.study, series):
            if dataset.get("SeriesInstanceUID") != series or dataset.get("StudyInstanceUID") != address.study:
                found, fix = (
                    "the archive sent an object that is not of this series",
                    "report it to the archive's keeper",
                )
                raise SegError("E-WEB-ANSWER", Exit.INPUT_REFUSED, address.text, found, fix)
            yield dataset


def _parts(client: "DICOMwebClient", study: str, series: str) -> "Iterator[Dataset]":
    from requests import HTTPError

    try:
        yield from client.iter_series(study, series)
    except HTTPError as error:
        if _status(error) != 406:
            raise
        yield from client.iter_series(study, series, media_types=(("application/dicom", "*"),))


def _save(dataset: "Dataset", path: str) -> None:
    from ..atomic import output_error

    dataset.preamble = bytes(128)
    try:
        with open(path, "xb") as file:
            file.write(_encoded(dataset))
    except OSError as error:
        raise output_error(path, error) from error


def _encoded(dataset: "Dataset") -> bytes:
    from pydicom import dcmwrite

    with BytesIO() as buffer:
        dcmwrite(buffer, dataset, enforce_file_format=True)
        return buffer.getvalue()


@contextmanager
def _errors(address: Address, status: Exit) -> Iterator[None]:
    """What goes wrong with a PACS as one line; no text of its answer is in it."""
    from ..errors import missing_extra

    try:
        import requests
    except ImportError as error:
        raise missing_extra("dicomweb-client", "dicomweb") from error
    try:
        yield
    except (SegError, MemoryError):
        raise
    except TooLong as error:
        fix = "fetch less, or ask the archive's keeper"
        raise SegError("E-LIMIT-WEB", Exit.LIMIT, address.text, "the answer is too long, or packed", fix) from error
    except requests.HTTPError as error:
        raise _status_error(address, _status(error), status) from error
    except requests.exceptions.SSLError as error:
        found = "its certificate is not one that this machine trusts, or there is no TLS"
        fix = "name the authority's file in REQUESTS_CA_BUNDLE, or ask the archive's keeper"
        raise SegError("E-WEB-TLS", status, address.text, found, fix) from error
    except requests.TooManyRedirects as error:
        found, fix = "it sends us elsewhere, and we do not follow", "give the address that it really has"
        raise SegError("E-WEB-REDIRECT", status, address.text, found, fix) from error
    except (requests.RequestException, OSError) as error:
        found, fix = f"cannot be reached ({type(error).__name__})", "check host, port and the archive"
        raise SegError("E-WEB-CONNECT", status, address.text, found, fix) from error
    except Exception as error:  # of a parser: the text may quote the answer
        found = f"the answer makes no sense ({type(error).__name__})"
        fix = "check that the address is that of a DICOMweb service"
        raise SegError("E-WEB-ANSWER", status, address.text, found, fix) from error


def _status(error: "HTTPError") -> int:
    return error.response.status_code if error.response is not None else 0


def _status_error(address: Address, code: int, status: Exit) -> SegError:
    if code in (401, 403):
        fix = "set SEG_DICOMWEB_TOKEN or SEG_DICOMWEB_TOKEN_FILE, or add the host to ~/.netrc"
        return SegError("E-WEB-AUTH", status, address.text, f"does not let us in (status {code})", fix)
    fix = "check the prefix (dicom-web for Orthanc) and the UIDs" if code == 404 else "look into the archive's log"
    return SegError("E-WEB-STATUS", status, address.text, f"answers with status {code}", fix)


def _refused(address: Address, found: str) -> SegError:
    return SegError("E-WEB-STORE", Exit.OUTPUT, address.text, found, "look into the archive's log")
