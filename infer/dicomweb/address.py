"""Words that name a place in a PACS: ``dicomweb://HOST[:PORT][/PREFIX][/studies/UID[/series/UID]]``.

``dicomwebs://`` is the same over TLS, the certificate verified; ``https://`` and ``http://`` are other words for the
two, as a viewer or an archive shows them. PREFIX is where the archive has its DICOMweb service, ``dicom-web`` for
Orthanc. A name, a password or a token in the address is refused: a command line is seen by all users of the machine.
"""

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from ..errors import Exit, SegError

SCHEMES = {"dicomweb": "http", "dicomwebs": "https", "http": "http", "https": "https"}
_UID = r"[0-9]+(?:\.[0-9]+)*"
_PATH = re.compile(
    r"(?P<prefix>(?:/(?!studies(?:/|$)|\.\.?(?:/|$))[A-Za-z0-9_.~-]+)*)"
    rf"(?:/studies/(?P<study>{_UID})(?:/series/(?P<series>{_UID}))?)?/?"
)
_HOST = re.compile(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]+")


@dataclass(frozen=True)
class Address:
    """A place in a PACS.

    Attributes
    ----------
    text : as the user typed it.
    root : URL of the DICOMweb service, without a slash at the end.
    study, series : UIDs, or "".
    """

    text: str
    root: str
    study: str = ""
    series: str = ""

    @property
    def host(self) -> str:
        """Its name or number."""
        return urlsplit(self.root).hostname or ""

    @property
    def encrypted(self) -> bool:
        """Whether it is reached over TLS."""
        return self.root.startswith("https:")

    @property
    def local(self) -> bool:
        """Whether it is this machine."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def is_address(word: str) -> bool:
    """Whether a command-line word is such an address and no path."""
    scheme, colon, _ = word.partition("://")
    return bool(colon) and scheme.lower() in SCHEMES


def holds_name(word: str) -> bool:
    """Whether an address may have a name or password in it, wherever its @ is."""
    return "@" in unquote(word)


def presentable(word: str) -> str:
    """A command-line word as records have it: an address that may hold a secret is its scheme alone."""
    secret = is_address(word) and (holds_name(word) or "?" in word or "#" in word)
    return f"{word.partition('://')[0]}://" if secret else word


def parse_address(word: str) -> Address:
    """The parts of an address.

    Raises
    ------
    SegError : E-WEB-ADDRESS, exit 2. The message does not repeat what may be a password.
    """
    if holds_name(word):  # before anything is taken apart: a password may hold what ends a host
        raise _wrong("", "an address with a name or password is seen by all users", "put them into ~/.netrc")
    if "?" in word or "#" in word:
        raise _wrong("", "an address with a query may hold a secret that is seen by all users")
    try:
        parts = urlsplit(word)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise _wrong(word, "has a port that is no number, or a bracket too few") from None
    path = _PATH.fullmatch(parts.path)
    if path is None or _HOST.fullmatch(host) is None:
        raise _wrong(word, "is no address of a DICOMweb service, study or series")
    name = f"[{host}]" if ":" in host else host
    root = f"{SCHEMES[parts.scheme]}://{name}{f':{port}' if port else ''}{path['prefix']}"
    return Address(word, root, path["study"] or "", path["series"] or "")


def _wrong(word: str, found: str, fix: str = "") -> SegError:
    example = "write dicomwebs://HOST/PREFIX/studies/UID/series/UID"
    return SegError("E-WEB-ADDRESS", Exit.USAGE, word, found, fix or example)
