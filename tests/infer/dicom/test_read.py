"""Series that are read although they are odd: geometry and values are those they were made with."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dicom_files import (
    AXIAL,
    CT,
    ENHANCED_CT,
    enhanced_dataset,
    on,
    pixels,
    ras_affine,
    save,
    setting,
    uid,
    write_series,
)
from known import boxes
from pydicom import Dataset, dcmread
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian

from seg.infer.dicom.read import DicomOptions, inspect, read
from seg.infer.errors import SegError
from seg.infer.scan import Scan

OBLIQUE = (0.9848077530, 0.1736481777, 0.0, -0.1710100717, 0.9698463104, 0.1736481777)


def values(scan: Scan) -> np.ndarray:
    """Intensities, (columns, rows, slices)."""
    return scan.volume.intensities()[0]


def assert_boxes(scan: Scan, affine: np.ndarray | None = None) -> None:
    np.testing.assert_array_equal(values(scan), boxes())
    np.testing.assert_allclose(scan.volume.affine, ras_affine() if affine is None else affine, atol=1e-6)
    assert scan.series is not None
    assert scan.series.shape == boxes().shape
    np.testing.assert_array_equal(scan.series.affine, scan.volume.affine)


def random_orientation(rng: np.random.Generator) -> tuple[float, ...]:
    """Any rotation, also such that are exactly along the axes."""
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0] if rng.random() < 0.7 else np.eye(3)[rng.permutation(3)]
    turn = turn * rng.choice([-1.0, 1.0], size=3)
    return (*turn[0], *turn[1])


def test_every_orientation_order_and_form(tmp_path: Path) -> None:
    """120 series: world coordinates of every voxel are those it was made for. Values tell where a voxel is."""
    rng = np.random.default_rng(0)
    x, y, z = np.meshgrid(np.arange(4), np.arange(3), np.arange(5), indexing="ij")
    tags = (1 + x + 4 * y + 12 * z).astype(np.int16)
    for case in range(60):
        orientation = random_orientation(rng)
        names = rng.permutation(5)
        folder = tmp_path / str(case)
        write_series(folder / "c", tags, orientation=orientation, name=lambda k, n=names: f"{n[k]}.dcm", edit=on(
            None, InstanceNumber=int(rng.integers(100))))  # fmt: skip
        save(folder / "e" / "m.dcm", enhanced_dataset(tags, orientation=orientation, order=rng.permutation(5).tolist()))
        for form in ("c", "e"):
            scan = read(str(folder / form))
            np.testing.assert_array_equal(values(scan), tags)
            np.testing.assert_allclose(scan.volume.affine, ras_affine(orientation), atol=2e-5)


def test_the_order_of_files_and_numbers_does_not_matter(tmp_path: Path) -> None:
    """D07: shuffled, reversed, renumbered."""
    rng = random.Random(1)
    for case in range(6):
        numbers = list(range(9))
        if case:
            rng.shuffle(numbers)
        if case == 1:
            numbers = list(range(8, -1, -1))
        write_series(tmp_path / str(case), boxes(), name=lambda k, n=numbers: f"{n[k]}", edit=lambda k, d, n=numbers: (
            setattr(d, "InstanceNumber", n[k])))  # fmt: skip
        assert_boxes(read(str(tmp_path / str(case))))


def test_classic_and_enhanced_are_one_volume(tmp_path: Path) -> None:
    """D08, with a scaling of its own for each slice (D21)."""
    scaling = [(0.4, -3.0) if k % 2 else (1.0, -1024.0) for k in range(9)]
    write_series(tmp_path / "c", boxes(), edit=lambda k, d: on(
        None, RescaleSlope=scaling[k][0], RescaleIntercept=scaling[k][1])(k, d))  # fmt: skip
    order = [4, 2, 0, 1, 8, 7, 3, 6, 5]
    save(tmp_path / "e.dcm", enhanced_dataset(boxes(), order=order, scaling=scaling))
    classic, enhanced = read(str(tmp_path / "c")), read(str(tmp_path / "e.dcm"))
    expected = np.stack(
        [boxes()[..., k].astype(np.float32) * np.float32(s) + np.float32(i) for k, (s, i) in enumerate(scaling)], axis=2
    )
    for scan in (classic, enhanced):
        np.testing.assert_array_equal(values(scan), expected)
        np.testing.assert_allclose(scan.volume.affine, ras_affine(), atol=1e-6)
        assert scan.volume.voxels.dtype == np.float32
    assert enhanced.series is not None
    assert enhanced.series.frames == tuple(order.index(k) + 1 for k in range(9))
    assert len(enhanced.series.datasets) == len(enhanced.series.files) == 1
    assert classic.series is not None
    assert [Path(file).name for file in classic.series.files] == [f"{k:03}.dcm" for k in range(9)]


@pytest.mark.parametrize("lost", [(0,), (8,), (0, 1, 8)])
def test_slices_missing_at_the_ends_leave_a_shorter_volume(tmp_path: Path, lost: tuple[int, ...]) -> None:
    """D03: what is there is right."""
    write_series(tmp_path, boxes(), skip=lost)
    kept = [k for k in range(9) if k not in lost]
    scan = read(str(tmp_path))
    np.testing.assert_array_equal(values(scan), boxes()[..., kept])
    affine = ras_affine()
    affine[:3, 3] = affine[:3, :3] @ [0, 0, kept[0]] + affine[:3, 3]
    np.testing.assert_allclose(scan.volume.affine, affine, atol=1e-6)


def test_copies_of_a_slice_count_once(tmp_path: Path) -> None:
    """D04."""
    paths = write_series(tmp_path, boxes())
    shutil.copy(paths[3], tmp_path / "copy.dcm")
    scan = read(str(tmp_path))
    assert_boxes(scan)
    assert "1 identical copies of slices were left out" in scan.header.notes


def test_jitter_below_the_tolerance(tmp_path: Path) -> None:
    """D05: 1e-4 mm, and spacing from positions alone (D19)."""
    heights = [2.5 * k + 1e-4 * (-1) ** k for k in range(9)]
    write_series(tmp_path, boxes(), heights=heights, edit=setting(SliceThickness=5, SpacingBetweenSlices=-7))
    scan = read(str(tmp_path))
    np.testing.assert_array_equal(values(scan), boxes())
    assert scan.volume.spacing[2] == pytest.approx(2.5, abs=1e-4)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_values_are_not_inverted(tmp_path: Path, photometric: str) -> None:
    """D20: MONOCHROME1 says how to show values, Hounsfield units stay what they are."""
    write_series(tmp_path, boxes(), edit=setting(PhotometricInterpretation=photometric))
    assert_boxes(read(str(tmp_path)))


def test_one_scaling_keeps_stored_integers(tmp_path: Path) -> None:
    write_series(tmp_path, boxes().astype(np.uint16), edit=setting(RescaleIntercept=-1024))
    scan = read(str(tmp_path))
    assert (scan.volume.voxels.dtype, scan.volume.slope, scan.volume.intercept) == (np.uint16, 1.0, -1024.0)
    np.testing.assert_array_equal(values(scan), boxes() - 1024.0)


def test_without_rescaling(tmp_path: Path) -> None:
    """D22: identity, with a note for CT."""
    write_series(tmp_path / "ct", boxes(), edit=setting(RescaleSlope=None, RescaleIntercept=None))
    write_series(tmp_path / "mr", boxes(), modality="MR")
    ct, mr = read(str(tmp_path / "ct")), read(str(tmp_path / "mr"))
    assert_boxes(ct)
    assert_boxes(mr)
    assert any("taken as Hounsfield units" in note for note in ct.header.notes)
    assert mr.header.notes == ()


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("stored", [9, 12, 16])
def test_bits_above_the_stored_ones_are_not_values(tmp_path: Path, stored: int, signed: bool) -> None:
    """D23: sign from the highest stored bit; overlay bits above it are cleared."""
    low = -(1 << (stored - 1)) if signed else 0
    true = (boxes().astype(np.int32) * 17 + low).astype(np.int32)
    true[0, 0, 0] = low + (1 << stored) - 1
    words = (true & ((1 << stored) - 1)).astype(np.uint16)
    junk = np.random.default_rng(0).integers(0, 1 << 16, words.shape).astype(np.uint16)
    words |= junk & np.uint16(0xFFFF ^ ((1 << stored) - 1))
    edit = setting(BitsStored=stored, HighBit=stored - 1, PixelRepresentation=int(signed))
    write_series(tmp_path, words, edit=edit)
    scan = read(str(tmp_path))
    np.testing.assert_array_equal(scan.volume.voxels[0], true)


@pytest.mark.parametrize("written", ["signed", "unsigned"])
def test_padding_of_a_ct_is_the_lowest_value(tmp_path: Path, written: str) -> None:
    """D23: also where the padding value of signed pixels is written as unsigned."""
    voxels = boxes() - np.int16(1000)
    voxels[0, :, 2:] = -2000

    def edit(_: int, dataset: Dataset) -> None:
        if written == "signed":
            dataset.PixelPaddingValue = -2000
            return
        dataset.add_new(0x00280120, "US", 65536 - 2000)

    write_series(tmp_path, voxels, edit=edit)
    scan = read(str(tmp_path))
    expected = voxels.copy()
    expected[0, :, 2:] = -1000
    np.testing.assert_array_equal(values(scan), expected)
    assert f"{15 * 7} padding voxels were given the lowest value" in scan.header.notes


def test_a_lookup_table_is_applied(tmp_path: Path) -> None:
    """D24."""
    table = Dataset()
    table.add_new("LUTDescriptor", "US", [4096, 0, 16])
    table.add_new("LUTData", "OW", (3 * np.arange(4096) + 5).astype("<u2").tobytes())
    table.ModalityLUTType = "HU"

    def edit(_: int, dataset: Dataset) -> None:
        del dataset.RescaleSlope, dataset.RescaleIntercept
        dataset.ModalityLUTSequence = [table]

    write_series(tmp_path, boxes().astype(np.uint16), edit=edit)
    np.testing.assert_array_equal(values(read(str(tmp_path))), 3.0 * boxes() + 5)


@pytest.mark.parametrize("gone", ["LUTDescriptor", "LUTData"])
def test_a_damaged_lookup_table_is_refused(tmp_path: Path, gone: str) -> None:
    table = Dataset()
    table.add_new("LUTDescriptor", "US", [4096, 0, 16])
    table.add_new("LUTData", "OW", np.arange(4096).astype("<u2").tobytes())
    table.ModalityLUTType = "HU"
    delattr(table, gone)

    def edit(_: int, dataset: Dataset) -> None:
        del dataset.RescaleSlope, dataset.RescaleIntercept
        dataset.ModalityLUTSequence = [table]

    write_series(tmp_path, boxes().astype(np.uint16), edit=edit)
    with pytest.raises(SegError, match="E-DCM-RESCALE"):
        read(str(tmp_path))


def other_objects(folder: Path) -> None:
    """D25: one of each kind that may lie beside a series."""
    classes = {
        "sr": "1.2.840.10008.5.1.4.1.1.88.11",
        "rtstruct": "1.2.840.10008.5.1.4.1.1.481.3",
        "pr": "1.2.840.10008.5.1.4.1.1.11.1",
        "ko": "1.2.840.10008.5.1.4.1.1.88.59",
        "seg": "1.2.840.10008.5.1.4.1.1.66.4",
        "pdf": "1.2.840.10008.5.1.4.1.1.104.1",
    }
    for name, kind in classes.items():
        dataset = Dataset()
        dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.Modality = kind, uid(name), "OT"
        dataset.SeriesInstanceUID = uid("others")
        save(folder / name, dataset)
    dicomdir(folder / "DICOMDIR")
    (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (folder / "notes.txt").write_text("some notes")
    (folder / "old.zip").write_bytes(b"PK\x05\x06" + bytes(18))
    (folder / "empty").write_bytes(b"")


def dicomdir(path: Path) -> None:
    """D26: its records lead out of the folder; nobody follows them."""
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.1.3.10", uid("dicomdir")
    record = Dataset()
    record.DirectoryRecordType, record.ReferencedFileID = "IMAGE", ["..", "..", "..", "etc", "passwd"]
    dataset.DirectoryRecordSequence = [record]
    save(path, dataset)


def test_other_objects_are_set_aside(tmp_path: Path) -> None:
    write_series(tmp_path / "deep" / "deeper", boxes())
    other_objects(tmp_path)
    scan = read(str(tmp_path))
    assert_boxes(scan)
    assert "set aside: 7 DICOM objects that are no images, 3 files that are not DICOM" in scan.header.notes


def test_linked_folders_are_entered_once(tmp_path: Path) -> None:
    """A series is not cut short where a part of it is linked, nor read for ever where a link leads back."""
    write_series(tmp_path / "s" / "a", boxes(), skip=range(5, 9))
    write_series(tmp_path / "elsewhere", boxes(), skip=range(5))
    (tmp_path / "s" / "b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "again").symlink_to(tmp_path / "s")
    assert_boxes(read(str(tmp_path / "s")))


def test_the_kind_of_object_may_stand_in_the_file_meta_alone(tmp_path: Path) -> None:
    write_series(tmp_path, boxes(), edit=setting(SOPClassUID=None))
    scan = read(str(tmp_path))
    assert_boxes(scan)
    assert scan.series is not None
    assert all(dataset.SOPClassUID == CT for dataset in scan.series.datasets)


def test_damaged_headers_end_in_one_line(tmp_path: Path) -> None:
    """Bytes changed, cut out, put in or moved: a volume, or an error that says so; whatever is read can be written."""
    from known import plain_spec

    from seg.infer.dicom.segmentation import segmentation_dataset

    write_series(tmp_path / "c", boxes()[..., :4])
    save(tmp_path / "e" / "m.dcm", enhanced_dataset(boxes()[..., :4]))
    rng, whole = random.Random(0), {path: path.read_bytes() for path in sorted(tmp_path.glob("*/*"))}
    outcomes = set()
    for _ in range(120):
        path = rng.choice(list(whole))
        data = bytearray(whole[path])
        at, other = (rng.randrange(128, len(data) - 2500 if path.name == "m.dcm" else 700) for _ in range(2))
        count = rng.randrange(1, 20)
        change = rng.choice(["set", "set", "cut", "put", "move"])
        if change == "set":
            data[at] = rng.randrange(256)
        elif change == "cut":
            del data[at : at + count]
        elif change == "put":
            data[at:at] = rng.randbytes(count)
        else:
            data[at : at + count] = data[other : other + count]
        path.write_bytes(data)
        try:
            scan = read(str(path.parent))
            assert scan.series is not None
            mask = np.ones(scan.series.shape, np.uint8)
            segmentation_dataset(scan.series, mask, plain_spec(), model_sha256="0" * 64)
            outcomes.add("read")
        except SegError as error:
            outcomes.add(error.code)
        path.write_bytes(whole[path])
    assert {"read", "E-DCM-TAG", "E-DCM-UID"} <= outcomes


def test_a_lone_localizer_is_set_aside(tmp_path: Path) -> None:
    """D02: under the same series UID; its geometry does not count."""
    write_series(tmp_path, boxes())
    scout = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"], "ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}
    write_series(tmp_path / "scout", boxes()[..., :1], edit=setting(SOPInstanceUID=uid("scout"), **scout))
    scan = read(str(tmp_path))
    assert_boxes(scan)
    assert "1 localizers in the series were set aside" in scan.header.notes


def test_objects_without_preamble(tmp_path: Path) -> None:
    """D27: read, and told."""
    for path in write_series(tmp_path, boxes()):
        path.write_bytes(path.read_bytes()[132:])
    scan = read(str(tmp_path))
    assert_boxes(scan)
    assert "9 files lack the DICOM preamble" in scan.header.notes


def test_excess_pixel_data(tmp_path: Path) -> None:
    """D14: what comes after the pixels is not looked at."""
    write_series(tmp_path, boxes(), edit=lambda k, d: setattr(d, "PixelData", d.PixelData + bytes(2 * (k % 3))))
    assert_boxes(read(str(tmp_path)))


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, "1.2.840.10008.1.2.1.99"])
def test_other_native_encodings(tmp_path: Path, syntax: str) -> None:
    stored = boxes().astype(">i2") if syntax == ExplicitVRBigEndian else boxes()
    write_series(tmp_path, stored, syntax=syntax)
    assert_boxes(read(str(tmp_path)))


def test_long_headers(tmp_path: Path) -> None:
    """A header longer than what is read at first, and private elements."""

    def edit(_: int, dataset: Dataset) -> None:
        dataset.private_block(0x29, "SOMEBODY", create=True).add_new(0x10, "OB", bytes(100_000))

    write_series(tmp_path, boxes(), edit=edit)
    scan = read(str(tmp_path))
    assert_boxes(scan)
    assert scan.series is not None
    assert not any(element.tag.is_private for element in scan.series.datasets[0])


@pytest.mark.parametrize("charset", ["ISO_IR 100", ["", "ISO 2022 IR 87"], "GB18030", None, "NONSENSE"])
def test_character_sets_do_not_matter(tmp_path: Path, charset: object) -> None:
    """D36."""
    paths = write_series(tmp_path, boxes(), edit=setting(PatientName="PLACEHOLDER"))
    name = b"Yamada^\x1b$B;3"[:11].ljust(11)
    for path in paths:
        dataset = dcmread(path)
        if charset is not None:
            dataset.SpecificCharacterSet = charset
        dataset.PatientName = "PLACEHOLDER"
        dataset.save_as(path)
        path.write_bytes(path.read_bytes().replace(b"PLACEHOLDER", name))
    assert_boxes(read(str(tmp_path)))


def write_times(folder: Path, edit: Callable[[int, int, Dataset], None], times: int = 3) -> None:
    for time in range(times):

        def change(k: int, dataset: Dataset, t: int = time) -> None:
            dataset.SOPInstanceUID = uid("t", t, k)
            edit(t, k, dataset)

        voxels = boxes() + np.int16(time)
        write_series(folder, voxels, edit=change, name=lambda k, t=time: f"{(7 * k + t) % 50}_{t}_{k}.dcm")


CLOCKS: dict[str, Callable[[int, int, Dataset], None]] = {
    "TemporalPositionIdentifier": lambda t, k, d: setattr(d, "TemporalPositionIdentifier", t + 1),
    "TriggerTime": lambda t, k, d: setattr(d, "TriggerTime", 30.5 * t),
    "AcquisitionNumber": lambda t, k, d: setattr(d, "AcquisitionNumber", t + 5),
    "AcquisitionTime": lambda t, k, d: setattr(d, "AcquisitionTime", f"1012{10 * t + k % 5:02}.5"),
    "InstanceNumber": lambda t, k, d: setattr(d, "InstanceNumber", 9 * t + k + 1),
}


@pytest.mark.parametrize("clock", CLOCKS)
def test_one_time_point(tmp_path: Path, clock: str) -> None:
    """D10: the time point that was asked for, whatever orders the times."""
    write_times(tmp_path, CLOCKS[clock])
    for time in range(3):
        scan = read(str(tmp_path), DicomOptions(time_point=time + 1))
        np.testing.assert_array_equal(values(scan), boxes() + time)
        assert f"time point {time + 1} of 3" in scan.header.notes


def test_one_time_point_of_a_multiframe_image(tmp_path: Path) -> None:
    both = np.concatenate([boxes(), boxes() + np.int16(1)], axis=2)
    dataset = enhanced_dataset(both)
    for k, groups in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        groups.FrameContentSequence[0].TemporalPositionIndex = 1 + k // 9
        first = dataset.PerFrameFunctionalGroupsSequence[k % 9]
        groups.PlanePositionSequence[0].ImagePositionPatient = first.PlanePositionSequence[0].ImagePositionPatient
    save(tmp_path / "m.dcm", dataset)
    for time in range(2):
        scan = read(str(tmp_path / "m.dcm"), DicomOptions(time_point=time + 1))
        np.testing.assert_array_equal(values(scan), boxes() + time)
        assert scan.series is not None
        assert scan.series.frames == tuple(range(9 * time + 1, 9 * time + 10))


def test_lossy_and_burned_in_are_told(tmp_path: Path) -> None:
    """D41."""
    write_series(tmp_path, boxes(), edit=setting(LossyImageCompression="01", BurnedInAnnotation="YES"))
    notes = read(str(tmp_path)).header.notes
    assert "the scan was compressed with loss" in notes
    assert "text is burned into the image" in notes


def test_derived_and_reformatted_series_are_read(tmp_path: Path) -> None:
    """D41: a reformatted volume is a volume."""
    write_series(tmp_path, boxes(), edit=setting(ImageType=["DERIVED", "SECONDARY", "MPR"]), orientation=OBLIQUE)
    assert_boxes(read(str(tmp_path)), ras_affine(OBLIQUE))


def test_inspect_tells_what_read_reads(tmp_path: Path) -> None:
    """From the headers alone."""
    write_series(tmp_path, boxes(), orientation=OBLIQUE, edit=lambda k, d: setattr(d, "RescaleSlope", 1 + k % 2))
    scan, header = read(str(tmp_path)), inspect(str(tmp_path))
    assert (header.shape, header.dtype, header.channels) == (scan.header.shape, scan.volume.voxels.dtype, 1)
    np.testing.assert_array_equal(header.affine, scan.header.affine)


def test_a_limit_on_voxels(tmp_path: Path) -> None:
    write_series(tmp_path, boxes())
    with pytest.raises(SegError) as caught:
        read(str(tmp_path), max_voxels=2699)
    assert (caught.value.code, caught.value.exit) == ("E-LIMIT-VOXELS", 13)


def test_highdicom_finds_the_same_geometry(tmp_path: Path) -> None:
    """Another reader's volumes as oracle, for single-frame and multi-frame images."""
    import highdicom

    rng = np.random.default_rng(7)
    for case in range(12):
        orientation = AXIAL if case == 0 else random_orientation(rng)
        paths = write_series(tmp_path / f"c{case}", boxes(), orientation=orientation)
        theirs = highdicom.get_volume_from_series([dcmread(path) for path in paths])
        ours = read(str(tmp_path / f"c{case}"))
        lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ ours.volume.affine
        swap = lps[:, [2, 1, 0, 3]]  # their arrays are (slices, rows, columns)
        flipped = theirs.flip_spatial(0) if theirs.affine[:3, 0] @ swap[:3, 0] < 0 else theirs
        np.testing.assert_allclose(flipped.affine, swap, atol=1e-4)
        np.testing.assert_array_equal(flipped.array, values(ours).transpose(2, 1, 0))


def test_the_multiframe_class_without_frames(tmp_path: Path) -> None:
    """An enhanced object must describe its frames."""
    dataset = enhanced_dataset(boxes())
    del dataset.PerFrameFunctionalGroupsSequence
    assert dataset.SOPClassUID == ENHANCED_CT
    assert len(dataset.PixelData) == len(pixels(boxes()))
    save(tmp_path / "m.dcm", dataset)
    with pytest.raises(SegError) as caught:
        read(str(tmp_path / "m.dcm"))
    assert caught.value.code == "E-DCM-PIXELS"
