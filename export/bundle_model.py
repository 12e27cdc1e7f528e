"""What a MONAI bundle needs besides MONAI: orientation and sampling grid, and the network as a torch module.

`seg-export --bundle` copies this file into the bundle, which thereby works without seg-toolkit. So it imports nothing
of it, and says again, in MONAI's terms, what `seg.infer.resample` and `Reorientation.of_slices` do; tests hold them
together.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform, MapTransform


def resampled(x: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """(C, X, Y, Z) -> (C, *shape): linear, centre-aligned, with a wider triangle where samples get fewer.

    Two passes of the 2D form, which alone has that triangle (`antialias`): over Y and Z, then over X.
    """
    if tuple(x.shape[1:]) == tuple(shape):
        return x
    flat = F.interpolate(x, tuple(shape[1:]), mode="bilinear", antialias=True).flatten(2)[None]
    wide = F.interpolate(flat, (shape[0], flat.shape[3]), mode="bilinear", antialias=True)[0]
    return wide.reshape(len(x), *shape)


class ToModelGridd(MapTransform, InvertibleTransform):  # type: ignore[misc]
    """Resample images in the network's orientation to its spacing; the inverse brings logits back to the scan's grid.

    Parameters
    ----------
    keys : images, (C, X, Y, Z) MetaTensors.
    spacing : mm along the axes (R, A, S but for stored slices); None keeps the scan's own on that axis.
    """

    def __init__(self, keys: Any, spacing: Sequence[float | None]) -> None:
        super().__init__(keys)
        self.spacing = tuple(spacing)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The images on the network's grid."""
        found = dict(data)
        for key in self.key_iterator(found):
            image = found[key]
            before = tuple(image.shape[1:])
            mm = [float(edge) for edge in image.pixdim]
            after = [
                n if target is None else max(1, round(n * own / target))
                for n, own, target in zip(before, mm, self.spacing, strict=True)
            ]
            turned = MetaTensor(resampled(image.as_tensor(), after), meta=image.meta)
            turned.applied_operations = image.applied_operations
            turned.affine = _affine(image.affine, before, after)
            self.push_transform(turned, extra_info={"shape": before, "affine": image.affine})
            found[key] = turned
        return found

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Back to the grid before."""
        found = dict(data)
        for key in self.key_iterator(found):
            before = self.pop_transform(found[key])["extra_info"]
            image = MetaTensor(resampled(found[key].as_tensor(), before["shape"]), meta=found[key].meta)
            image.applied_operations = found[key].applied_operations
            image.affine = before["affine"]
            found[key] = image
        return found


class SlicesLastd(MapTransform, InvertibleTransform):  # type: ignore[misc]
    """Images as they are stored, the axis across the slices moved to the end; the inverse moves it back.

    That is an axis of one voxel, or else the one with voxels over 1.5 times as large (mm) as any other's; where none
    is, the one with the fewest, and the last of equals.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """(C, X, Y, Z) images, slices last."""
        found = dict(data)
        for key in self.key_iterator(found):
            image = found[key]
            shape, mm = image.shape[1:], [float(edge) for edge in image.pixdim]
            _, middle, coarsest = sorted(range(3), key=mm.__getitem__)
            across = min(range(3), key=lambda axis: (shape[axis], -axis))
            if shape[across] > 1 and mm[coarsest] > 1.5 * mm[middle]:
                across = coarsest
            order = [*(axis for axis in range(3) if axis != across), across]
            found[key] = self._turned(image, order)
            self.push_transform(found[key], extra_info={"order": order})
        return found

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """In the order they were stored in."""
        found = dict(data)
        for key in self.key_iterator(found):
            order = self.pop_transform(found[key])["extra_info"]["order"]
            found[key] = self._turned(found[key], [order.index(axis) for axis in range(3)])
        return found

    @staticmethod
    def _turned(image: MetaTensor, order: Sequence[int]) -> MetaTensor:
        turned = MetaTensor(image.as_tensor().permute(0, *(axis + 1 for axis in order)), meta=image.meta)
        turned.applied_operations = image.applied_operations
        turned.affine = image.affine[:, [*order, 3]]
        return turned


def _affine(affine: torch.Tensor, before: Sequence[int], after: Sequence[int]) -> torch.Tensor:
    """The field of view stays; its voxels get larger or smaller."""
    scale = torch.tensor([n / m for n, m in zip(before, after, strict=True)], dtype=torch.float64)
    change = torch.eye(4, dtype=torch.float64)
    change[:3, :3] = torch.diag(scale)
    change[:3, 3] = (scale - 1) / 2
    return affine @ change


class OnnxNetwork(torch.nn.Module):
    """The bundle's ONNX file as a network: (N, C, X, Y, Z) -> (N, K, X, Y, Z) logits, by ONNX Runtime.

    Parameters
    ----------
    path : ONNX file with the input "image" and the output "logits".
    device : "cpu" or "cuda:N"; a CUDA device that is not there is an error.
    """

    def __init__(self, path: str, device: str = "cpu") -> None:
        super().__init__()
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = torch.get_num_threads()
        wanted: list[Any] = ["CPUExecutionProvider"]
        if (place := torch.device(device)).type == "cuda":
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
            wanted = [("CUDAExecutionProvider", {"device_id": place.index or 0})]
        self.session = ort.InferenceSession(path, options, providers=wanted, enable_fallback=0)
        self.flat = len(self.session.get_inputs()[0].shape) == 4  # a 2D network: slices are its batch

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits on x's device, with what x knows of its scan."""
        given = x.detach().cpu().numpy().astype(np.float32)
        count, slices = len(given), given.shape[4]
        if self.flat:
            given = given.transpose(0, 4, 1, 2, 3).reshape(count * slices, *given.shape[1:4])
        logits = self.session.run(["logits"], {"image": np.ascontiguousarray(given)})[0]
        if self.flat:
            logits = logits.reshape(count, slices, *logits.shape[1:]).transpose(0, 2, 3, 4, 1)
        found = torch.from_numpy(np.ascontiguousarray(logits)).to(x.device)
        return MetaTensor(found).copy_meta_from(x) if isinstance(x, MetaTensor) else found
