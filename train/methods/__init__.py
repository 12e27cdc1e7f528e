"""Methods by name. To add one: a file with a `Config` and a `Method`, and a row here."""

from typing import Any

from .base import Batch, Method, MethodConfig
from .bcp import Bcp
from .caml import Caml
from .crossmatch import PRESETS as CROSSMATCH_PRESETS
from .crossmatch import PRESETS_2D as CROSSMATCH_PRESETS_2D
from .crossmatch import CrossMatch
from .distill import Distill
from .dmd import Dmd
from .dtc import Dtc
from .fixmatch import FixMatch
from .hstf import Hstf
from .hstf_crossmatch import PRESETS as HSTF_CROSSMATCH_PRESETS
from .hstf_crossmatch import HstfCrossMatch
from .mc_net import McNet, McNetPlus
from .sassnet import SassNet
from .ss_net import SsNet
from .supervised import Supervised
from .ua_mt import UaMt
from .unimatch import UniMatch
from .urpc import Urpc

METHODS: dict[str, type[Method]] = {
    "supervised": Supervised,
    "ua_mt": UaMt,
    "sassnet": SassNet,
    "dtc": Dtc,
    "mc_net": McNet,
    "mc_net_plus": McNetPlus,
    "urpc": Urpc,
    "ss_net": SsNet,
    "dmd": Dmd,
    "bcp": Bcp,
    "fixmatch": FixMatch,
    "unimatch": UniMatch,
    "caml": Caml,
    "crossmatch": CrossMatch,
    "hstf": Hstf,
    "hstf_crossmatch": HstfCrossMatch,
    "distill": Distill,
}

PRESETS: dict[str, dict[str, dict[str, object]]] = {
    "crossmatch": CROSSMATCH_PRESETS,
    "hstf_crossmatch": HSTF_CROSSMATCH_PRESETS,
}

PRESETS_2D: dict[str, dict[str, dict[str, object]]] = {**PRESETS, "crossmatch": CROSSMATCH_PRESETS_2D}

SLICES = 12  # of each kind in a batch, where no preset says otherwise: the papers' 12 + 12

__all__ = ["METHODS", "PRESETS", "PRESETS_2D", "Batch", "Distill", "Method", "MethodConfig", "default_options"]


def default_options(method: str, preset: str | None, dims: int) -> dict[str, Any]:
    """What a preset and the number of dimensions change in `Method.Config`. Raises KeyError without such a preset."""
    named = (PRESETS if dims == 3 else PRESETS_2D).get(method, {})
    options: dict[str, Any] = dict(named[preset]) if preset else {}
    if dims == 2:
        defaults = METHODS[method].Config()
        batches = {"labeled_batch": SLICES, "unlabeled_batch": SLICES if defaults.unlabeled_batch else 0}
        options = batches | options
    return options
