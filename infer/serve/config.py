"""What a node may do: whom it listens to, which model it runs on what, how much it may take.

One TOML file; the names are those of the dataclasses below, the lists are `[[peer]]` and `[[rule]]`. A name or type
that is not known is an error, so that a misspelt limit is never a limit that does not hold.
"""

import ipaddress
import socket
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..errors import Exit, SegError

LOOPBACK = "127.0.0.1"
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True)
class Peer:
    """An application that may send to this node, and to which results may go.

    Attributes
    ----------
    aet : its AE title, 1 to 16 characters.
    host, port : where it listens; port 0: it sends only.
    addresses : networks it sends from; empty: the addresses of `host`.
    tls : it is called over TLS, its certificate checked against `Tls.authority`.
    """

    aet: str
    host: str
    port: int = 0
    addresses: tuple[str, ...] = ()
    tls: bool = False


@dataclass(frozen=True)
class Rule:
    """Which series a model is for: patterns with * and ?, upper and lower case alike; "" is any."""

    model: str
    modality: str = ""
    description: str = ""
    body_part: str = ""


@dataclass(frozen=True)
class Limits:
    """What is refused, whoever asks.

    Attributes
    ----------
    associations : at a time.
    object_megabytes : of one received object.
    store_megabytes : of all objects kept.
    free_megabytes : that stay free on the disk.
    runs : starts of one segmentation that end without an answer (a killed process).
    sends : failed deliveries of one result until it is set aside.
    """

    associations: int = 10
    object_megabytes: int = 2048
    store_megabytes: int = 50_000
    free_megabytes: int = 1024
    runs: int = 5
    sends: int = 200


@dataclass(frozen=True)
class Waits:
    """Seconds.

    Attributes
    ----------
    released : from the orderly end of a series' associations until it counts as complete.
    quiet : the same while an association is still open and says nothing.
    cut : the same after an association that broke: time for the sender to try again.
    network : silence, or the duration of one message unit, after which a connection is dropped.
    retry : before the first repetition of a failed delivery; doubled each time, up to an hour.
    """

    released: float = 5.0
    quiet: float = 60.0
    cut: float = 300.0
    network: float = 30.0
    retry: float = 5.0


@dataclass(frozen=True)
class Tls:
    """PEM files: this node's certificate and key, and the authority that signed the peers' certificates."""

    certificate: str
    key: str
    authority: str


@dataclass(frozen=True)
class Config:
    """All of it.

    Attributes
    ----------
    state : folder of the queue and the objects; nobody else may read it.
    peers, rules : see there; the first rule that fits a series decides.
    aet, host, port : of this node.
    http_port : of /healthz, /metrics and /queue, on loopback only.
    send_to : AE title of the peer that gets the results; "": the one that sent the series.
    keep_hours : how long inputs stay after their job has ended; a slice that comes later can be joined to them.
    plaintext : listen beyond loopback without TLS: patient data and AE titles then cross that network readable.
    """

    state: Path
    peers: tuple[Peer, ...]
    rules: tuple[Rule, ...]
    aet: str = "SEG"
    host: str = LOOPBACK
    port: int = 11112
    http_port: int = 11113
    send_to: str = ""
    keep_hours: float = 24.0
    plaintext: bool = False
    tls: Tls | None = None
    limits: Limits = field(default_factory=Limits)
    waits: Waits = field(default_factory=Waits)

    def peer(self, aet: str) -> Peer | None:
        """The peer of this AE title."""
        return next((peer for peer in self.peers if peer.aet == aet), None)

    def receiver(self, sender: str) -> Peer | None:
        """Where the result of a series from `sender` goes."""
        return self.peer(self.send_to or sender)


def read_config(path: str) -> Config:
    """Read and check a TOML file. Raises SegError E-SERVE-CONFIG (exit 2)."""
    try:
        with open(path, "rb") as file:
            content = tomllib.load(file)
        return parse_config(content)
    except OSError as error:
        raise _wrong(f"cannot be read ({error.strerror})", path) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, ValueError) as error:
        raise _wrong(str(error), path) from error


