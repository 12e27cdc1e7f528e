"""The contenders of inference.py, each loaded and timed in a process of its own that imports what it needs, no more."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import environment as env
from reference import box_at, one_pass, placement, torch_network

SECOND_SCAN_BELOW = 20.0  # seconds

Segment = Callable[[], tuple[Any, int]]


def work(name: str, bundle: Path, threads: int) -> dict[str, Any]:
    """Load, segment twice (once if that takes long), leave the labels in the bundle."""
    shared = json.loads((bundle / "bundle.json").read_text())
    began = time.perf_counter()
    segment = LOADERS[name](name, bundle, shared, threads)
    report: dict[str, Any] = {"load": time.perf_counter() - began}
    for scan in ("first", "next"):
        began, busy = time.perf_counter(), time.process_time()
        labels, windows = segment()
        report[scan] = time.perf_counter() - began
        report[f"{scan}_cpu"] = time.process_time() - busy
        if report[scan] > SECOND_SCAN_BELOW:
            break
    import numpy as np

    np.save(bundle / f"labels-{name}.npy", np.asarray(labels, np.uint8))
    return {**report, "windows": windows, "peak_bytes": env.peak_bytes(), "versions": env.versions()}


def load_ours(name: str, bundle: Path, shared: dict[str, Any], threads: int) -> Segment:
    """The path of seg-infer, from the network's grid to labels."""
    from dataclasses import replace

    import numpy as np

    from seg.infer.artifact import load
    from seg.infer.backends import open_backend
    from seg.infer.plan import TilingOptions, choose_tiling
    from seg.infer.predict import segment
    from seg.infer.spec import Normalisation
    from seg.infer.volume import Volume

    path = str(bundle / ("int8.onnx" if name == "ours-int8" else "model.onnx"))
    spec = replace(load(path).spec, spacing=(None,) * 3, normalisation=Normalisation("fixed"), tiling="free")
    spec = replace(spec, largest_component=False)  # the others keep all
    volume = Volume(np.load(bundle / "x.npy"), np.eye(4))
    options = TilingOptions(tuple(shared["window"]), 0.5) if name == "ours-windows" else TilingOptions()
    tiling = choose_tiling(volume.shape, spec, options)
    precision = "bf16" if name == "ours-bf16" else "fp32"
    shape = (1, len(spec.channels), *tiling.window)  # seg-infer knows it from the header, before it loads the network
    backend = open_backend("openvino", path, precision=precision, threads=threads, shape=shape)
    return lambda: (segment(volume, spec, backend, options), tiling.windows)


def load_torch(name: str, bundle: Path, shared: dict[str, Any], threads: int) -> Segment:
    """torch alone: one pass, or the papers' evaluation loop."""
    import numpy as np
    import torch

    network, x = torch_network(bundle, shared, threads), np.load(bundle / "x.npy")
    if name == "torch-one-pass":
        return lambda: (one_pass(network, x, shared["stride"]), 1)

    def protocol() -> tuple[Any, int]:
        window, places, padded, crop = placement(x, shared, "protocol")
        score = np.zeros((shared["network"]["classes"], *padded.shape[1:]), np.float32)
        count = np.zeros(padded.shape[1:], np.float32)
        with torch.inference_mode():
            for place in places:
                cut = box_at(place, window)
                patch = torch.from_numpy(padded[(slice(None), *cut)][np.newaxis])
                score[(slice(None), *cut)] += torch.softmax(network(patch), 1)[0].numpy()
                count[cut] += 1
        return (score / count).argmax(0)[crop], len(places)

    return protocol


def load_monai(name: str, bundle: Path, shared: dict[str, Any], threads: int) -> Segment:
    """MONAI's sliding window with the options of its tutorials."""
    import numpy as np
    import torch
    from monai.inferers import sliding_window_inference

    network, x = torch_network(bundle, shared, threads), torch.from_numpy(np.load(bundle / "x.npy"))[None]
    windows = len(placement(x[0].numpy(), shared, "half")[1])

    @torch.inference_mode()
    def segment() -> tuple[Any, int]:
        logits = sliding_window_inference(x, shared["window"], 1, network, overlap=0.5, mode="gaussian")
        return logits.argmax(1)[0].numpy(), windows

    return segment


def load_nnunet(name: str, bundle: Path, shared: dict[str, Any], threads: int) -> Segment:
    """nnU-Net's predictor around the same network: what it needs of a plan is the patch size and the classes."""
    from types import SimpleNamespace

    import numpy as np
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    network, x = torch_network(bundle, shared, threads), torch.from_numpy(np.load(bundle / "x.npy"))
    windows = len(placement(x.numpy(), shared, "even")[1])
    predictor = nnUNetPredictor(
        tile_step_size=0.5,
        use_gaussian=True,
        use_mirroring=False,
        perform_everything_on_device=False,
        device=torch.device("cpu"),
        allow_tqdm=False,
    )
    predictor.network = network
    predictor.configuration_manager = SimpleNamespace(patch_size=tuple(shared["window"]))
    predictor.label_manager = SimpleNamespace(num_segmentation_heads=shared["network"]["classes"])
    return lambda: (predictor.predict_sliding_window_return_logits(x).argmax(0).numpy(), windows)


LOADERS: dict[str, Callable[[str, Path, dict[str, Any], int], Segment]] = {
    **dict.fromkeys(("ours-fp32", "ours-bf16", "ours-int8", "ours-windows"), load_ours),
    **dict.fromkeys(("torch-one-pass", "protocol"), load_torch),
    "monai": load_monai,
    "nnunet": load_nnunet,
}
