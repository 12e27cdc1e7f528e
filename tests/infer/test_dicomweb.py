"""DICOMweb addresses, credentials and transfers: against Orthanc, and against servers that mean ill (S03, S10)."""

import gzip
import http.server
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("dicomweb_client", reason="needs the extra dicomweb")

from nodes import LOOPBACK, FakeSegmenter, Orthanc, certificates, free_port, mr_series, orthanc_missing, write
from pydicom import dcmread, dcmwrite

from seg.infer.dicomweb.address import is_address, parse_address
from seg.infer.dicomweb.session import TOKEN, TOKEN_FILE
from seg.infer.dicomweb.transfer import BOUNDARY, check_storing, download, store
from seg.infer.errors import SegError

Answer = Callable[[http.server.BaseHTTPRequestHandler], tuple[int, dict[str, str], bytes]]


@pytest.fixture(autouse=True)
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No credentials of whoever runs the tests, and no proxy."""
    for name in (TOKEN, TOKEN_FILE, "REQUESTS_CA_BUNDLE", "http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    if reason := orthanc_missing():
        pytest.skip(reason)
    with Orthanc(tmp_path_factory.mktemp("orthanc"), {}) as running:
        yield running


@contextmanager
def web(answer: Answer, context: ssl.SSLContext | None = None) -> Iterator[int]:
    """A server that answers as told; its port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = answer(self)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer((LOOPBACK, 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


def as_json(value: object, status: int = 200) -> tuple[int, dict[str, str], bytes]:
    return status, {"Content-Type": "application/dicom+json"}, json.dumps(value).encode()


def index(count: int | None = 1, series: str = "1.3", modality: str = "MR") -> list[dict[str, Any]]:
    """What QIDO-RS says of one series."""
    row = {"0020000E": {"vr": "UI", "Value": [series]}, "00080060": {"vr": "CS", "Value": [modality]}}
    return [row | ({"00201209": {"vr": "IS", "Value": [count]}} if count is not None else {})]


def parts(*objects: bytes) -> tuple[int, dict[str, str], bytes]:
    body = b"".join(b"\r\n--xx\r\nContent-Type: application/dicom\r\n\r\n" + data for data in objects) + b"\r\n--xx--"
    return 200, {"Content-Type": 'multipart/related; type="application/dicom"; boundary=xx'}, body


def encoded(**tags: Any) -> bytes:
    one = mr_series("w", 1, **{"StudyInstanceUID": "1.2", "SeriesInstanceUID": "1.3", **tags})[0]
    one.preamble = b"MZ" * 64
    buffer = BytesIO()
    dcmwrite(buffer, one, enforce_file_format=True)
    return buffer.getvalue()


def fetch(port: int, folder: Path, path: str = "/studies/1.2/series/1.3", scheme: str = "dicomweb") -> int:
    folder.mkdir(exist_ok=True)
    return download(parse_address(f"{scheme}://{LOOPBACK}:{port}{path}"), str(folder))


def code(error: "pytest.ExceptionInfo[SegError]") -> tuple[str, int]:
    return error.value.code, int(error.value.exit)


# Addresses


@pytest.mark.parametrize(
    ("word", "root", "study", "series"),
    [
        ("dicomweb://pacs", "http://pacs", "", ""),
        ("dicomwebs://pacs:8443/dicom-web/", "https://pacs:8443/dicom-web", "", ""),
        ("https://pacs/a/b/studies/1.2/series/3.4", "https://pacs/a/b", "1.2", "3.4"),
        ("http://[::1]:8042/dicom-web/studies/1.2", "http://[::1]:8042/dicom-web", "1.2", ""),
        ("DICOMWEB://10.0.0.7/studies/1.2/", "http://10.0.0.7", "1.2", ""),
    ],
)
def test_addresses_are_taken_apart(word: str, root: str, study: str, series: str) -> None:
    found = parse_address(word)
    assert is_address(word)
    assert (found.root, found.study, found.series) == (root, study, series)


@pytest.mark.parametrize("word", ["scan.nii.gz", "C:/scan", "ftp://host/x", "dicomweb:/x", "/studies/1.2"])
def test_paths_are_no_addresses(word: str) -> None:
    assert not is_address(word)


@pytest.mark.parametrize(
    "word",
    [
        "dicomweb://",
        "dicomweb://user:SECRET@pacs/x",
        "dicomweb://anna:SECRET/x@pacs/x",
        "dicomweb://anna:SEC/RET@pacs/studies/1.2",
        "https://anna:SECRET@pacs:80a/x",
        "https://anna:SECRET%40pacs/x",
        "https://SECRET:[@pacs/x",
        "dicomweb://[::1/x",
        "dicomweb://pacs?token=SECRET",
        "dicomweb://pacs:x/?token=SECRET",
        "dicomweb://pacs/#SECRET",
        "dicomweb://pacs:port",
        "dicomweb://pacs/studies/../../etc",
        "dicomweb://pacs/studies/1.2/series/$(ls)",
        "dicomweb://pacs/studies/1.2/series/3\r\nHost: evil",
        "dicomweb://pa cs/x",
        "dicomweb://pacs/studies/1.2/instances/1",
    ],
)
def test_addresses_that_are_none_or_hold_secrets_are_refused(word: str) -> None:
    with pytest.raises(SegError) as error:
        parse_address(word)
    assert code(error) == ("E-WEB-ADDRESS", 2)
    shown = f"{error.value} {error.value.as_dict()}"
    assert "SEC" not in shown
    assert "anna" not in shown


# Against Orthanc


def test_series_comes_whole_and_result_goes_back(orthanc: Orthanc, tmp_path: Path) -> None:
    series = mr_series("round", 12)
    orthanc.upload(write(series, tmp_path / "there"))
    base = f"dicomweb://localhost:{orthanc.http}/dicom-web"
    where = f"/dicom-web/studies/{series[0].StudyInstanceUID}/series/{series[0].SeriesInstanceUID}"
    assert fetch(orthanc.http, tmp_path / "here", where) == 12
    came = {one.SOPInstanceUID: one for one in map(dcmread, (tmp_path / "here").iterdir())}
    assert all(came[one.SOPInstanceUID].PixelData == one.PixelData for one in series)
    result = FakeSegmenter().segment(tmp_path / "here", "m")
    check_storing(parse_address(base))
    for _ in range(2):  # twice the same object is one
        store(parse_address(base), result)
    assert orthanc.segmentations()["round"] == [str(result[0].SOPInstanceUID)]


def test_study_gives_its_volumes_alone(orthanc: Orthanc, tmp_path: Path) -> None:
    images = mr_series("study", 3)
    orthanc.upload(write(images, tmp_path / "there"))
    store(
        parse_address(f"dicomweb://localhost:{orthanc.http}/dicom-web"),
        FakeSegmenter().segment(tmp_path / "there", "m"),
    )
    assert fetch(orthanc.http, tmp_path / "here", f"/dicom-web/studies/{images[0].StudyInstanceUID}") == 3


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/dicom-web/studies/1.2.3", "E-WEB-EMPTY"),
        ("/wrong/studies/1.2.3", "E-WEB-STATUS"),
        ("/dicom-web", "E-WEB-ADDRESS"),
    ],
)
def test_what_is_not_there_is_said(orthanc: Orthanc, tmp_path: Path, path: str, expected: str) -> None:
    with pytest.raises(SegError) as error:
        fetch(orthanc.http, tmp_path / "here", path)
    assert error.value.code == expected
    assert list((tmp_path / "here").iterdir()) == []


