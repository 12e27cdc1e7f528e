"""From a run folder to what is exported: the deployed network, its spec and its card."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from seg.infer.spec import ModelSpec
from seg.train.config import trained_method
from seg.train.run import read_json

NOTICE = "Research software, not a medical device."


def load_run(
    folder: Path, card: dict[str, Any] | None = None, *, largest_component: bool = False
) -> tuple[nn.Module, ModelSpec]:
    """The student of a run, and its spec with the model card.

    Parameters
    ----------
    card : further entries of the card: data, license, limits.
    largest_component : whether masks keep the largest part of each class alone; the card's figures are those of it.

    Raises
    ------
    SegError : E-RUN-NONE when the folder is not a run or holds no checkpoint.
    """
    method, config, state = trained_method(folder)
    spec = ModelSpec.from_dict(config["spec"])
    loop, split = config["loop"], config["split"]
    training = {
        "method": config["method"]["name"],
        "preset": config["method"]["preset"],
        "network": config["network"]["name"],
        "width": config["network"]["width"],
        "iterations": state["step"],
        "planned_iterations": loop["iterations"],
        "seed": loop["seed"],
        "labeled": len(split["labeled"]),
        "unlabeled": len(split["unlabeled"]) if config["method"]["options"]["unlabeled_batch"] else 0,
        "data_sha256": config["data"],
        **({"teacher": config["teacher"]} if "teacher" in config else {}),
    }
    validation = read_json(folder / "validation.json")
    if largest_component and validation is not None:
        kept = validation.get("largest_component")  # measured at the end of a run; older versions did not
        validation = validation | kept if kept else None
    summary = _summary(validation, state["step"], loop["iterations"])
    entries = {"license": config["license"], "notice": NOTICE, "training": training, "validation": summary}
    entries |= card or {}
    mirror = tuple(axis for axis in range(spec.dims) if axis in config["augmentation"]["mirror"])
    return method.deployed(), replace(spec, card=entries, largest_component=largest_component, mirror=mirror)


def remark(spec: ModelSpec) -> str | None:
    """What the user should know of an exported run: it is unfinished, or the card has no figures of it."""
    training = spec.card.get("training", {})
    done, planned = training.get("iterations", 0), training.get("planned_iterations", 0)
    parts = [f"the run is unfinished, at step {done} of {planned}"] if done < planned else []
    if spec.card.get("validation") == {}:
        what = " with the largest components" if spec.largest_component else ""
        parts.append(f"no validation of step {done}{what} is there, so the card has no figures")
    return "; ".join(parts) or None


def _summary(validation: dict[str, Any] | None, step: int, planned: int) -> dict[str, Any]:
    """The card's figures; none when they are of another step.

    Older versions wrote no step: their figures are those of the last one, so they count for a finished run alone.
    """
    if validation is None or validation.get("step", planned) != step:
        return {}
    unit = validation.get("unit", "mm")
    return {"scans": len(validation["cases"]), "mean": _rounded(validation["mean"]), "unit": unit}


def _rounded(mean: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    return {label: {name: round(value, 4) for name, value in metrics.items()} for label, metrics in mean.items()}
