"""Methods by name. To add one: a file with a `Config` and a `Method`, and a row here."""

from .base import Batch, Method, MethodConfig
from .bcp import Bcp
from .caml import Caml
from .crossmatch import PRESETS as CROSSMATCH_PRESETS
from .crossmatch import CrossMatch
from .dmd import Dmd
from .dtc import Dtc
from .fixmatch import FixMatch
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
}

PRESETS: dict[str, dict[str, dict[str, object]]] = {"crossmatch": CROSSMATCH_PRESETS}

__all__ = ["METHODS", "PRESETS", "Batch", "Method", "MethodConfig"]