# Against other servers


def test_nobody_there(tmp_path: Path) -> None:
    port = free_port()
    with pytest.raises(SegError) as error:
        fetch(port, tmp_path / "here")
    assert code(error) == ("E-WEB-CONNECT", 10)
    with pytest.raises(SegError) as error:
        check_storing(parse_address(f"dicomweb://{LOOPBACK}:{port}"))
    assert code(error) == ("E-WEB-CONNECT", 30)


def serving(rows: object, *objects: bytes) -> Answer:
    return lambda request: as_json(rows) if request.path.startswith("/studies/1.2/series?") else parts(*objects)


def test_files_have_numbers_and_empty_preambles(tmp_path: Path) -> None:
    with web(serving(index(), encoded(SOPInstanceUID="1.9"))) as port:
        assert fetch(port, tmp_path / "here") == 1
    (path,) = (tmp_path / "here").iterdir()
    assert path.name == "0.dcm"
    assert path.read_bytes()[:132] == bytes(128) + b"DICM"


@pytest.mark.parametrize(
    ("rows", "objects", "expected"),
    [
        (index(2), [encoded()], ("E-WEB-PARTS", 12)),  # fewer than the index says
        (index(1), [encoded(), encoded()], ("E-WEB-PARTS", 12)),
        (index(1), [encoded(SeriesInstanceUID="6.6")], ("E-WEB-ANSWER", 12)),  # another series
        (index(1), [encoded()[:300]], ("E-WEB-ANSWER", 12)),  # cut before its series is named
        (index(1), [b"<html>log in</html>"], ("E-WEB-ANSWER", 10)),
        ({"what": "no list"}, [], ("E-WEB-EMPTY", 10)),
        (7, [], ("E-WEB-ANSWER", 10)),
        (index(1, "6.6"), [], ("E-WEB-EMPTY", 10)),
    ],
)
def test_answers_that_are_wrong_are_refused(
    tmp_path: Path, rows: object, objects: list[bytes], expected: tuple[str, int]
) -> None:
    with web(serving(rows, *objects)) as port, pytest.raises(SegError) as error:
        fetch(port, tmp_path / "here")
    assert code(error) == expected


