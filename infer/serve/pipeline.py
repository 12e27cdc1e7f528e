"""The segmenter of a real node: the models of seg-infer, each loaded once, and a DICOM SEG of what they find."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..artifact import Artifact, load, resolve
from ..backends import Backend
from ..compute import ComputeOptions, compute, load_network
from ..errors import Exit, SegError
from ..masks import mask_dataset

if TYPE_CHECKING:
    from pydicom import Dataset

# A series that does not suit its model (modality, voxel size, field of view, contrast) is refused, not segmented.
SUITED_ONLY = "auto"
DEVICE = "auto"


class PipelineSegmenter:
    """Segments as `seg-infer --series auto --format seg` does."""

    def __init__(self) -> None:
        self._artifacts: dict[str, Artifact] = {}
        self._networks: dict[str, Backend] = {}
        self._options = ComputeOptions()

    def identity(self, model: str) -> str:
        """Digest of the model's file as it was loaded. Raises SegError E-MODEL-*."""
        return self._artifact(model).sha256

    def segment(self, folder: Path, model: str) -> "Sequence[Dataset]":
        """The SEG of the one series in a folder. Raises SegError as `dicom.read.read` and `compute`."""
        from ..dicom.read import DicomOptions, read

        artifact = self._artifact(model)
        scan = read(str(folder), DicomOptions(series=SUITED_ONLY), spec=artifact.spec)
        if model not in self._networks:
            self._refuse_replaced(artifact)
            self._networks[model] = load_network(artifact, DEVICE, self._options)
        mask = compute(scan, artifact, self._networks[model], self._options).labels
        return [mask_dataset(mask, scan, artifact, "seg")]

    @staticmethod
    def _refuse_replaced(artifact: Artifact) -> None:
        """The network is loaded with its first series: by then another may lie there than the spec was read from."""
        if load(artifact.path).sha256 != artifact.sha256:
            found, fix = "is another model than when the node started", "restart the node"
            raise SegError("E-MODEL-OTHER", Exit.RUNTIME, artifact.path, found, fix)

    def _artifact(self, model: str) -> Artifact:
        if model not in self._artifacts:
            self._artifacts[model] = load(resolve(model, self._options.precision, DEVICE))
        return self._artifacts[model]
