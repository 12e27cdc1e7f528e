"""How one scan is computed: plan, network, and what is done to the mask. The options are those of the command line."""

import resource
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .artifact import Artifact
from .backends import ONNX_ENGINES, Backend, engine_for, open_backend
from .components import keep_largest
from .errors import Exit, SegError
from .intensity import check_intensities
from .machine import available_memory, usable_threads
from .nifti import NiftiHeader
from .plan import Plan, TilingOptions, plan_scan
from .predict import segment
from .preprocess import Grids
from .scan import Scan
from .spec import ModelSpec
from .volume import Shape3, spacing_of

MEMORY_SHARE = 0.9  # of what is free now; other processes go on
COMPONENT_BYTES = 9  # a voxel while components are found: numbers of parts, what differs, two arrays of labels
MOST_COARSE = 16  # slices of 10 mm for a model at 0.625 mm; beyond it the network would see interpolation alone
MOST_FINE = 32  # along all axes: 0.03 mm for a model at 1 mm; a whole scan of those is a few voxels to the network


@dataclass(frozen=True)
class ComputeOptions:
    """What may change a mask, or the way to it.

    Attributes
    ----------
    precision : "auto" computes in the precision of the artifact, and takes a shipped model's int8 form on the CPU.
    threads : 0 takes all that the process may use.
    max_memory : bytes the process may use, None: what is free.
    mirror : average over the mirrorings that training had (see `mirrored_axes`).
    largest_component : keep the largest connected part of each class; None does as the model says.
    probabilities : keep the probability of each class too.
    force_intensity : compute even where the intensities cannot be those the model was made for.
    """

    tiling: TilingOptions = field(default_factory=TilingOptions)
    precision: Literal["auto", "fp32", "bf16", "int8"] = "auto"
    threads: int = 0
    max_memory: int | None = None
    mirror: bool = False
    largest_component: bool | None = None
    probabilities: bool = False
    force_intensity: bool = False


@dataclass(frozen=True, eq=False)
class Computed:
    """One scan's result.

    Attributes
    ----------
    labels : (X, Y, Z) label values.
    probabilities : (X, Y, Z, K - 1) uint8 of 255, or None.
    plan : what was followed.
    dropped : voxels of parts that are not the largest of their class, where those alone were kept.
    """

    labels: NDArray[np.unsignedinteger]
    probabilities: NDArray[np.uint8] | None
    plan: Plan
    dropped: int = 0


def stored_precision(spec: ModelSpec) -> str:
    """ "fp32" or "int8": what the artifact was exported as."""
    return str(spec.card.get("precision", "fp32"))


def largest_component(spec: ModelSpec, options: ComputeOptions) -> bool:
    """Whether the largest part of each class alone is kept: as the user says, else as the model does."""
    return spec.largest_component if options.largest_component is None else options.largest_component


def mirrored_axes(artifact: Artifact, options: ComputeOptions) -> tuple[int, ...]:
    """Axes of the network's grid over whose mirrorings the mean is taken: those of training, if the user asks.

    Raises
    ------
    SegError : E-TTA when training mirrored nothing, or that is not known: a network may find nothing in such a scan.
    """
    if not options.mirror:
        return ()
    if trained := artifact.spec.mirror:
        return trained
    found, fix = "does not say which mirrorings it was trained with", "leave --tta out, or export the run again"
    if trained == ():
        found, fix = "was trained without mirroring", "leave --tta out, or train with --set augmentation.mirror=[0]"
    raise SegError("E-TTA", Exit.USAGE, artifact.path, found, fix)


def blends_features(artifact: Artifact, options: ComputeOptions) -> bool:
    """Whether the features are blended instead of the logits: fewer planes for the same labels."""
    head = artifact.head
    return head is not None and head.weight.shape[1] < head.weight.shape[0] and options.tiling.blend == "logit"


def load_network(
    artifact: Artifact, device: str, options: ComputeOptions, shape: tuple[int, ...] | None = None
) -> Backend:
    """The network of an artifact, ready to compute as the options ask. Raises SegError as `open_backend`.

    Parameters
    ----------
    shape : (N, C, X, Y, Z) of the windows, where it is known that all have it.
    """
    engine = engine_for(artifact.path, device)
    output = "features" if blends_features(artifact, options) else "logits"
    asked = options.precision if options.precision in ("fp32", "bf16") else "auto"
    precision = "fp32" if asked == "auto" and engine in ONNX_ENGINES else asked  # engines' own default is faster
    settings: dict[str, Any] = {"precision": precision, "threads": options.threads, "output": output}
    if engine == "openvino":
        settings["shape"] = shape
    return open_backend(engine, artifact.path, device, **settings)


def refuse_other_kind(spec: ModelSpec, path: str, channels: int, shape: Shape3) -> None:
    """Raise SegError, E-CHANNELS or E-GEO-2D, for a scan that is not of the kind a model takes."""
    takes = spec.channels
    if channels != len(takes):
        fix = "choose the model made for this kind of scan"
        if channels == 1:
            fix = "give them in this order as the volumes of one 4D NIfTI file, or choose the model made for this scan"
        expected = f"{len(takes)}: {', '.join(takes)}"
        raise SegError("E-CHANNELS", Exit.INPUT_REFUSED, path, f"{channels} channels", fix, expected)
    if spec.dims == 3 and min(shape) == 1:
        found, fix = f"is one slice, {' x '.join(map(str, shape))} voxels", "give the whole scan"
        raise SegError("E-GEO-2D", Exit.INPUT_REFUSED, path, found, fix, "a 3D scan for this model")


