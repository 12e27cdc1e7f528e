"""A MONAI bundle from an artifact: MONAI's own transforms, inferer and evaluator around the same ONNX file.

    DIR/configs/metadata.json     what the network takes and gives, with the model card
    DIR/configs/inference.json    python -m monai.bundle run --config_file DIR/configs/inference.json ...
    DIR/models/model.onnx         the artifact, byte for byte
    DIR/scripts/bundle_model.py   its orientation and sampling grid, and ONNX Runtime as a torch module
    DIR/docs/README.md, DIR/LICENSE

MONAI's own resampling (Spacingd) has another grid and no anti-aliasing, with which labels of the left atrium differ on
0.1 to 0.6 % of the voxels: hence the script, which needs no seg-toolkit. Where the largest component is kept, of two
equally large ones it may be the other.
"""

import json
import shutil
import tempfile
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from seg.infer import __version__
from seg.infer.artifact import Artifact, load
from seg.infer.atomic import output_error
from seg.infer.cards import card_text
from seg.infer.errors import Exit, SegError
from seg.infer.outputs import refuse_parent
from seg.infer.spec import ModelSpec

SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
MONAI = "1.6.1"  # the version that the tests run it with
SCRIPT = "bundle_model.py"
METADATA = Path("configs", "metadata.json")


def refuse_bundle(folder: str, overwrite: bool) -> None:
    """Raise unless `folder` can be made, or is a bundle that may be replaced.

    Raises
    ------
    SegError : E-OUT-DIR, E-OUT-EXISTS.
    """
    refuse_parent(folder)
    if not Path(folder).exists() or (overwrite and (Path(folder) / METADATA).is_file()):
        return
    fix = "choose another name" if overwrite else "choose another name, or for a bundle pass --overwrite"
    raise SegError("E-OUT-EXISTS", Exit.OUTPUT, folder, "already exists", fix)


def write_bundle(path: str, folder: str, *, overwrite: bool = False) -> None:
    """Write the bundle; the folder appears whole or not at all.

    Parameters
    ----------
    path : .onnx artifact.
    folder : the bundle, which must not be there.
    overwrite : replace a bundle, but no other folder.

    Raises
    ------
    SegError : E-BUNDLE-ONNX for another kind of artifact, E-MODEL-*, E-OUT-EXISTS, E-OUT-*.
    """
    artifact = load(path)
    if not path.endswith(".onnx"):
        fix = "give the .onnx artifact it was built from"
        raise SegError("E-BUNDLE-ONNX", Exit.USAGE, path, "is no ONNX file", fix, "an .onnx artifact")
    target = Path(folder)
    refuse_bundle(folder, overwrite)
    try:
        with tempfile.TemporaryDirectory(prefix=".seg-export-", dir=target.parent) as hidden:
            draft = Path(hidden) / "bundle"
            for part in ("configs", "models", "scripts", "docs"):
                (draft / part).mkdir(parents=True)
            shutil.copyfile(path, draft / "models" / "model.onnx")
            shutil.copyfile(Path(__file__).with_name(SCRIPT), draft / "scripts" / SCRIPT)
            (draft / "scripts" / "__init__.py").write_text("")
            _write_json(draft / METADATA, bundle_metadata(artifact))
            _write_json(draft / "configs" / "inference.json", inference(artifact.spec))
            (draft / "docs" / "README.md").write_text(readme(artifact.spec), encoding="utf-8")
            (draft / "LICENSE").write_text(f"{artifact.spec.card.get('license') or 'not stated'}\n", encoding="utf-8")
            if target.exists():
                target.rename(Path(hidden) / "before")
            draft.rename(target)
    except OSError as error:
        raise output_error(folder, error) from error


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=4, ensure_ascii=False) + "\n", encoding="utf-8")


def inference(spec: ModelSpec) -> dict[str, Any]:
    """configs/inference.json, with the names that MONAI's tools look for."""
    return {
        "imports": ["$import glob", "$import os", "$import sys"],
        "bundle_root": "$os.getcwd()",
        "dataset_dir": "$@bundle_root + '/data'",
        "output_dir": "$@bundle_root + '/eval'",
        "device": "cpu",
        "images": "$sorted(glob.glob(os.path.join(@dataset_dir, '*.nii*')))",
        "initialize": ["$sys.path.insert(0, @bundle_root)"],
        "network_def": {
            "_target_": "scripts.bundle_model.OnnxNetwork",
            "path": "$@bundle_root + '/models/model.onnx'",
            "device": "@device",
        },
        "preprocessing": {"_target_": "Compose", "transforms": _before(spec)},
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': path} for path in @images]",
            "transform": "@preprocessing",
        },
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "shuffle": False},
        "inferer": _inferer(spec),
        "postprocessing": {"_target_": "Compose", "transforms": _after(spec)},
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "$torch.device(@device)",
            "val_data_loader": "@dataloader",
            "network": "@network_def",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
        },
        "run": ["$@evaluator.run()"],
    }


