"""Origins: where a token may be sent. Pure.

An origin is scheme, host and port, written as ``https://api.example.com`` or
``https://api.example.com:8443``: lower case, the host in its IDNA form, the default port left out.
An allowed origin may have ``*`` as its whole leftmost label (``https://*.example.com``), which
stands for one label. ``http`` to other hosts than literal loopback addresses is signed only where
the issuer names the host (`allowed_origin`), and each such origin whole.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Iterable
from typing import Final
from urllib.parse import SplitResult, urlsplit

import idna

from ..errors import AddressRefused

MAX_URL: Final = 2_048
"""Characters of an API address: it travels in the header of each activity."""

_DEFAULT_PORTS = {"https": 443, "http": 80}
_NETLOC = re.compile(r"(\[[^\[\]]*\]|[^\[\]:]*)(:[0-9]*)?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_UNSAFE = re.compile(r"[\s\\\x00-\x1f\x7f\ud800-\udfff]")
_HOST = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")


def origin_of(url: str) -> str:
    """The canonical origin of an absolute URL; whether a token may go there is another question.

    Raises:
        ValueError: the URL has no such origin or could be read in two ways.
    """
    return _canonical(url, wildcard=False)


def allowed_origin(text: str, allow_http: Collection[str] | None = ()) -> str:
    """The canonical form of one entry of a token's ``origins``; a wildcard is allowed.

    Args:
        text: the entry.
        allow_http: hosts to which a token may go in clear text, without a port; None for any.

    Raises:
        ValueError: as `origin_of`, and where more than scheme, host and port is given, or plain
            http to a host that is neither a literal loopback address nor in `allow_http`.
    """
    parts, _ = _split(text)
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError("an origin is scheme, host and port only, as https://api.example.com")
    origin = _canonical(text, wildcard=True)
    if in_clear(origin) and allow_http is not None:
        host = _host(origin)
        if host not in {each.lower() for each in allow_http}:
            if host == "localhost" or host.endswith(".localhost"):
                raise ValueError(
                    "plain http is allowed to literal loopback addresses: write 127.0.0.1"
                )
            raise ValueError(
                "plain http is allowed to literal loopback addresses only, such as 127.0.0.1; use "
                "https, or allow_http= where a token may go to that host in clear text"
            )
    return origin


def in_clear(origin: str) -> bool:
    """Whether what goes to a canonical origin is in clear text on a network."""
    if not origin.startswith("http://"):
        return False
    try:
        address = _address(_host(origin))
    except ValueError:  # no origin at all, of an answer that nobody vouches for
        return True
    return address is None or not address.is_loopback


def _host(origin: str) -> str:
    return urlsplit(origin).hostname or ""


def is_allowed(origin: str, allowed: Iterable[str]) -> bool:
    """Whether a canonical origin is covered by one of the signed ones; none covers nothing."""
    scheme, _, rest = origin.partition("://")
    parent = rest.partition(".")[2]
    covering = {origin}
    # As in `allowed_origin`: https, a domain of two labels below it, and no address.
    if (
        scheme == "https"
        and "." in parent
        and not rest.startswith("[")
        and not _ends_in_number(parent)
    ):
        covering.add(f"https://*.{parent}")
    return not covering.isdisjoint(allowed)


def checked_address(url: str, allow_http: Collection[str] | None = None) -> str:
    """The origin of an API address; `allow_http` is as `allowed_origin` has it.

    Raises:
        AddressRefused: it is no URL that a token may go to.
    """
    try:
        return allowed_origin(origin_of(url), allow_http)
    except ValueError as error:
        raise AddressRefused(f"the API address is refused: {error}") from None


def origin_or_none(url: str) -> str | None:
    """As `origin_of`; None where there is none."""
    try:
        return origin_of(url)
    except ValueError:
        return None


def is_covered(url: str | None, allowed: Iterable[str]) -> bool:
    """Whether an address is one whose origin is covered by the signed ones."""
    origin = None if url is None else origin_or_none(url)
    return origin is not None and is_allowed(origin, allowed)


def _ends_in_number(host: str) -> bool:
    return _NUMBER.fullmatch(host.partition(":")[0].rsplit(".", 1)[-1]) is not None


def _canonical(url: str, *, wildcard: bool) -> str:
    if len(url) > MAX_URL:
        raise ValueError(f"a URL of more than {MAX_URL} characters is refused")
    if _UNSAFE.search(url):
        raise ValueError(
            "a URL with white space, a control character, a backslash or half of a surrogate pair "
            "is refused"
        )
    parts, port = _split(url)
    scheme = parts.scheme.lower()
    if scheme not in _DEFAULT_PORTS:
        raise ValueError("the scheme must be https (or http)")
    if "@" in parts.netloc:
        raise ValueError("a URL with user information is refused")
    if not _NETLOC.fullmatch(parts.netloc):
        raise ValueError("the authority of the URL is not a host and a port")
    host, star = parts.hostname or "", ""
    if host.startswith("*."):
        if not wildcard:
            raise ValueError("a wildcard is not an address to send to")
        if scheme == "http":
            raise ValueError("a wildcard is for https: name each host for plain http")
        star, host = "*.", host[2:]
        if "." not in host or _address(host) is not None:
            raise ValueError("a wildcard needs a domain of at least two labels below it")
    address = _address(host)
    if parts.netloc.startswith("[") and (address is None or address.version != 6):
        raise ValueError("brackets are for IPv6 addresses")
    if port == 0:
        raise ValueError("port 0 is none: an HTTP client may take the default one for it")
    suffix = "" if port is None or port == _DEFAULT_PORTS[scheme] else f":{port}"
    return f"{scheme}://{star}{_name(host) if address is None else _literal(address)}{suffix}"


def _literal(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    if isinstance(address, ipaddress.IPv4Address):
        return address.compressed
    # Written in two ways, by Python from 3.13 on in the other, and 127.0.0.1 to the system.
    if address.ipv4_mapped is not None or address.scope_id is not None:
        raise ValueError("an IPv4 address written as IPv6, or an address with a zone, is refused")
    return f"[{address.compressed}]"


def _name(host: str) -> str:
    # Before idna looks at it: what it does with a long one takes seconds (RFC 1035, 2.3.4).
    if len(host) > 253 or any(len(label) > 63 for label in host.split(".")):
        raise ValueError("a host name, or a label of one, is too long")
    if not host.isascii():
        try:
            host = idna.encode(host, uts46=True).decode("ascii")
        except idna.IDNAError:
            raise ValueError("the host is no domain name") from None
    host = host.lower()
    if not _HOST.fullmatch(host):
        raise ValueError("the host is no domain name")
    # A name whose last label is a number is an IPv4 address to some parsers (WHATWG URL).
    if _ends_in_number(host):
        raise ValueError("the host could be read as an IP address")
    return host


def _split(url: str) -> tuple[SplitResult, int | None]:
    try:
        parts = urlsplit(url)
        return parts, parts.port
    except ValueError:  # it repeats the URL, in which a token may be
        raise ValueError("the text is no URL, or its port no number") from None


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