def plan_header(header: NiftiHeader, artifact: Artifact, options: ComputeOptions, *, at_a_time: int = 1) -> Plan:
    """The plan of one scan, from its header.

    Parameters
    ----------
    at_a_time : scans in memory together.

    Raises
    ------
    SegError : E-CHANNELS, E-GEO-2D, E-GEO-COARSE, E-GEO-FINE, E-LIMIT-MEMORY.
    """
    found = header.channels
    refuse_other_kind(artifact.spec, header.path, found, header.shape)
    _refuse_other_scale(header, artifact.spec)
    voxels = int(np.prod(header.shape))
    maps = voxels * (len(artifact.spec.labels) - 1) if options.probabilities else 0
    extra = min(2, at_a_time) * maps  # those of the scan before are still being written
    extra += COMPONENT_BYTES * voxels if largest_component(artifact.spec, options) else 0
    width = artifact.head.weight.shape[1] if artifact.head and blends_features(artifact, options) else None
    return plan_scan(
        header.shape,
        header.affine,
        artifact.spec,
        options.tiling,
        memory_bytes=options.max_memory or int(MEMORY_SHARE * available_memory()) + _resident(),
        scan_bytes=at_a_time * voxels * found * min(4, header.dtype.itemsize) + extra,
        channels_out=width or len(artifact.spec.labels),
        features=width is not None,
        precision="bf16" if options.precision == "bf16" else stored_precision(artifact.spec),
        threads=options.threads or usable_threads(),
        passes=2 ** len(mirrored_axes(artifact, options)),
    )


def _refuse_other_scale(header: NiftiHeader, spec: ModelSpec) -> None:
    """Voxels of 50 mm for a model at 1 mm are a wrong header, and would be resampled to a grid of days.

    So are those of 0.001 mm (metres taken for mm), of which the network would see one.
    """
    grids = Grids.of(header.shape, header.affine, spec)
    finer = max(network / scan for network, scan in zip(grids.network, grids.scan, strict=True))
    sizes = " x ".join(f"{mm:.4g}" for mm in spacing_of(header.affine))
    if finer * MOST_FINE < 1:
        found = f"voxels of {sizes} mm, of which the model takes {1 / finer:.0f} or more as one along every axis"
        fix = "correct the voxel sizes in the header"
        raise SegError("E-GEO-FINE", Exit.INPUT_REFUSED, header.path, found, fix, f"at most {MOST_FINE}")
    if finer > MOST_COARSE:
        raise SegError(
            "E-GEO-COARSE",
            Exit.INPUT_REFUSED,
            header.path,
            f"voxels of {sizes} mm, along one axis {finer:.0f} times those the model works on",
            "correct the voxel sizes in the header, or give a finer scan",
            f"at most {MOST_COARSE} times",
        )


def compute(
    scan: Scan, artifact: Artifact, engine: Backend, options: ComputeOptions, *, at_a_time: int = 1
) -> Computed:
    """Segment one scan.

    Raises
    ------
    SegError : E-CHANNELS, E-INTENSITY, E-LIMIT-MEMORY, E-NONFINITE, E-EXTRA.
    """
    spec, volume = artifact.spec, scan.volume
    header = scan.header
    if not options.force_intensity:
        check_intensities(volume, spec, header.path)
    plan = plan_header(_as_read(header, volume.voxels.shape[0]), artifact, options, at_a_time=at_a_time)
    maps = np.zeros((*volume.shape, len(spec.labels) - 1), np.uint8, order="F") if options.probabilities else None
    try:
        labels = segment(
            volume,
            replace(spec, largest_component=False),
            engine,
            tiling=plan.tiling,
            head=artifact.head if blends_features(artifact, options) else None,
            mirror=mirrored_axes(artifact, options),
            batch=getattr(engine, "batch", 1),
            probabilities=maps,
        )
    except SegError as error:
        if error.code == "E-NONFINITE":
            error.fix = _more_exactly(spec, options)
        raise
    dropped = 0
    if largest_component(spec, options):
        found, labels = labels, keep_largest(labels)
        dropped = int(np.count_nonzero(found != labels))
    return Computed(labels, maps, plan, dropped)


def _more_exactly(spec: ModelSpec, options: ComputeOptions) -> str:
    """What to do about a number that became NaN or infinite: compute in fp32, where that was not done."""
    if options.precision == "bf16":
        return "leave --precision bf16 out"
    return "export the model again" if stored_precision(spec) == "fp32" else "use the fp32 form of the model"


def _as_read(header: NiftiHeader, channels: int) -> NiftiHeader:
    """The header with the number of volumes that were read (one of several, with --volume)."""
    return header if header.channels == channels else replace(header, channels=channels)


def _resident() -> int:
    """Bytes of memory this process holds now."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except (OSError, IndexError, ValueError):
        return 0
