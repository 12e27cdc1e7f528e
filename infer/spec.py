"""Contract 2, the model spec: everything about a model that is not its weights. It travels inside the artifact.

A spec plus a graph is enough to turn a scan into a mask; nothing else is looked up. `to_json` is byte-stable (sorted
keys, no whitespace), so the same spec is always the same bytes.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

FORMAT = 1  # raised only when an old reader would misread a new spec


@dataclass(frozen=True)
class Normalisation:
    """How intensities become network input: optional clipping, then (v - mean) / std.

    `zscore` takes mean and std from each scan (all voxels, after clipping); `fixed` takes them from the training set
    (CT, where the unit is Hounsfield). `lower`/`upper` clip in the scan's own unit, None means no clipping.
    """

    kind: Literal["zscore", "fixed"] = "zscore"
    lower: float | None = None
    upper: float | None = None
    mean: float = 0.0
    std: float = 1.0


@dataclass(frozen=True)
class Cost:
    """What one voxel of a pass costs, measured at export: multiply-adds, and bytes of activations at the peak."""

    macs: float = 40_000.0  # V-Net of width 16
    bytes: float = 300.0


@dataclass(frozen=True)
class Code:
    """A coded concept as DICOM has it: value, the scheme it is from ("SCT", "DCM", "99..." if private), words."""

    value: str
    scheme: str
    meaning: str

    def __post_init__(self) -> None:
        for name, longest in (("value", 16), ("scheme", 16), ("meaning", 64)):  # SH, SH and LO
            text = getattr(self, name)
            if not isinstance(text, str) or not 0 < len(text) <= longest or "\\" in text or not text.isprintable():
                raise ValueError(
                    f"{name} of a code must be 1 to {longest} characters without backslash, found {text!r}"
                )


@dataclass(frozen=True)
class LabelCodes:
    """What a class is, in codes, for DICOM outputs.

    Attributes
    ----------
    category : such as Anatomical Structure (DICOM CID 7150).
    type : the thing itself (CID 7151).
    modifiers : of the type: laterality (CID 244), anterior, posterior.
    region : the anatomic region it lies in, where the type does not say (CID 4).
    """

    category: Code
    type: Code
    modifiers: tuple[Code, ...] = ()
    region: Code | None = None

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> "LabelCodes":
        """From parsed JSON. Raises ValueError, TypeError or KeyError."""
        modifiers = tuple(Code(**item) for item in raw.get("modifiers", ()))
        region = raw.get("region")
        parts = {name: Code(**raw[name]) for name in ("category", "type")}
        if unknown := sorted(set(raw) - {"category", "type", "modifiers", "region"}):
            raise ValueError(f"codes of a label have unknown fields {unknown}")
        return cls(**parts, modifiers=modifiers, region=None if region is None else Code(**region))


@dataclass(frozen=True)
class ModelSpec:
    """Frozen description of a model.

    Attributes
    ----------
    name : short name, as in ``-m hippocampus``.
    labels : class names; index is the channel of the logits, 0 is background.
    label_values : the value written into a mask for each class (0..K-1 unless the data set differs, as BraTS does).
    channels : input channel names, in order.
    spacing : mm along R, A, S of the network's grid; None on an axis keeps the scan's own spacing there.
    orientation : axis order of the network's grid: "RAS", or "slices" (2D alone): as stored, with the axis across the
        slices last (see `Reorientation.of_slices`). For slices that are not axial, or of unknown orientation.
    normalisation : intensity rule.
    window : training window in voxels (X, Y, Z); Z is 1 for 2D networks.
    stride : every input extent must be a multiple of this, in voxels (X, Y, Z).
    dims : 2 (slices along z of the network's grid) or 3.
    activation : "softmax" (exclusive classes).
    tiling : "free" if the network was measured to keep its Dice on tiles larger than the window and its cost grows with
        the voxels alone, else "window".
    intensity_range : 0.5 and 99.5 percentile of intensities in training, or None.
    cost : per voxel of the network grid.
    largest_component : keep the largest connected part of each class alone, unless the user says otherwise.
    extent : median field of view of the training scans in mm along R, A, S, or None.
    mirror : axes of the network's grid (0, 1, 2) that training mirrored, by chance and together; None: not known.
    codes : what each label is in codes, None for one without; () for none at all. Used in DICOM outputs.
    graph_sha256 : digest of the serialised graph, checked on load.
    versions : producer versions.
    card : training summary and measured figures, free-form JSON.
    """

    name: str
    labels: tuple[str, ...]
    channels: tuple[str, ...]
    spacing: tuple[float | None, float | None, float | None]
    normalisation: Normalisation
    window: tuple[int, int, int]
    stride: tuple[int, int, int]
    label_values: tuple[int, ...] = ()
    orientation: str = "RAS"
    dims: int = 3
    activation: str = "softmax"
    tiling: str = "free"
    intensity_range: tuple[float, float] | None = None
    cost: Cost = Cost()
    codes: tuple[LabelCodes | None, ...] = ()
    largest_component: bool = False
    extent: tuple[float, float, float] | None = None
    mirror: tuple[int, ...] | None = None
    graph_sha256: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    card: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    def __post_init__(self) -> None:
        if not self.label_values:
            object.__setattr__(self, "label_values", tuple(range(len(self.labels))))
        problems = list(self._problems())
        if problems:
            raise ValueError("model spec: " + "; ".join(problems))

    def _problems(self) -> Iterator[str]:
        yield from self._kind_problems()
        yield from self._label_problems()
        yield from self._number_problems()
        yield from self._grid_problems()
        if self.format != FORMAT:
            yield f"format {self.format}, this version reads {FORMAT}"
        if not self.channels:
            yield "channels is empty"
        if self.orientation not in ("RAS", "slices") or self.activation != "softmax":
            yield f"unknown orientation or activation: {self.orientation}, {self.activation}"
        if self.orientation == "slices" and self.dims != 2:
            yield "only a 2D model takes slices as they are stored"
        kept: Any = self.largest_component
        if not isinstance(kept, bool):
            yield f"largest_component must be true or false, found {kept!r}"

    def _kind_problems(self) -> Iterator[str]:
        """What is not text, or no object, though it is JSON."""
        named: Any = (("name", [self.name]), ("labels", self.labels), ("channels", self.channels))
        for name, texts in (*named, ("versions", [*self.versions, *self.versions.values()])):
            if not all(isinstance(text, str) for text in texts):
                yield f"{name} must be text, found {texts}"
        for name in ("training", "validation", "quantisation"):
            if not isinstance(self.card.get(name, {}), dict):
                yield f"{name} in card must be an object, found {self.card[name]!r}"
                return
        if self.card.get("precision", "fp32") not in ("fp32", "bf16", "fp16", "int8"):
            yield f"precision in card must be fp32, bf16, fp16 or int8, found {self.card['precision']!r}"
        tolerance = self.card.get("quantisation", {}).get("golden_tolerance", 0.0)
        if not isinstance(tolerance, float | int) or not 0 <= tolerance < math.inf:
            yield f"golden_tolerance in card must be a number from 0, found {tolerance!r}"

    def _number_problems(self) -> Iterator[str]:
        for name, cost in (("macs", self.cost.macs), ("bytes", self.cost.bytes)):
            if not isinstance(cost, float | int) or not 0 <= cost < math.inf:
                yield f"cost.{name} must be a number from 0, found {cost!r}"
        seen = self.intensity_range
        if seen is not None and not (len(seen) == 2 and all(map(math.isfinite, seen)) and seen[0] <= seen[1]):
            yield f"intensity_range must be two numbers, the lower first, found {seen}"
        elif seen is not None and seen[0] == seen[1] and self.normalisation.kind == "fixed":
            yield f"intensity_range of fixed normalisation has no width: {seen}"
        norm = self.normalisation
        numbers = [norm.mean, norm.std, *(v for v in (norm.lower, norm.upper) if v is not None)]
        if norm.kind not in ("zscore", "fixed") or not all(map(math.isfinite, numbers)) or norm.std <= 0:
            yield f"normalisation is invalid: {norm}"

    def _label_problems(self) -> Iterator[str]:
        if len(self.labels) < 2 or len(set(self.labels)) != len(self.labels):
            yield f"labels must be two or more distinct names, found {self.labels}"
        if len(self.label_values) != len(self.labels) or len(set(self.label_values)) != len(self.label_values):
            yield f"label_values must be distinct, one per label, found {self.label_values}"
        if any(not isinstance(v, int) or not 0 <= v < 65536 for v in self.label_values) or self.label_values[0] != 0:
            yield f"label_values must be integers from 0 to 65535, the first 0, found {self.label_values}"
        if len(self.codes) not in (0, len(self.labels)):
            yield f"codes must be one per label, null for those without, found {len(self.codes)} for {len(self.labels)}"

    def _grid_problems(self) -> Iterator[str]:
        if len(self.spacing) != 3 or any(s is not None and not (math.isfinite(s) and s > 0) for s in self.spacing):
            yield f"spacing must be three positive numbers or null, found {self.spacing}"
        if not isinstance(self.dims, int) or self.dims not in (2, 3) or self.tiling not in ("free", "window"):
            yield f"dims must be 2 or 3 and tiling free or window, found {self.dims} and {self.tiling}"
        if self.extent is not None and not (len(self.extent) == 3 and all(0 < e < math.inf for e in self.extent)):
            yield f"extent must be three positive numbers, found {self.extent}"
        if self.mirror is not None and list(self.mirror) != [axis for axis in range(self.dims) if axis in self.mirror]:
            yield f"mirror must be axes below {self.dims} in order, found {self.mirror}"
        for name, extent in (("window", self.window), ("stride", self.stride)):
            if len(extent) != 3 or any(not isinstance(e, int) or e < 1 for e in extent):
                yield f"{name} must be three positive integers, found {extent}"
                return
        if any(w % s for w, s in zip(self.window, self.stride, strict=False)):
            yield f"window {self.window} is not a multiple of stride {self.stride}"
        if self.dims == 2 and (self.window[2], self.stride[2]) != (1, 1):
            yield f"a 2D model has window and stride 1 along z, found {self.window} and {self.stride}"

    def to_json(self) -> str:
        """Byte-stable JSON. Fields that came later are left out where empty: an old spec stays the same bytes."""
        later = {"codes": (), "extent": None, "largest_component": False, "mirror": None}
        content = {name: value for name, value in asdict(self).items() if name not in later or value != later[name]}
        return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> "ModelSpec":
        """Parse and validate. Raises ValueError naming the field."""
        try:
            raw = json.loads(text)
            if not isinstance(raw, dict):
                raise ValueError(f"model spec must be a JSON object, found {type(raw).__name__}")
            spec = cls.from_dict(raw)
            spec.to_json()  # refuses infinity in the card, and nesting that others would stumble over
        except RecursionError as error:
            raise ValueError("model spec is nested too deeply") from error
        return spec

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "ModelSpec":
        """The same from parsed JSON."""
        raw = dict(content)
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(raw) - known):
            raise ValueError(f"model spec has unknown fields {unknown}")
        try:
            raw["normalisation"] = Normalisation(**raw["normalisation"])
            raw["cost"] = Cost(**raw.get("cost", {}))
            lists = ("labels", "label_values", "channels", "spacing", "window", "stride")
            for name in (*lists, "intensity_range", "extent", "mirror"):
                if raw.get(name) is not None:
                    if not isinstance(raw[name], list | tuple):
                        raise TypeError(f"{name} must be a list, found {raw[name]!r}")
                    raw[name] = tuple(raw[name])
            raw["codes"] = tuple(None if item is None else LabelCodes.from_dict(item) for item in raw.get("codes", ()))
            return cls(**raw)
        except (TypeError, KeyError, AttributeError, OverflowError) as error:
            raise ValueError(f"model spec: {error}") from error
