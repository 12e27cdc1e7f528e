"""The segmenter of a real node."""

import shutil
from pathlib import Path

import pytest
from dicom_files import write_series
from known import boxes, plain_spec, write_artifact

from seg.infer.errors import Exit, SegError
from seg.infer.serve.pipeline import PipelineSegmenter


def test_a_model_that_was_replaced_since_the_start_is_refused(tmp_path: Path) -> None:
    """Its spec would be that of the old one; as long as the file is the old one, or loaded, all is well."""
    path, series = write_artifact(tmp_path / "m.onnx", plain_spec(), (0.5,)), tmp_path / "series"
    write_series(series, boxes(), modality="MR")
    node, late = PipelineSegmenter(), PipelineSegmenter()
    identities = node.identity(path), late.identity(path)
    assert node.segment(series, path)[0].Modality == "SEG"
    write_artifact(tmp_path / "new.onnx", plain_spec(spacing=(2.0, 2.0, 2.0)), (0.5,))
    shutil.move(tmp_path / "new.onnx", path)
    assert node.segment(series, path)[0].DeviceSerialNumber == identities[0]
    with pytest.raises(SegError, match="restart the node") as refused:
        late.segment(series, path)
    assert refused.value.exit == Exit.RUNTIME
    assert late.identity(path) == identities[1]
