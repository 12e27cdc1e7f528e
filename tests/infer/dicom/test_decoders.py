"""Compressed DICOM: known answers for every decoder, series in every transfer syntax, and streams that are refused."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_files import enhanced_dataset, save, setting, uid, write_series
from known import boxes
from pydicom import Dataset, dcmread
from pydicom.encaps import encapsulate

from seg.infer.dicom import decoders
from seg.infer.dicom.decoders import (
    BASELINE,
    DECODERS,
    JPEG_2000,
    JPEG_2000_LOSSY,
    JPEG_LS,
    JPEG_LS_LOSSY,
    LOSSLESS,
    RLE,
    Layout,
    codec_table,
    decode,
    decoder_for,
    is_right,
)
from seg.infer.dicom.known_answers import COLUMNS, KNOWN_ANSWERS, ROWS, KnownAnswer
from seg.infer.dicom.read import read
from seg.infer.errors import SegError

BASE = (RLE, BASELINE, JPEG_LS, JPEG_LS_LOSSY, JPEG_2000, JPEG_2000_LOSSY)  # readable without the extra
CASES = [(syntax, known) for syntax, answers in KNOWN_ANSWERS.items() for known in answers]


@pytest.fixture(autouse=True)
def _forget() -> None:
    decoder_for.cache_clear()


def only(*packages: str) -> Callable[..., Any]:
    """import_module as it is where of the decoders' packages only these are installed."""
    real = importlib.import_module

    def load(name: str, *rest: Any) -> Any:
        if name in {package for rows in DECODERS.values() for package, _ in rows} - set(packages):
            raise ImportError(name)
        return real(name, *rest)

    return load


@pytest.mark.parametrize(("syntax", "known"), CASES)
def test_known_answers(syntax: str, known: KnownAnswer) -> None:
    """D13: every transfer syntax, 8, 12 and 16 bits, signed and not, by the decoder that would be used."""
    if syntax not in BASE:
        pytest.importorskip("imagecodecs", reason="the extra codecs is not installed")
    layout = Layout(ROWS, COLUMNS, 8 if known.bits <= 8 else 16, known.bits, known.signed)
    found = decode(known.stream, syntax, layout, "known")
    assert found.dtype == layout.dtype
    assert int(np.abs(found.astype(int) - known.pixels).max()) <= known.tolerance


def test_every_syntax_has_answers_for_every_word_and_sign() -> None:
    lossless = {RLE, *LOSSLESS, JPEG_LS, JPEG_2000}
    for syntax in DECODERS:
        kinds = {(known.bits, known.signed) for known in KNOWN_ANSWERS[syntax]}
        assert kinds >= (
            {(8, False), (12, False), (12, True), (16, False), (16, True)} if syntax in lossless else set()
        )
        assert kinds
    for syntax in LOSSLESS:
        assert {p.tobytes() for p in (known.pixels for known in KNOWN_ANSWERS[syntax])}


def test_a_decoder_that_clamps_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """D13: pylibjpeg-libjpeg gives wrong pixels for differences that wrap round (its issue 90)."""
    pytest.importorskip("libjpeg", reason="pylibjpeg-libjpeg is not installed")
    monkeypatch.setattr(importlib, "import_module", only("pylibjpeg.utils"))
    with pytest.raises(SegError) as caught:
        decoder_for(LOSSLESS[1], 8, False)
    assert (caught.value.code, caught.value.exit) == ("E-DCM-DECODER", 21)
    assert "pylibjpeg decode" in caught.value.found


def wrong(change: Callable[[np.ndarray], np.ndarray]) -> Any:
    """A decoder whose answers are changed."""
    return lambda stream, syntax, layout: change(RIGHT(stream, syntax, layout).copy())


RIGHT = DECODERS[JPEG_LS][0][1]


def one_off(values: np.ndarray) -> np.ndarray:
    values[3, 3] += 1
    return values