def _before(spec: ModelSpec) -> list[dict[str, Any]]:
    """From a file to the network's input, in the order of `seg.infer.preprocess`."""
    norm = spec.normalisation
    steps: list[dict[str, Any]] = [
        {"_target_": "LoadImaged", "keys": "image", "reader": "NibabelReader"},
        {"_target_": "EnsureChannelFirstd", "keys": "image"},
        {"_target_": "scripts.bundle_model.SlicesLastd", "keys": "image"}
        if spec.orientation == "slices"
        else {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS", "labels": None},
    ]
    for above, limit in ((True, norm.lower), (False, norm.upper)):
        if limit is not None:
            steps.append(
                {"_target_": "ThresholdIntensityd", "keys": "image", "threshold": limit, "above": above, "cval": limit}
            )
    scale = {"subtrahend": norm.mean, "divisor": norm.std} if norm.kind == "fixed" else {"channel_wise": True}
    return [
        *steps,
        {"_target_": "NormalizeIntensityd", "keys": "image", **scale},
        {"_target_": "scripts.bundle_model.ToModelGridd", "keys": "image", "spacing": list(spec.spacing)},
        {"_target_": "SpatialPadd", "keys": "image", "spatial_size": list(spec.window)}
        if spec.tiling == "window"
        else {"_target_": "DivisiblePadd", "keys": "image", "k": list(spec.stride)},
    ]


def _inferer(spec: ModelSpec) -> dict[str, Any]:
    """The whole scan in one pass, as seg-infer does it; windows for networks that take their own window alone."""
    if spec.tiling == "window":
        return {
            "_target_": "SlidingWindowInferer",
            "roi_size": list(spec.window),
            "overlap": 0.5,
            "mode": "gaussian",
        }
    return {"_target_": "SimpleInferer"}


def _after(spec: ModelSpec) -> list[dict[str, Any]]:
    """From logits to the mask's file: back on the scan's grid first, labels then."""
    steps: list[dict[str, Any]] = [
        {
            "_target_": "Invertd",
            "keys": "pred",
            "transform": "@preprocessing",
            "orig_keys": "image",
            "nearest_interp": False,
            "to_tensor": True,
        },
        {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
    ]
    classes = list(range(len(spec.labels)))
    if spec.largest_component:
        steps.append(
            {
                "_target_": "KeepLargestConnectedComponentd",
                "keys": "pred",
                "applied_labels": classes[1:],
                "is_onehot": False,
                "independent": True,
            }
        )
    if list(spec.label_values) != classes:
        steps.append(
            {
                "_target_": "MapLabelValued",
                "keys": "pred",
                "orig_labels": classes,
                "target_labels": list(spec.label_values),
            }
        )
    save = {
        "_target_": "SaveImaged",
        "keys": "pred",
        "output_dir": "@output_dir",
        "output_postfix": "seg",
        "output_dtype": "$np.uint8" if max(spec.label_values) < 256 else "$np.uint16",
        "separate_folder": False,
        "resample": False,
    }
    return [*steps, save]


def bundle_metadata(artifact: Artifact) -> dict[str, Any]:
    """configs/metadata.json."""
    spec, card = artifact.spec, artifact.spec.card
    size = [f"{s}*n" if s > 1 else "*" for s in spec.stride]
    if spec.tiling == "window":
        size = list(map(str, spec.window))
    common = {"type": "image", "spatial_shape": size, "dtype": "float32", "is_patch_data": spec.tiling == "window"}
    image = {
        **common,
        "format": "magnitude",
        "modality": spec.channels[0],
        "num_channels": len(spec.channels),
        "value_range": [],
        "channel_def": {str(k): name for k, name in enumerate(spec.channels)},
    }
    logits = {
        **common,
        "format": "segmentation",
        "num_channels": len(spec.labels),
        "value_range": [],
        "channel_def": {str(k): name for k, name in enumerate(spec.labels)},
    }
    return {
        "schema": SCHEMA,
        "version": __version__,
        "changelog": {__version__: "exported by seg-toolkit"},
        "monai_version": MONAI,
        "pytorch_version": spec.versions.get("torch", ""),
        "numpy_version": metadata.version("numpy"),
        "required_packages_version": {
            "nibabel": metadata.version("nibabel"),
            "onnxruntime": metadata.version("onnxruntime"),
            "pytorch-ignite": "0.5.5",
            **({"scikit-image": "0.26.0"} if spec.largest_component else {}),
        },
        "name": spec.name,
        "task": f"segmentation of {', '.join(spec.labels[1:])}",
        "description": str(card.get("limits") or f"segments {', '.join(spec.labels[1:])}"),
        "authors": "",
        "copyright": str(card.get("license") or ""),
        "data_source": str(card.get("data") or ""),
        "data_type": "nibabel",
        "intended_use": str(card.get("notice") or ""),
        "eval_metrics": {
            label: found["dice"] for label, found in card.get("validation", {}).get("mean", {}).items() if found
        },
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": logits}},
        "seg_spec": asdict(spec),
    }


def readme(spec: ModelSpec) -> str:
    """docs/README.md."""
    packages = "monai nibabel onnxruntime pytorch-ignite" + (" scikit-image" if spec.largest_component else "")
    return f"""# {spec.name}

```
{card_text(spec)}
```

```
pip install {packages}
python -m monai.bundle run --config_file BUNDLE/configs/inference.json --meta_file BUNDLE/configs/metadata.json \\
    --bundle_root BUNDLE --dataset_dir SCANS --output_dir MASKS
```

`SCANS` holds NIfTI files; each mask lies on its scan's grid. `models/model.onnx` is also what `seg-infer -m` takes.
"""
