"""The segmenter of a real node: the models of seg-infer, each loaded once, and a DICOM SEG of what they find."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..artifact import Artifact, load, resolve
from ..backends import ONNX_ENGINES, Backend, engine_for, open_backend
from ..compute import ComputeOptions, blends_features, compute
from ..manifest import FileState

if TYPE_CHECKING:
    from pydicom import Dataset

# A series that does not suit its model (modality, voxel size, field of view, contrast) is refused, not segmented.
SUITED_ONLY = "auto"


class PipelineSegmenter:
    """Segments as `seg-infer --series auto --format seg` does, on this machine's best device."""

    def __init__(self) -> None:
        self._artifacts: dict[str, tuple[Artifact, str]] = {}
        self._engines: dict[str, Backend] = {}
        self._options = ComputeOptions()

    def identity(self, model: str) -> str:
        """Digest of a model's file. Raises SegError E-MODEL-*."""
        return self._artifact(model)[1]

    def segment(self, folder: Path, model: str) -> "Sequence[Dataset]":
        """The SEG of the one series in a folder. Raises SegError as `dicom.read.read` and `compute`."""
        from ..dicom.read import DicomOptions, read
        from ..dicom.segmentation import segmentation_dataset

        artifact, digest = self._artifact(model)
        scan = read(str(folder), DicomOptions(series=SUITED_ONLY), spec=artifact.spec)
        mask = compute(scan, artifact, self._engine(model), self._options).labels
        labels = mask if scan.restore is None else scan.restore(mask)
        assert scan.series is not None
        return [segmentation_dataset(scan.series, labels, artifact.spec, model_sha256=digest)]

    def _artifact(self, model: str) -> tuple[Artifact, str]:
        if model not in self._artifacts:
            path = resolve(model, self._options.precision)
            self._artifacts[model] = load(path), FileState.of([path]).sha256
        return self._artifacts[model]

    def _engine(self, model: str) -> Backend:
        if model not in self._engines:
            artifact = self._artifacts[model][0]
            name = engine_for(artifact.path, "auto")
            output = "features" if blends_features(artifact, self._options) else "logits"
            precision = "fp32" if name in ONNX_ENGINES else "auto"
            self._engines[model] = open_backend(name, artifact.path, "auto", precision=precision, output=output)
        return self._engines[model]
