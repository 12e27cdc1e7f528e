"""From a run folder to what is exported: the deployed network, its spec and its card."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from seg.infer.spec import ModelSpec
from seg.train.job import trained_method
from seg.train.run import read_json

NOTICE = "Research software, not a medical device."


def load_run(folder: Path, card: dict[str, Any] | None = None) -> tuple[nn.Module, ModelSpec]:
    """The student of a run, and its spec with the model card.

    Parameters
    ----------
    card : further entries of the card: data, license, limits.

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
    }
    validation = read_json(folder / "validation.json") or {}
    summary = {"scans": len(validation.get("cases", {})), "mean": _rounded(validation.get("mean", {}))}
    entries = {"license": config["license"], "notice": NOTICE, "training": training, "validation": summary}
    return method.deployed(), replace(spec, card={**entries, **(card or {})})


def _rounded(mean: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    return {label: {name: round(value, 4) for name, value in metrics.items()} for label, metrics in mean.items()}