def test_uncompressed_is_asked_for_first(tmp_path: Path) -> None:
    asked = []

    def answer(request: http.server.BaseHTTPRequestHandler) -> tuple[int, dict[str, str], bytes]:
        if request.path.startswith("/studies/1.2/series?"):
            return as_json(index())
        asked.append(request.headers["Accept"])
        return parts(encoded()) if "transfer-syntax=*" in asked[-1] else (406, {}, b"")

    with web(answer) as port:
        assert fetch(port, tmp_path / "here") == 1
    assert ["transfer-syntax" in accept for accept in asked] == [False, True]


# S03: bombs


def test_long_and_packed_answers_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from seg.infer.dicomweb import transfer

    monkeypatch.setattr(transfer, "MOST_DATA", 1 << 20)
    monkeypatch.setattr(transfer, "MOST_INDEX", 1 << 20)
    bomb = gzip.compress(bytes(1 << 24))
    answers: list[Answer] = [
        lambda _: (200, {"Content-Type": "application/dicom+json", "Content-Encoding": "gzip"}, bomb),
        lambda _: (200, {"Content-Type": "application/dicom+json", "Content-Length": "4294967296"}, b"[]"),
        lambda _: (200, {"Content-Type": "application/dicom+json"}, b"[" * (1 << 22)),
        lambda request: as_json(index()) if "?" in request.path else parts(bytes(1 << 22)),
    ]
    for answer in answers:
        with web(answer) as port, pytest.raises(SegError) as error:
            fetch(port, tmp_path / "here")
        assert code(error) == ("E-LIMIT-WEB", 13)


# S10: nobody else is asked


def test_redirection_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN, "SECRET")
    reached: list[str] = []
    with (
        web(lambda r: (reached.append(r.path), as_json([]))[1]) as other,  # type: ignore[func-returns-value]
        web(lambda _: (302, {"Location": f"http://{LOOPBACK}:{other}/studies/1.2/series"}, b"")) as port,
        pytest.raises(SegError) as error,
    ):
        fetch(port, tmp_path / "here")
    assert error.value.code == "E-WEB-REDIRECT"
    assert reached == []


def test_bulk_data_addresses_in_objects_are_not_followed(tmp_path: Path) -> None:
    reached: list[str] = []
    with web(lambda r: (reached.append(r.path), as_json([]))[1]) as other:  # type: ignore[func-returns-value]
        data = encoded(RetrieveURL=f"http://{LOOPBACK}:{other}/x")
        rows = index()
        rows[0]["00081190"] = {"vr": "UR", "Value": [f"http://{LOOPBACK}:{other}/y"]}
        with web(serving(rows, data)) as port:
            fetch(port, tmp_path / "here")
    assert reached == []


# Credentials


