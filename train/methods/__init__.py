"""Methods by name. To add one: a file with a `Config` and a `Method`, and a row here."""

from .base import Batch, Method, MethodConfig
from .crossmatch import PRESETS as CROSSMATCH_PRESETS
from .crossmatch import CrossMatch
from .distill import Distill
from .supervised import Supervised

METHODS: dict[str, type[Method]] = {"supervised": Supervised, "crossmatch": CrossMatch, "distill": Distill}

PRESETS: dict[str, dict[str, dict[str, object]]] = {"crossmatch": CROSSMATCH_PRESETS}

__all__ = ["METHODS", "PRESETS", "Batch", "Distill", "Method", "MethodConfig"]
