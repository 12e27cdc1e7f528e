"""The trainings that make a table: what a row is called, and what that trains.

A row is written METHOD[:PRESET][@NETWORK][,OPTION=VALUE...], such as ``crossmatch:fast@hstf_s,eta=0.1``; without a
network it trains that of --network.
"""

import json
import re
from dataclasses import dataclass
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Row:
    """One training.

    Attributes
    ----------
    method : name, preset, network and changed options (see the module's docstring).
    labels : labelled cases, or ``all``.
    """

    method: str
    labels: int | str
    seed: int

    @property
    def folder(self) -> str:
        """Name of its run folder."""
        return f"{self.method.replace(':', '-').replace(',', '-')}_{self.labels}_seed{self.seed}"


class Recipe(NamedTuple):
    """What a row trains; `preset` and `network` are None where it does not name one."""

    method: str
    preset: str | None
    network: str | None
    options: dict[str, Any]


def parse_method(text: str) -> Recipe:
    """ "crossmatch:paper@hstf,eta=0.1" -> its parts; values of options are JSON, or else strings."""
    head, _, changes = text.partition(",")
    head, _, network = head.partition("@")
    name, _, preset = head.partition(":")
    return Recipe(name, preset or None, network or None, parse_options(changes))


def parse_options(text: str) -> dict[str, Any]:
    """ "eta=0.1,rounds=[0.5,0.8]" -> options; commas within brackets belong to the value."""
    options: dict[str, Any] = {}
    for change in filter(None, re.split(r",(?![^\[]*\])", text)):
        key, equals, value = change.partition("=")
        if not equals:
            raise SystemExit(f"{text}: {change!r} is not NAME=VALUE")
        try:
            options[key] = json.loads(value)
        except ValueError:
            options[key] = value
    return options


def preset_options(method: str, preset: str | None, network: str) -> dict[str, Any]:
    """What a preset sets on a network, by option; nothing without a preset."""
    from seg.train.methods import default_options
    from seg.train.networks import NETWORKS

    built: Any = NETWORKS[network]
    return default_options(method, preset, built.dims) if preset else {}


def config_of(text: str, network: str = "vnet") -> Any:
    """The method's configuration on the row's network, else on `network`: defaults, preset, changes.

    Raises
    ------
    SystemExit : for an unknown method, preset or network, and for an option that does not exist or does not fit.
    """
    from seg.infer.errors import SegError
    from seg.train.methods import METHODS, PRESETS, default_options
    from seg.train.networks import NETWORKS
    from seg.train.settings import override

    method, preset, own, changes = parse_method(text)
    if method not in METHODS or (preset is not None and preset not in PRESETS.get(method, {})):
        raise SystemExit(f"{text}: choose from {', '.join(METHODS)} and their presets")
    if (own or network) not in NETWORKS:
        raise SystemExit(f"{own or network}: choose from the networks {', '.join(NETWORKS)}")
    built: Any = NETWORKS[own or network]
    try:
        return override(METHODS[method].Config(), default_options(method, preset, built.dims) | changes, text)
    except SegError as error:
        raise SystemExit(str(error)) from None