def asked_with(monkeypatch: pytest.MonkeyPatch, folder: Path, **variables: str) -> str | None:
    """The Authorization that a server sees."""
    seen: list[str | None] = []
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    def answer(request: http.server.BaseHTTPRequestHandler) -> tuple[int, dict[str, str], bytes]:
        seen.append(request.headers["Authorization"])
        return as_json(index()) if "?" in request.path else parts(encoded())

    with web(answer) as port:
        fetch(port, folder)
    assert len(set(seen)) == 1
    return seen[0]


def test_token_comes_from_variable_or_file_and_netrc_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked_with(monkeypatch, tmp_path / "a") is None
    (tmp_path / "netrc").write_text(f"machine {LOOPBACK} login me password pw\n")
    assert asked_with(monkeypatch, tmp_path / "b") == "Basic bWU6cHc="
    (tmp_path / "token").write_text("abc\n")
    assert asked_with(monkeypatch, tmp_path / "c", SEG_DICOMWEB_TOKEN_FILE=str(tmp_path / "token")) == "Bearer abc"
    assert asked_with(monkeypatch, tmp_path / "d", SEG_DICOMWEB_TOKEN="xyz") == "Bearer xyz"


@pytest.mark.parametrize("variables", [{TOKEN: "a\nHost: evil"}, {TOKEN: "täken"}, {TOKEN_FILE: "/nonexistent"}])
def test_token_that_is_none_is_refused_and_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    with pytest.raises(SegError) as error:
        asked_with(monkeypatch, tmp_path / "here", **variables)
    assert error.value.code == "E-WEB-AUTH"
    assert "evil" not in str(error.value)


def test_credentials_do_not_go_over_an_open_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netrc").write_text("machine 192.0.2.1 login me password pw\n")
    with pytest.raises(SegError) as error:
        check_storing(parse_address("dicomweb://192.0.2.1"))
    assert code(error) == ("E-WEB-AUTH", 2)
    monkeypatch.setenv(TOKEN, "abc")
    with pytest.raises(SegError) as error:
        check_storing(parse_address("dicomweb://192.0.2.2"))
    assert code(error) == ("E-WEB-AUTH", 2)


def test_being_refused_is_said(tmp_path: Path) -> None:
    with web(lambda _: (401, {}, b"")) as port:
        with pytest.raises(SegError) as error:
            fetch(port, tmp_path / "here")
        assert code(error) == ("E-WEB-AUTH", 10)
        with pytest.raises(SegError) as error:
            check_storing(parse_address(f"dicomweb://{LOOPBACK}:{port}"))
        assert code(error) == ("E-WEB-AUTH", 30)


def test_certificate_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = certificates(tmp_path / "tls")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "node.pem", folder / "node.key")
    with web(serving(index(), encoded()), context) as port:
        with pytest.raises(SegError) as error:
            fetch(port, tmp_path / "here", scheme="dicomwebs")
        assert error.value.code == "E-WEB-TLS"
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(folder / "ca.pem"))
        assert fetch(port, tmp_path / "here", scheme="dicomwebs") == 1


# Storing


@pytest.mark.parametrize(
    "answer",
    [
        (409, {"Content-Type": "application/dicom+json"}, b"{}"),
        (500, {}, b""),
        (
            202,
            {"Content-Type": "application/dicom+json"},
            json.dumps(
                {
                    "00081198": {
                        "vr": "SQ",
                        "Value": [
                            {
                                "00081155": {"vr": "UI", "Value": ["1.9"]},
                                "00081197": {"vr": "US", "Value": [0xA700]},
                            }
                        ],
                    }
                }
            ).encode(),
        ),
    ],
)
@pytest.mark.parametrize("parameter", ["", "; charset=utf-8"])
def test_object_that_was_not_stored_is_an_error(answer: tuple[int, dict[str, str], bytes], parameter: str) -> None:
    status, headers, body = answer
    answer = status, {name: text + parameter for name, text in headers.items()}, body
    with web(lambda _: answer) as port, pytest.raises(SegError) as error:
        store(parse_address(f"dicomweb://{LOOPBACK}:{port}"), mr_series("a", 1))
    assert error.value.exit == 30
    assert error.value.code in ("E-WEB-STORE", "E-WEB-STATUS")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (as_json({"0008119A": {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [0xA700]}}]}}, 202), "A700"),
        (as_json({}), "does not say"),
        (as_json({"00081190": {"vr": "UR", "Value": ["http://pacs/studies/1.2"]}}), "does not say"),
        (as_json({"00081199": {"vr": "SQ", "Value": [{}]}}), "names another one"),
        ((202, {}, b""), "does not say"),
        ((204, {}, b""), "does not say"),
    ],
)
def test_answer_that_does_not_name_the_object_as_stored_is_an_error(
    answer: tuple[int, dict[str, str], bytes], words: str
) -> None:
    """PS3.18 annex I: each stored object is in ReferencedSOPSequence. An empty 200 is taken, see the tests below."""
    with web(lambda _: answer) as port, pytest.raises(SegError, match=words) as error:
        store(parse_address(f"dicomweb://{LOOPBACK}:{port}"), mr_series("a", 1))
    assert code(error) == ("E-WEB-STORE", 30)