def parse_config(content: Mapping[str, Any]) -> Config:
    """A parsed TOML file as `Config`. Raises ValueError for what is not known or not possible."""
    whole = dict(content)
    peers = tuple(_make(Peer, item, "[[peer]]") for item in _tables(whole.pop("peer", [])))
    rules = tuple(_make(Rule, item, "[[rule]]") for item in _tables(whole.pop("rule", [])))
    parts = {name: _make(kind, whole.pop(name), f"[{name}]") for name, kind in _TABLES.items() if name in whole}
    config: Config = _make(Config, {**whole, "peers": peers, "rules": rules, **parts}, "the file")
    check(config)
    return config


_TABLES: dict[str, type] = {"tls": Tls, "limits": Limits, "waits": Waits}


def check(config: Config) -> None:
    """Raise ValueError for what cannot work or must not run."""
    titles = [peer.aet for peer in config.peers]
    for aet in (config.aet, *titles):
        if not 1 <= len(aet) <= 16 or not aet.isascii() or not aet.isprintable() or "\\" in aet or aet != aet.strip():
            raise ValueError(f"{aet!r} is no AE title")
    if not titles or len(set(titles)) < len(titles):
        raise ValueError("there must be a [[peer]], and no two with the same AE title")
    if not config.rules:
        raise ValueError("there is no [[rule]]: no model for any series")
    receivers = [peer.aet for peer in config.peers if peer.port and config.send_to in ("", peer.aet)]
    if not receivers:
        raise ValueError("results have nowhere to go: no [[peer]] with a port, or send_to is none of them")
    ports = [("port", config.port), ("http_port", config.http_port), *((peer.aet, peer.port) for peer in config.peers)]
    for where, port in ports:
        if not 0 <= port <= 65535:
            raise ValueError(f"{where}: {port} is no port")
    for table in (config.limits, config.waits):
        for part in fields(table):
            if not getattr(table, part.name) > 0:
                raise ValueError(f"{part.name} must be above 0")
    _check_network(config)


def _check_network(config: Config) -> None:
    if any(peer.tls for peer in config.peers) and config.tls is None:
        raise ValueError("a peer has tls = true, but there is no [tls] with certificate, key and authority")
    if not ipaddress.ip_address(config.host).is_loopback and config.tls is None and not config.plaintext:
        raise ValueError(
            f"host {config.host} is seen by others: give [tls] with certificate, key and authority, "
            "or plaintext = true where the network itself is protected"
        )
    for peer in config.peers:
        networks(peer)


def networks(peer: Peer) -> tuple[Network, ...]:
    """Where a peer may call from. Raises ValueError for an address that is none, or a host that is not found."""
    if peer.addresses:
        return tuple(ipaddress.ip_network(text) for text in peer.addresses)
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(peer.host, None, type=socket.SOCK_STREAM)}
    except OSError as error:
        raise ValueError(f"the host of peer {peer.aet} is not found; give its addresses") from error
    return tuple(ipaddress.ip_network(text.partition("%")[0]) for text in sorted(found))


def _tables(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError("peers and rules are lists: write [[peer]] and [[rule]]")
    return value


def _make(kind: type, values: Any, where: str) -> Any:
    """A dataclass from a table, with every name and type checked."""
    known = {part.name: part for part in fields(kind)}
    if not isinstance(values, dict) or set(values) - set(known):
        extra = ", ".join(sorted(set(values) - set(known))) if isinstance(values, dict) else repr(values)
        raise ValueError(f"{where} has {extra}; known are {', '.join(known)}")
    missing = [
        name
        for name, part in known.items()
        if part.default is MISSING and part.default_factory is MISSING and name not in values
    ]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}")
    return kind(**{name: _typed(known[name].type, value, f"{where}: {name}") for name, value in values.items()})


def _typed(kind: Any, value: Any, where: str) -> Any:
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind in (str, int, float, bool):
        if type(value) is not kind:
            raise ValueError(f"{where} is {value!r}, which is no {kind.__name__}")
        return value
    if kind == tuple[str, ...]:
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise ValueError(f"{where} is {value!r}, which is no list of texts")
        return tuple(value)
    return value


def _wrong(found: str, path: str) -> SegError:
    return SegError("E-SERVE-CONFIG", Exit.USAGE, path, found, "correct the file; docs: README, Use it with your PACS")