WRONG = {
    "zeros": wrong(np.zeros_like),
    "one pixel": wrong(one_off),
    "saturated": wrong(lambda v: np.minimum(v, np.iinfo(v.dtype).max // 2)),
    "turned": wrong(lambda v: np.ascontiguousarray(v.T)),
    "unsigned": wrong(np.abs),
    "raising": lambda *_: 1 / 0,
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_decoders_are_found_out(kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """D13: before the first scan, with exit status 21; a right one behind it is used."""
    pytest.importorskip("jpeg_ls")
    signed = kind == "unsigned"
    known = next(k for k in KNOWN_ANSWERS[JPEG_LS] if k.bits == 16 and k.signed == signed)
    assert not is_right(WRONG[kind], JPEG_LS, known)
    monkeypatch.setitem(DECODERS, JPEG_LS, (("numpy", WRONG[kind]),))
    write_series(tmp_path, boxes() if signed else boxes().astype(np.uint16), edit=compress(JPEG_LS), syntax=JPEG_LS)
    with pytest.raises(SegError) as caught:
        read(str(tmp_path))
    assert (caught.value.code, caught.value.exit) == ("E-DCM-DECODER", 21)
    assert caught.value.path == str(tmp_path / "000.dcm")
    decoder_for.cache_clear()
    monkeypatch.setitem(DECODERS, JPEG_LS, (("numpy", WRONG[kind]), ("jpeg_ls", wrong(lambda v: v))))
    np.testing.assert_array_equal(read(str(tmp_path)).volume.voxels[0], boxes())


@pytest.mark.parametrize("syntax", DECODERS)
def test_no_decoder_is_installed(syntax: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """D12: the line names the transfer syntax and what to install."""
    from pydicom.uid import UID

    monkeypatch.setattr(importlib, "import_module", only())
    with pytest.raises(SegError) as caught:
        decoder_for(syntax, 16, False)
    assert (caught.value.code, caught.value.exit) == ("E-DCM-CODEC", 12)
    assert UID(syntax).name in caught.value.found
    assert caught.value.fix == 'pip install "seg-toolkit[codecs]"'


def test_the_base_installation_reads_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib, "import_module", only("pydicom", "PIL", "jpeg_ls"))
    for syntax in BASE:
        for known in KNOWN_ANSWERS[syntax]:
            assert decoder_for(syntax, known.bits, known.signed)
    for syntax in LOSSLESS:
        with pytest.raises(SegError, match="no decoder is installed"):
            decoder_for(syntax, 16, True)
    table = codec_table().splitlines()
    assert len(table) == len(DECODERS)
    assert sum("not readable" in line for line in table) == 3


def compress(syntax: str) -> Callable[[int, Dataset], None]:
    """An edit that compresses a slice of 16-bit words."""

    def edit(_: int, dataset: Dataset) -> None:
        plane = np.frombuffer(dataset.PixelData, f"{'i' if dataset.PixelRepresentation else 'u'}2")
        stream = stream_of(plane.reshape(dataset.Rows, dataset.Columns), syntax)
        dataset.PixelData = encapsulate([stream])
        dataset["PixelData"].is_undefined_length = True

    return edit


def stream_of(plane: np.ndarray, syntax: str) -> bytes:
    """A lossless code stream of one plane of 16-bit words."""
    if syntax in (RLE, JPEG_LS, JPEG_LS_LOSSY):
        from pydicom.pixels.encoders.base import get_encoder

        rows, columns = plane.shape
        plugin, syntax = ("pydicom", RLE) if syntax == RLE else ("pyjpegls", JPEG_LS)
        options: dict[str, Any] = dict(
            rows=rows,
            columns=columns,
            bits_allocated=16,
            bits_stored=16,
            samples_per_pixel=1,
            number_of_frames=1,
            pixel_representation=int(plane.dtype.kind == "i"),
            photometric_interpretation="MONOCHROME2",
        )
        return bytes(get_encoder(syntax).encode(plane, encoding_plugin=plugin, **options))
    imagecodecs = pytest.importorskip("imagecodecs", reason="needed to compress")
    if syntax in LOSSLESS:
        predictor = 1 if syntax == LOSSLESS[1] else 4
        return bytes(imagecodecs.jpeg8_encode(plane.view(np.uint16), lossless=True, predictor=predictor))
    return bytes(imagecodecs.jpeg2k_encode(plane, codecformat="J2K", reversible=True, resolutions=2, mct=False))


EXACT = (RLE, *LOSSLESS, JPEG_LS, JPEG_LS_LOSSY, JPEG_2000, JPEG_2000_LOSSY)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("syntax", EXACT)
def test_a_compressed_series_is_the_same_volume(tmp_path: Path, syntax: str, signed: bool) -> None:
    voxels = (boxes() - np.int16(1000)) if signed else (boxes() * 10000).astype(np.uint16)
    write_series(tmp_path, voxels, edit=compress(syntax), syntax=syntax)
    scan = read(str(tmp_path))
    np.testing.assert_array_equal(scan.volume.voxels[0], voxels)
    assert scan.volume.voxels.dtype == voxels.dtype
    assert ("the scan was compressed with loss" in scan.header.notes) == (syntax in (JPEG_LS_LOSSY, JPEG_2000_LOSSY))


@pytest.mark.parametrize("syntax", [RLE, JPEG_LS, JPEG_2000])
def test_compressed_frames_of_a_multiframe_image(tmp_path: Path, syntax: str) -> None:
    order = [3, 1, 2, 0, 8, 7, 6, 5, 4]
    dataset = enhanced_dataset(boxes(), order=order)
    streams = [stream_of(np.ascontiguousarray(boxes()[..., k].T), syntax) for k in order]
    dataset.PixelData = encapsulate(streams)
    dataset["PixelData"].is_undefined_length = True
    save(tmp_path / "m.dcm", dataset, syntax)
    np.testing.assert_array_equal(read(str(tmp_path / "m.dcm")).volume.voxels[0], boxes())
    dataset.PixelData = encapsulate(streams[:-1])
    dataset["PixelData"].is_undefined_length = True
    save(tmp_path / "m.dcm", dataset, syntax)
    with pytest.raises(SegError) as caught:
        read(str(tmp_path / "m.dcm"))
    assert caught.value.exit == 11


def swapped_extent(stream: bytes) -> bytes:
    at = stream.index(b"\xff\xf7") + 5
    return stream[:at] + stream[at + 2 : at + 4] + stream[at : at + 2] + stream[at + 4 :]


def enormous(stream: bytes) -> bytes:
    at = stream.index(b"\xff\xf7") + 5
    return stream[:at] + b"\xff\xff\xff\xff" + stream[at + 4 :]


BROKEN = {
    "cut": (JPEG_LS, lambda s: s[: len(s) // 2], "E-DCM-TRUNC", "are cut"),
    "cut 2000": (JPEG_2000, lambda s: s[:-6], "E-DCM-TRUNC", "are cut"),
    "swapped": (JPEG_LS, swapped_extent, "E-DCM-DECODE", "of 15 x 20 pixels"),
    "enormous": (JPEG_LS, enormous, "E-DCM-DECODE", "of 65535 x 65535 pixels"),
    "no frame header": (JPEG_LS, lambda s: s[:2] + s[-2:], "E-DCM-DECODE", "of 0 x 0 pixels"),
    "colour": (JPEG_2000, lambda s: s[:40] + b"\0\3" + s[42:], "E-DCM-DECODE", "with 3 samples"),
    "scan header": (JPEG_LS, lambda s: s.replace(b"\xff\xda", b"\xff\xd7", 1), "E-DCM-DECODE", "cannot be decoded"),
    "RLE": (RLE, lambda s: b"\x63" + s[1:], "E-DCM-DECODE", "cannot be decoded"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_streams(tmp_path: Path, kind: str) -> None:
    """D14, D16 for compressed pixels: damage is told, and never becomes zeros."""
    syntax, damage, code, says = BROKEN[kind]
    good = compress(syntax)

    def edit(k: int, dataset: Dataset) -> None:
        if k != 5:
            good(k, dataset)
            return
        plane = np.frombuffer(dataset.PixelData, "i2").reshape(dataset.Rows, dataset.Columns)
        stream = damage(stream_of(plane, syntax))
        dataset.PixelData = encapsulate([stream + bytes(len(stream) % 2)])
        dataset["PixelData"].is_undefined_length = True

    write_series(tmp_path, boxes(), edit=edit, syntax=syntax)
    with pytest.raises(SegError) as caught:
        read(str(tmp_path))
    assert (caught.value.code, caught.value.exit) == (code, 11), str(caught.value)
    assert caught.value.path == str(tmp_path / "005.dcm")
    assert says in caught.value.found


def test_many_bytes_that_decode_to_one_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """D13: as a cut JPEG 2000 stream once did."""
    monkeypatch.setattr(decoders, "decoder_for", lambda *_: lambda stream, syntax, layout: np.zeros(
        (layout.rows, layout.columns), layout.dtype))  # fmt: skip
    voxels = np.random.default_rng(0).integers(0, 4000, (60, 50, 3)).astype(np.int16)
    write_series(tmp_path, voxels, edit=compress(JPEG_LS), syntax=JPEG_LS)
    with pytest.raises(SegError, match="to one single value") as caught:
        read(str(tmp_path))
    assert caught.value.exit == 11


def test_constant_slices_are_fine(tmp_path: Path) -> None:
    write_series(tmp_path, np.zeros_like(boxes()), edit=compress(JPEG_LS), syntax=JPEG_LS)
    assert not read(str(tmp_path)).volume.voxels.any()


def test_files_of_pydicom() -> None:
    """Real files of several makers, in the syntaxes that pydicom ships, against its own decoding of the plain twin."""
    from pydicom.data import get_testdata_file

    plain = dcmread(str(get_testdata_file("MR_small.dcm"))).pixel_array
    for kind in ("RLE", "jp2klossless", "jpeg_ls_lossless", "bigendian", "implicit", "padded"):
        name = f"MR_small_{kind}.dcm"
        path = get_testdata_file(name, download=False)
        assert path is not None
        np.testing.assert_array_equal(read(str(path)).volume.voxels[0, :, :, 0].T, plain, err_msg=name)


def test_settings_of_other_bits(tmp_path: Path) -> None:
    """12 bits in 16, signed, as JPEG Lossless has them: the sign is in the twelfth bit."""
    pytest.importorskip("imagecodecs", reason="the extra codecs is not installed")
    voxels = boxes() * np.int16(400) - np.int16(1024)
    words = (voxels & 0xFFF).astype(np.int16)
    narrow = setting(BitsStored=12, HighBit=11, SOPInstanceUID=uid("x"))

    def edit(k: int, dataset: Dataset) -> None:
        narrow(k, dataset)
        dataset.SOPInstanceUID = uid("x", k)
        compress(LOSSLESS[1])(k, dataset)

    write_series(tmp_path, words, edit=edit, syntax=LOSSLESS[1])
    np.testing.assert_array_equal(read(str(tmp_path)).volume.voxels[0], voxels)