def test_a_page_is_no_report_of_what_was_stored() -> None:
    page = (200, {"Content-Type": "text/html"}, b"<html>welcome</html>")
    with web(lambda _: page) as port, pytest.raises(SegError) as error:
        store(parse_address(f"dicomweb://{LOOPBACK}:{port}"), mr_series("a", 1))
    assert code(error) == ("E-WEB-ANSWER", 30)


def test_no_proxy_sees_what_is_not_encrypted(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def proxy(request: http.server.BaseHTTPRequestHandler) -> tuple[int, dict[str, str], bytes]:
        seen.append(request.path)
        return 200, {}, b""

    monkeypatch.setenv(TOKEN, "secret")
    with web(proxy) as there, web(lambda _: (200, {}, b"")) as port:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://{LOOPBACK}:{there}")
        store(parse_address(f"dicomweb://{LOOPBACK}:{port}"), mr_series("a", 1))
    assert seen == []


@pytest.mark.parametrize(("busy", "stored"), [(2, True), (9, False)])
def test_busy_archive_gets_the_object_again(monkeypatch: pytest.MonkeyPatch, busy: int, stored: bool) -> None:
    from seg.infer.dicomweb import transfer

    monkeypatch.setattr(transfer, "REPEAT_AFTER", (0.01, 0.01, 0.01))
    sizes: list[int] = []

    def answer(request: http.server.BaseHTTPRequestHandler) -> tuple[int, dict[str, str], bytes]:
        sizes.append(len(request.rfile.read(int(request.headers["Content-Length"]))))
        return (503 if len(sizes) <= busy else 200, {}, b"")

    with web(answer) as port:
        if stored:
            store(parse_address(f"dicomweb://{LOOPBACK}:{port}"), mr_series("a", 1))
        else:
            with pytest.raises(SegError, match="status 503"):
                store(parse_address(f"dicomweb://{LOOPBACK}:{port}"), mr_series("a", 1))
    assert len(sizes) == (busy + 1 if stored else 4)
    assert len(set(sizes)) == 1  # whole each time


def test_object_cannot_bring_another_one_in() -> None:
    one = mr_series("a", 1, PatientComments=f"\r\n--{BOUNDARY.decode()}\r\n")[0]
    with pytest.raises(SegError, match="E-WEB-STORE"):
        store(parse_address(f"dicomweb://{LOOPBACK}:{free_port()}"), [one])


def test_boundary_is_the_one_that_the_library_writes() -> None:
    seen: list[str] = []

    def answer(request: http.server.BaseHTTPRequestHandler) -> tuple[int, dict[str, str], bytes]:
        seen.append(request.headers["Content-Type"])
        return 200, {}, b""

    with web(answer) as port:
        store(parse_address(f"dicomweb://{LOOPBACK}:{port}"), mr_series("a", 1))
    assert BOUNDARY.decode() in seen[0]


def test_without_the_extra_the_error_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in ("requests", "dicomweb_client", "dicomweb_client.web"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SegError) as error:
        fetch(1, tmp_path / "here")
    assert error.value.code == "E-EXTRA"
    assert "seg-toolkit[dicomweb]" in error.value.fix
