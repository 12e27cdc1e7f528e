"""Methods by name. To add one: a file with a `Config` and a `Method`, and a row here."""

from typing import Any

from .base import Batch, Method, MethodConfig
from .crossmatch import PRESETS as CROSSMATCH_PRESETS
from .crossmatch import PRESETS_2D as CROSSMATCH_PRESETS_2D
from .crossmatch import CrossMatch
from .supervised import Supervised

METHODS: dict[str, type[Method]] = {"supervised": Supervised, "crossmatch": CrossMatch}

PRESETS: dict[str, dict[str, dict[str, object]]] = {"crossmatch": CROSSMATCH_PRESETS}

PRESETS_2D: dict[str, dict[str, dict[str, object]]] = {"crossmatch": CROSSMATCH_PRESETS_2D}

SLICES = 12  # of each kind in a batch, where no preset says otherwise: the papers' 12 + 12

__all__ = ["METHODS", "PRESETS", "PRESETS_2D", "Batch", "Method", "MethodConfig", "default_options"]


def default_options(method: str, preset: str | None, dims: int) -> dict[str, Any]:
    """What a preset and the number of dimensions change in `Method.Config`. Raises KeyError without such a preset."""
    named = (PRESETS if dims == 3 else PRESETS_2D).get(method, {})
    options: dict[str, Any] = dict(named[preset]) if preset else {}
    if dims == 2:
        defaults = METHODS[method].Config()
        batches = {"labeled_batch": SLICES, "unlabeled_batch": SLICES if defaults.unlabeled_batch else 0}
        options = batches | options
    return options
