"""How long does a mask take to become a DICOM object, and does the same mask come back?

One class in 512 x 512 x 300 voxels, a thick shell with a hollow inside and some grains around it, on a series of 300
single-frame images. Each contender writes it in a fresh process: once with its imports, then --runs times more. Others
read it back, SEG by its pixels and positions, RTSTRUCT by asking of each voxel's centre whether it is inside an odd
number of contours of its slice; voxels that differ are counted. A second, small series has pixels of 0.6 x 0.9 mm.

"highdicom, plain" is highdicom as its manual shows it. With --peer-python, rt-utils stands beside it; its time includes
reading the series, which it does itself.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import environment as env

CONTENDERS = ("ours, SEG", "ours, LABELMAP", "ours, RTSTRUCT", "highdicom, plain", "rt-utils")
LARGE, SMALL = (512, 512, 300), (64, 48, 20)  # columns, rows, slices
SQUARE, OBLONG = (0.7, 0.7), (0.6, 0.9)  # mm between rows, between columns
COLUMNS = (
    *("contender", "first s", "median s", "processor s", "MB", "voxels that differ", "of"),
    *("oblong pixels: that differ", "of"),
)


def main() -> None:
    """Measure each contender on both series, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter with rt-utils")
    parser.add_argument("--threads", type=int, default=env.usable_threads())
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--results", type=Path, default=env.RESULTS)
    parser.add_argument("--smoke", action="store_true", help="small series, one run; writes no result")
    parser.add_argument("--worker", nargs=3, metavar=("NAME", "FOLDER", "RUNS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        name, folder, runs = options.worker
        print(json.dumps(work(name, Path(folder), int(runs))))
        return
    large = SMALL if options.smoke else LARGE
    found, skipped = {}, {}
    with tempfile.TemporaryDirectory() as temporary:
        square, oblong = Path(temporary) / "square", Path(temporary) / "oblong"
        write_case(square, large, SQUARE)
        write_case(oblong, SMALL, OBLONG)
        for name in CONTENDERS:
            python = options.peer_python if name == "rt-utils" else sys.executable
            command = [python, str(Path(__file__).resolve()), "--worker", name]
            try:
                _, timed = env.fresh([*command, str(square), str(1 if options.smoke else options.runs)], threads=1)
                _, other = env.fresh([*command, str(oblong), "0"], threads=1)
            except env.Failed as error:
                skipped[name] = str(error)
                continue
            found[name] = {**timed, "oblong": {key: other[key] for key in ("differ", "voxels")}}
    for name, reason in skipped.items():
        print(f"{name}: skipped, {reason}", file=sys.stderr)
    rows = [
        [name, f"{r['first']:.2f}", f"{r['median']:.2f}", f"{r['processor']:.2f}", f"{r['bytes'] / 1e6:.2f}"]
        + [str(part[key]) for part in (r, r["oblong"]) for key in ("differ", "voxels")]
        for name, r in found.items()
    ]
    content = {"shape": large, "runs": options.runs, "threads": 1, "contenders": found, "skipped": skipped}
    env.report("dicom-output", content, env.table(COLUMNS, rows), None if options.smoke else options.results)


# The data


def write_case(folder: Path, shape: tuple[int, int, int], pixel: tuple[float, float]) -> None:
    """A CT series of noise as files, and the mask as mask.npy, (slices, rows, columns) bool."""
    import numpy as np
    from pydicom import Dataset, dcmwrite
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    (folder / "series").mkdir(parents=True)
    rng = np.random.default_rng(0)
    columns, rows, slices = shape
    x, y, z = (np.linspace(-1, 1, n, dtype=np.float32) for n in shape)
    distance = np.sqrt(z[:, None, None] ** 2 + y[:, None] ** 2 + x**2)
    mask = (distance < 0.7) & (distance > 0.3)
    mask |= (distance > 0.75) & (rng.random(mask.shape, np.float32) < 1e-5)
    np.save(folder / "mask.npy", mask)
    for number in range(slices):
        d = Dataset()
        d.SOPClassUID, d.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", f"1.2.3.4.{number + 1}"
        d.StudyInstanceUID, d.SeriesInstanceUID, d.FrameOfReferenceUID = "1.2.3.1", "1.2.3.2", "1.2.3.3"
        d.Modality, d.PatientName, d.PatientID, d.PatientBirthDate, d.PatientSex = "CT", "Doe^Jane", "1", "", ""
        d.StudyDate, d.StudyTime, d.StudyID, d.AccessionNumber, d.SeriesNumber = "20210203", "121314", "", "", 1
        d.ReferringPhysicianName, d.InstanceNumber, d.Rows, d.Columns = "", number + 1, rows, columns
        d.ImagePositionPatient, d.ImageOrientationPatient = [-90, -80, float(number)], [1, 0, 0, 0, 1, 0]
        d.PixelSpacing, d.SliceThickness = list(pixel), 1.0
        d.SamplesPerPixel, d.PhotometricInterpretation, d.PixelRepresentation = 1, "MONOCHROME2", 1
        d.BitsAllocated = d.BitsStored = 16
        d.HighBit, d.RescaleSlope, d.RescaleIntercept = 15, 1, 0
        d.PixelData = rng.integers(-1000, 1000, (rows, columns), np.int16).tobytes()
        d.file_meta = FileMetaDataset()
        d.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dcmwrite(folder / "series" / f"{number:04}.dcm", d, enforce_file_format=True)


# The contenders


def work(name: str, folder: Path, runs: int) -> dict[str, Any]:
    """Write `runs` times, after once; read back once."""
    import numpy as np
    from pydicom import dcmread

    mask = np.load(folder / "mask.npy")
    headers = [dcmread(path, stop_before_pixels=True) for path in sorted((folder / "series").iterdir())]
    out = folder / "out.dcm"
    seconds, processor = [], []
    write = {"highdicom, plain": write_plainly, "rt-utils": write_by_rt_utils}.get(name, write_ours)
    for _ in range(1 + runs):
        began, busy = time.perf_counter(), time.process_time()
        write(name, out, headers, mask, folder)
        seconds.append(time.perf_counter() - began)
        processor.append(time.process_time() - busy)
    written = dcmread(out)
    back = (areas if written.Modality == "RTSTRUCT" else pixels)(written, headers)
    return {
        "seconds": seconds,
        "first": seconds[0],
        "median": float(np.median(seconds[1:] or seconds)),
        "processor": float(np.median(processor[1:] or processor)),
        "bytes": out.stat().st_size,
        "differ": int((back != mask).sum()),
        "voxels": int(mask.sum()),
    }


def write_ours(name: str, out: Path, headers: list[Any], mask: Any, folder: Path) -> None:
    """Labels in the order in which a scan's voxels lie in memory, (columns, rows, slices)."""
    import numpy as np

    from seg.infer.dicom.derived import save
    from seg.infer.dicom.rtstruct import rtstruct_dataset
    from seg.infer.dicom.segmentation import segmentation_dataset
    from seg.infer.dicom.series import DicomSeries
    from seg.infer.spec import ModelSpec, Normalisation

    first = headers[0]
    affine = np.diag([-first.PixelSpacing[1], -first.PixelSpacing[0], 1.0, 1.0])
    affine[:2, 3] = [-value for value in first.ImagePositionPatient[:2]]
    count = len(headers)
    shape = (first.Columns, first.Rows, count)
    files = tuple(str(path) for path in sorted((folder / "series").iterdir()))
    series = DicomSeries(tuple(headers), files, (1,) * count, affine, shape, "CT")
    spec = ModelSpec(
        *("left-atrium", ("background", "left atrium"), ("CT",), (None,) * 3, Normalisation(), (16,) * 3, (1,) * 3)
    )
    make: Callable[..., Any] = rtstruct_dataset if "RTSTRUCT" in name else segmentation_dataset
    options = {"kind": "LABELMAP"} if "LABELMAP" in name else {}
    dataset = make(series, mask.view(np.uint8).T, spec, model_sha256="0" * 64, **options)
    save(str(out), dataset, series, overwrite=True)


def write_plainly(name: str, out: Path, headers: list[Any], mask: Any, folder: Path) -> None:
    """The example of highdicom's manual."""
    import highdicom
    from pydicom.sr.codedict import codes

    algorithm = highdicom.AlgorithmIdentificationSequence("test", codes.DCM.ArtificialIntelligence, "1")
    described = highdicom.seg.SegmentDescription(
        1, "left atrium", codes.SCT.AnatomicalStructure, codes.SCT.LeftAtrium, "AUTOMATIC", algorithm
    )
    uids = [highdicom.UID() for _ in range(2)]
    seg = highdicom.seg.Segmentation(
        headers, mask, "BINARY", [described], uids[0], 2, uids[1], 1, "maker", "model", "1", "1"
    )
    seg.save_as(out)


def write_by_rt_utils(name: str, out: Path, headers: list[Any], mask: Any, folder: Path) -> None:
    """The example of its README."""
    from rt_utils import RTStructBuilder

    built = RTStructBuilder.create_new(dicom_series_path=str(folder / "series"))
    built.add_roi(mask=mask.transpose(1, 2, 0), name="left atrium")
    built.save(str(out))


# The way back


def pixels(seg: Any, headers: list[Any]) -> Any:
    """(slices, rows, columns) of a SEG with one segment."""
    import numpy as np

    place = {tuple(header.ImagePositionPatient): k for k, header in enumerate(headers)}
    back = np.zeros((len(headers), seg.Rows, seg.Columns), bool)
    for frame, groups in zip(seg.pixel_array, seg.PerFrameFunctionalGroupsSequence, strict=True):
        back[place[tuple(groups.PlanePositionSequence[0].ImagePositionPatient)]] = frame
    return back


def areas(rtstruct: Any, headers: list[Any]) -> Any:
    """(slices, rows, columns) of an RTSTRUCT with one ROI: centres inside an odd number of contours."""
    import numpy as np

    first = headers[0]
    place = {float(header.ImagePositionPatient[2]): k for k, header in enumerate(headers)}
    crossed = np.zeros((len(headers), first.Rows, first.Columns + 1), np.int32)
    for contour in rtstruct.ROIContourSequence[0].ContourSequence:
        points = np.array(contour.ContourData, float).reshape(-1, 3)
        plane = crossed[place[round(points[0, 2], 3)]]
        x = (points[:, 0] - first.ImagePositionPatient[0]) / first.PixelSpacing[1]
        y = (points[:, 1] - first.ImagePositionPatient[1]) / first.PixelSpacing[0]
        x1, y1 = np.roll(x, -1), np.roll(y, -1)
        low, high = (np.ceil(np.round(bound(y, y1), 3)).astype(int) for bound in (np.minimum, np.maximum))
        low, high = low.clip(0, first.Rows), high.clip(0, first.Rows)
        edge = np.repeat(np.arange(len(x)), high - low)  # once for each row that it crosses
        row = np.arange(len(edge)) - np.repeat(np.cumsum(high - low) - (high - low), high - low) + low[edge]
        at = x[edge] + (row - y[edge]) / (y1 - y)[edge] * (x1 - x)[edge]
        np.add.at(plane, (row, np.ceil(np.round(at, 3)).astype(int).clip(0, first.Columns)), 1)
    # A centre is inside if an odd number of crossings lie to its right.
    return crossed[:, :, ::-1].cumsum(axis=2)[:, :, ::-1][:, :, 1:] % 2 == 1


if __name__ == "__main__":
    main()
