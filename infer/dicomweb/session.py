"""One HTTP session with a PACS: who we are, and bounds on what it may answer.

Credentials: a bearer token from the variable SEG_DICOMWEB_TOKEN, or from the file that SEG_DICOMWEB_TOKEN_FILE names;
otherwise what ~/.netrc has for the host. They go over TLS, or to this machine, and nowhere else: the environment's
proxy is used for TLS alone, of which it sees nothing. Certificates are
verified against the system's or `certifi`'s authorities, or those in REQUESTS_CA_BUNDLE. No redirection is followed: a
PACS does not say where a connection goes.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..errors import Exit, SegError, missing_extra
from .address import Address

if TYPE_CHECKING:
    from dicomweb_client.web import DICOMwebClient
    from requests import PreparedRequest, Response

TOKEN, TOKEN_FILE = "SEG_DICOMWEB_TOKEN", "SEG_DICOMWEB_TOKEN_FILE"
TIMEOUT = (10.0, 120.0)  # seconds to connect, and of silence
CHUNK = 1 << 20
REPORTS = ("application/dicom+json", "application/json", "application/dicom+xml", "application/xml")


class TooLong(Exception):
    """An answer passed the limit, or came packed."""


@contextmanager
def connected(
    address: Address, most: int, *, chunk: int = CHUNK, watch: "Callable[[Response], None] | None" = None
) -> "Iterator[DICOMwebClient]":
    """A client of one PACS.

    Parameters
    ----------
    most : bytes that one answer may have.
    chunk : bytes sent or received at a time.
    watch : is shown every answer, of which the client gives the content alone.

    Raises
    ------
    SegError : E-EXTRA, E-WEB-AUTH.
    """
    try:
        import logging
        import warnings

        import requests
        from dicomweb_client.web import DICOMwebClient
    except ImportError as error:
        raise missing_extra("dicomweb-client", "dicomweb") from error
    for name in ("dicomweb_client", "urllib3", "retrying"):  # what they say quotes the server
        logging.getLogger(name).addHandler(logging.NullHandler())
    with requests.Session() as session, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        session.auth = _credentials(address, requests.utils.get_netrc_auth)
        session.trust_env = address.encrypted  # a proxy would see all that is not
        session.max_redirects = 0
        session.headers["Accept-Encoding"] = "identity"  # nothing here is worth packing, and a bomb is packed
        session.hooks["response"] = [bounded(most)]
        if watch is not None:
            session.hooks["response"].append(lambda response, **_: watch(response))
        client = DICOMwebClient(address.root, session=session, timeout=TIMEOUT, chunk_size=chunk)
        client.set_http_retry_params(retry=False)  # it would repeat what cannot succeed, for half a minute
        yield client


def bounded(most: int) -> "Callable[..., Response]":
    """A hook that lets an answer be read up to a limit."""

    def hook(response: "Response", *_: Any, **__: Any) -> "Response":
        length = response.headers.get("Content-Length", "0")
        if response.headers.get("Content-Encoding", "identity") != "identity" or (
            length.isdigit() and int(length) > most
        ):
            response.close()
            raise TooLong
        pieces = response.iter_content

        def iter_content(chunk_size: int | None = 1, decode_unicode: Any = False) -> Iterator[Any]:
            received = 0
            for piece in pieces(chunk_size, decode_unicode):
                received += len(piece)
                if received > most:
                    response.close()
                    raise TooLong
                yield piece

        response.iter_content = iter_content  # type: ignore[method-assign]
        _name_kind(response)
        return response

    return hook


def _name_kind(response: "Response") -> None:
    """The client knows the kinds of an answer without parameters alone, and takes others to STOW for empty.

    Raises
    ------
    ValueError : an answer to STOW that is no report.
    """
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind in REPORTS:
        response.headers["Content-Type"] = kind
    elif response.request.method == "POST" and response.ok and response.content:
        raise ValueError("no report of what was stored")


def _credentials(
    address: Address, netrc: Callable[[str], tuple[str, str] | None]
) -> "Callable[[PreparedRequest], PreparedRequest]":
    """What signs a request. Given even without credentials: otherwise requests itself would look into ~/.netrc."""
    token, known = _token(), netrc(address.root)
    if (token or known) and not (address.encrypted or address.local):
        found = "credentials would cross the network readable"
        fix = f"use dicomwebs://, or take the token or the netrc entry of {address.host} away"
        raise SegError("E-WEB-AUTH", Exit.USAGE, address.text, found, fix)
    if token:

        def sign(request: "PreparedRequest") -> "PreparedRequest":
            request.headers["Authorization"] = f"Bearer {token}"
            return request

        return sign
    if known:
        from requests.auth import HTTPBasicAuth

        return HTTPBasicAuth(*known)
    return lambda request: request


def refuse_shared_token(addresses: Sequence[Address]) -> None:
    """One token is one PACS's secret. Raises SegError E-WEB-AUTH when two would see it."""
    hosts = sorted({address.host for address in addresses})
    if len(hosts) > 1 and _token():
        found = f"one token would go to two hosts: {', '.join(hosts)}"
        fix = f"put both into ~/.netrc, and take {TOKEN} away"
        raise SegError("E-WEB-AUTH", Exit.USAGE, addresses[0].text, found, fix)


def _token() -> str:
    """The bearer token, "" if there is none. Raises SegError E-WEB-AUTH when it cannot be one."""
    token, path = os.environ.get(TOKEN, ""), os.environ.get(TOKEN_FILE, "")
    if not token and path:
        try:
            with open(path, encoding="ascii") as file:
                token = file.read(1 << 16)
        except (OSError, ValueError) as error:
            found = f"the file named by {TOKEN_FILE} cannot be read"
            raise SegError("E-WEB-AUTH", Exit.INPUT_MISSING, path, found, "give one line of text") from error
    token = token.strip()
    if not all("!" <= letter <= "~" for letter in token):
        found = "the DICOMweb token has characters that no token has"
        raise SegError("E-WEB-AUTH", Exit.USAGE, "", found, f"check {TOKEN} or the file of {TOKEN_FILE}")
    return token
