"""Where a token may be sent: scheme, host and port, and every trick to blur them."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from temporalio.testing import ActivityEnvironment

from stateful_workflow import OriginNotAllowed, OriginTransport, TokenAuth
from stateful_workflow.node.headers import Use
from stateful_workflow.sealed.message import DEFAULT_NAME
from stateful_workflow.sealed.origins import allowed_origin, in_clear, is_allowed, origin_of
from stateful_workflow.use.newest import Newest
from stateful_workflow.use.tokens import ActivityTokens, running
from tests.support.builders import CLAIMS, ROOT, TOKEN, TREE, keyring, unrecorded

CANONICAL = {
    "https://api.example.com": "https://api.example.com",
    "https://api.example.com/v1/items?q=1#top": "https://api.example.com",
    # Case.
    "HTTPS://API.Example.COM/V1": "https://api.example.com",
    # Ports: only the scheme's own is left out.
    "https://api.example.com:443": "https://api.example.com",
    "https://api.example.com:0443": "https://api.example.com",
    "https://api.example.com:": "https://api.example.com",
    "https://api.example.com:8443/v1": "https://api.example.com:8443",
    "http://127.0.0.1:80": "http://127.0.0.1",
    # Names.
    "https://localhost:8080": "https://localhost:8080",
    "https://my_service.svc": "https://my_service.svc",
    f"https://{'a' * 63}.example": f"https://{'a' * 63}.example",
    # IDNA: one form, the ASCII one.
    "https://bücher.example": "https://xn--bcher-kva.example",
    "https://ｅxample.com": "https://example.com",
    "https://api．example｡com": "https://api.example.com",
    "https://XN--BCHER-KVA.example": "https://xn--bcher-kva.example",
    "https://straße.example": "https://xn--strae-oqa.example",
    # Addresses.
    "https://192.0.2.7": "https://192.0.2.7",
    "https://[2001:DB8:0:0::1]": "https://[2001:db8::1]",
    "https://[2001:db8::1]:443/x": "https://[2001:db8::1]",
    # Plain http, to literal loopback addresses only.
    "http://127.9.9.9": "http://127.9.9.9",
    "http://[0:0:0:0:0:0:0:1]": "http://[::1]",
    # An @ after the authority is no user information.
    "https://api.example.com/@evil.example": "https://api.example.com",
    "https://api.example.com?user=@evil.example": "https://api.example.com",
}

REFUSED = {
    "no URL": ["", "*", "api.example.com", "//api.example.com", "/v1", "https", "https://"],
    "no host": ["https:api.example.com", "https:/api.example.com", "https:///v1", "https://:443"],
    "another scheme": ["ftp://api.example.com", "javascript:alert(1)", "httpss://api.example.com"],
    "user information": [
        "https://user@api.example.com",
        "https://@api.example.com",
        "https://api.example.com@evil.example",
        "https://api.example.com:443@evil.example",
        "https://a@b@api.example.com",
    ],
    "a backslash": [
        "https://evil.example\\@api.example.com",
        "https:\\\\api.example.com",
        "https://api.example.com/a\\b",
    ],
    "white space, a control character or half of a surrogate pair": [
        " https://api.example.com",
        "https://api.example.com\n",
        "ht\ttps://api.example.com",
        "https://api.example.com/\r\nHost: evil.example",
        "https://api\u00a0.example.com",
        "https://api.example.com\x00.evil.example",
        "https://api.example.com\x7f",
        "https://api.example.com/\ud800",
    ],
    "a percent sign in the host": [
        "https://api%2eexample.com",
        "https://%61pi.example.com",
        "https://[fe80::1%25eth0]",
    ],
    "a trailing dot": ["https://api.example.com.:443", "https://192.0.2.7.", "https://a.example。"],
    "no domain name": [
        "https://.example.com",
        "https://api..example.com",
        "https://-api.example.com",
        "https://api-.example.com",
        "https://api.example.com;evil.example",
        "https://api&example.com",
        "https://api\u2044.example.com",
        "https://℀.example.com",
        "https://api\u200d.example.com",
        f"https://{'a' * 64}.example",  # RFC 1035, 2.3.4
        "https://" + "a." * 126 + "example",
    ],
    "what some read as an IPv4 address": [
        "https://2130706433",
        "https://127.1",
        "https://0177.0.0.1",
        "https://127.0.0.256",
        "https://127.0.0.0.1",
        "https://api.example.1",
        "https://１２７.0.0.1",
        "https://0X7F000001",
        "https://127.0.0.0x1",
        "https://api.0x",
    ],
    "brackets around or beside anything but an IPv6 address": [
        "https://[::1",
        "https://::1]",
        "https://[api.example.com]",
        "https://[192.0.2.7]",
        "https://[::1]evil.example",
        "https://evil.example[::1]",
        "https://[::1][::2]",
        "https://2001:db8::1",
    ],
    # Written in two ways: ::ffff:7f00:1 and ::ffff:127.0.0.1, which is 127.0.0.1 to the system.
    "an IPv4 address in IPv6 clothes": ["https://[::ffff:192.0.2.7]", "http://[::ffff:7f00:1]"],
    "no port": [
        "https://api.example.com:https",
        "https://api.example.com:-1",
        "https://api.example.com:65536",
        "https://api.example.com:000",  # httpx connects to 443
        "https://api.example.com:4_43",
        "https://api.example.com:４４３",
        "https://api.example.com:443:443",
    ],
    "an address in another form than the usual one": [
        "http://127.1",
    ],
    "a long one": ["https://api.example.com/" + "a" * 2_048],
}


def each_refused() -> list[object]:
    return [
        pytest.param(url, id=ascii(f"{reason}: {url}"))
        for reason in REFUSED
        for url in REFUSED[reason]
    ]


@pytest.mark.parametrize(("url", "origin"), CANONICAL.items(), ids=map(ascii, CANONICAL))
def test_the_origin_of_a_url_is_its_scheme_host_and_port_in_one_form(url: str, origin: str) -> None:
    assert origin_of(url) == origin
    assert origin_of(origin) == origin
    assert allowed_origin(origin) == origin


@pytest.mark.parametrize("url", each_refused())
def test_a_url_that_could_be_read_in_two_ways_has_no_origin(url: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        origin_of(url)
    with pytest.raises(ValueError, match=r"."):
        allowed_origin(url)


IN_CLEAR = (
    "http://api.example.com",
    "http://127.0.0.1.nip.io",
    "http://10.0.0.1",
    "http://0.0.0.0",
    "http://[::]",
)


@pytest.mark.parametrize("origin", IN_CLEAR)
def test_plain_http_to_others_than_literal_loopback_addresses_is_signed_for_a_named_host_alone(
    origin: str,
) -> None:
    host = origin.removeprefix("http://").strip("[]")
    for others in ((), ("api.example", "example.com", "*", "https://api.example.com", "")):
        with pytest.raises(ValueError, match="plain http is allowed to literal loopback"):
            allowed_origin(origin, others)
        with pytest.raises(ValueError, match="plain http is allowed to literal loopback"):
            allowed_origin(f"{origin}:8080", others)
    assert allowed_origin(f"{origin}:8080", [host.upper()]) == f"{origin}:8080"
    assert in_clear(origin)
    assert in_clear(f"{origin}:8080")
    assert not is_allowed(origin, [f"https://{host}", f"{origin}:8080", "https://*.example.com"])
    assert is_allowed(f"{origin}:8080", [f"{origin}:8080"])


@pytest.mark.parametrize("origin", ["http://127.0.0.1:80", "http://[::1]:8080", "https://a.b"])
def test_what_goes_over_loopback_or_https_is_not_in_clear(origin: str) -> None:
    assert not in_clear(allowed_origin(origin))


@pytest.mark.parametrize("host", ["localhost", "api.localhost"])
def test_the_error_for_localhost_says_to_write_the_address(host: str) -> None:
    with pytest.raises(ValueError, match=r"write 127\.0\.0\.1"):
        allowed_origin(f"http://{host}:8080")


@given(st.text() | st.text("ahtps:/.@[]*%0x1\\- é。#?").map("https://".__add__))
@settings(max_examples=400, deadline=None)
def test_any_text_has_one_origin_or_none(text: str) -> None:
    for canonical in (origin_of, allowed_origin):
        try:
            origin = canonical(text)
        except ValueError:
            continue
        assert canonical(origin) == origin
        assert origin.isascii()


# --- what an issuer may sign -----------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "canonical"),
    {
        "https://*.example.com": "https://*.example.com",
        "https://*.EXAMPLE.com:443/": "https://*.example.com",
        "https://*.example.com:8443": "https://*.example.com:8443",
        "https://*.bücher.example": "https://*.xn--bcher-kva.example",
    }.items(),
)
def test_a_wildcard_may_be_the_whole_leftmost_label_and_nothing_is_sent_to_it(
    entry: str, canonical: str
) -> None:
    assert allowed_origin(entry) == canonical
    with pytest.raises(ValueError, match="wildcard"):
        origin_of(canonical)


@pytest.mark.parametrize(
    "entry",
    [
        "*",
        "https://*",
        "https://*.",
        "https://*.com",
        "https://**.example.com",
        "https://*.*.example.com",
        "https://api*.example.com",
        "https://api.*.example.com",
        "https://%2a.example.com",
        "https://*.192.0.2.7",
        "https://*.[::1]",
        "http://*.example.com",
        "*://api.example.com",
        "https://api.example.com:*",
    ],
)
def test_a_wildcard_anywhere_else_is_refused(entry: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        allowed_origin(entry)


@pytest.mark.parametrize(
    "entry",
    [
        "https://api.example.com/v1",
        "https://api.example.com//",
        "https://api.example.com?q=1",
        "https://api.example.com#top",
    ],
)
def test_an_allowed_origin_has_no_path_query_or_fragment(entry: str) -> None:
    with pytest.raises(ValueError, match="scheme, host and port only"):
        allowed_origin(entry)


# --- what is covered -------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "entry"),
    [
        ("https://api.example.com/v1", "https://api.example.com"),
        ("https://API.example.com:443", "https://api.example.com/"),
        ("https://bücher.example", "https://xn--bcher-kva.example"),
        ("https://eu.example.com", "https://*.example.com"),
        ("https://eu.example.com:8443", "https://*.example.com:8443"),
    ],
)
def test_a_url_is_covered_by_its_origin_or_a_wildcard_for_one_label(url: str, entry: str) -> None:
    assert is_allowed(origin_of(url), [allowed_origin(entry)])
    others = ["https://other.example", "https://*.other.example"]
    assert is_allowed(origin_of(url), [*others, allowed_origin(entry)])


@pytest.mark.parametrize(
    ("url", "entry"),
    [
        ("https://api.example.com:8443", "https://api.example.com"),
        ("https://api.example.com", "https://api.example.com:8443"),
        ("https://127.0.0.1", "http://127.0.0.1"),
        ("https://example.com", "https://api.example.com"),
        ("https://api.example.com", "https://example.com"),
        ("https://api.example.com.evil.example", "https://api.example.com"),
        ("https://apiexample.com", "https://*.example.com"),
        ("https://example.com", "https://*.example.com"),
        ("https://a.b.example.com", "https://*.example.com"),
        ("https://eu.example.com.evil.example", "https://*.example.com"),
        ("https://eu.example.com:8443", "https://*.example.com"),
        ("https://eu.example.com", "https://*.example.com:8443"),
    ],
)
def test_a_url_of_another_scheme_host_or_port_is_not_covered(url: str, entry: str) -> None:
    assert not is_allowed(origin_of(url), [allowed_origin(entry)])


@pytest.mark.parametrize(
    ("origin", "entry"),
    [
        # The claims are an issuer's text; another library may have signed anything.
        *(("https://api.example.com", entry) for entry in ("", "*", "https://*", "https://")),
        ("https://api.example.com", "api.example.com"),
        ("https://10.0.0.1", "https://*.0.0.1"),
        ("http://127.0.0.1", "http://*.0.0.1"),
        ("https://example.com", "https://*.com"),
    ],
)
def test_an_entry_that_could_not_be_signed_here_grants_nothing_nor_does_an_empty_list(
    origin: str, entry: str
) -> None:
    assert not is_allowed(origin, [entry])
    assert not is_allowed(origin, [])


# --- what httpx and the system make of it ----------------------------------------


class Connecting(Exception):
    """Raised instead of a connection, where httpx asks the system for one."""

    def __init__(self, scheme: str, host: str, port: int) -> None:
        super().__init__(scheme, host, port)
        self.to = (scheme, ip_address(host) if ":" in host else host, port)


def stop(scheme: str) -> Callable[[str, dict[str, Any]], None]:
    """httpx's own ``trace`` extension: it hears of every step before it is taken."""

    def trace(step: str, about: dict[str, Any]) -> None:
        if step == "connection.connect_tcp.started":
            raise Connecting(scheme, about["host"], about["port"])

    return trace


NETWORK = httpx.HTTPTransport(verify=False)


def destination(url: httpx.URL) -> tuple[str, object, int]:
    """Scheme, host and port that httpx connects to."""
    host = {"Host": url.netloc.decode()}  # or httpx refuses what is no IDNA before it connects
    extensions = {"trace": stop(url.scheme)}
    with pytest.raises(Connecting) as connecting:
        NETWORK.handle_request(httpx.Request("GET", url, headers=host, extensions=extensions))
    return connecting.value.to


def spelled_out(origin: str) -> tuple[str, object, int]:
    """The same of an origin in the canonical form."""
    scheme, bracketed, name, port = re.fullmatch(
        r"(https?)://(?:\[(.*)\]|([^:\[\]]*))(?::([0-9]+))?", origin
    ).groups()  # pyright: ignore[reportOptionalMemberAccess]
    host = ip_address(bracketed) if bracketed else name
    return scheme, host, int(port or {"https": 443, "http": 80}[scheme])


SIGNED_HOSTS = [
    "api.example.com",
    "a.eu.example.com",
    "bücher.example",
    "127.0.0.1",
    "[2001:db8::1]",
]
ODD_HOSTS = [
    *("127.1", "0177.0.0.1", "2130706433", "0x7f000001", "127.0.0.1.nip.io", "localhost"),
    *("[::1]", "[2001:DB8:0::1]", "[fe80::1%25a]", "[fe80::1%a]", "[api.example.com]"),
    *("[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "127.0.0.1%00.evil", "[::1].evil"),
]
ODD_LABELS = [
    *("A_b", "-a", "*", "", "%61pi", "evil\\", "evil\\@", "a" * 64, "127", "0x7f", "１"),
    *("BÜCHER", "XN--BCHER-KVA", "xn--zz", "ΑΣ", "ß", "K", "℀", "\u200b", "evil@", "ａｐｉ"),
]
DOTS = [".", ".", ".", "。", "．", "｡", "..", "%2e", "\t", ""]
PLAIN = {
    "scheme": ["https", "https", "HTTPS", "http"],
    "slashes": ["://"],
    "user": [""],
    "host": SIGNED_HOSTS,
    "end": [""],
    "port": ["", "", ":443", ":8443", ":8080"],
    "tail": ["", "/x", "/@evil", "//evil", "?q=https://evil", "#@evil"],
}
TRICKS = {
    "scheme": ["ftp", "wss", "", ":https", "https:https", " https", "hTTpS"],
    "slashes": [":/", ":///", ":", ":\\\\", "//"],
    "user": ["@", "u:p@", "api.example.com@", "api.example.com:443@", "a\\@", "[::1]@", "%40@"],
    "end": [".", "。", "%00.evil", "\\.evil", "#.evil", "?.evil", ";.evil", "@evil", ".evil"],
    "port": [":", ":0", ":80", ":65536", ":-1", ":08443", ":4_43", ": 443", ":４４３", ":443:1"],
    "tail": ["/\\evil", "@evil", "\\evil", ".evil/", "/\r\nHost:evil"],
}


@st.composite
def hosts(draw: st.DrawFn) -> str:
    if draw(st.booleans()):
        return draw(st.sampled_from(ODD_HOSTS))
    labels = draw(st.sampled_from(SIGNED_HOSTS)).split(".")
    if draw(st.booleans()):
        labels[draw(st.integers(0, len(labels) - 1))] = draw(st.sampled_from(ODD_LABELS))
    return labels[0] + "".join(draw(st.sampled_from(DOTS)) + label for label in labels[1:])


@st.composite
def urls(draw: st.DrawFn) -> str:
    """Addresses with at most two tricks and one stray character."""
    tricked = draw(st.sets(st.sampled_from(list(PLAIN)), max_size=2))
    text = ""
    for part, plain in PLAIN.items():
        if part not in tricked:
            text += draw(st.sampled_from(plain))
        elif part == "host":
            text += draw(hosts())
        else:
            text += draw(st.sampled_from(TRICKS[part]))
    if draw(st.integers(0, 9)) == 0:
        at = draw(st.integers(0, len(text)))
        return text[:at] + draw(st.characters()) + text[at:]
    return text


def parsed(text: str) -> httpx.URL | None:
    try:
        return httpx.URL(text)
    except (httpx.InvalidURL, ValueError):
        return None


def written_again(url: httpx.URL) -> list[str]:
    try:
        return [f"{url.scheme}://{url.netloc.decode()}"]
    except UnicodeEncodeError:  # httpx takes such a zone of an address, and cannot send to it
        return []


@given(urls() | st.text().map("https://".__add__))
@example("http://[fe80::1%\x8025a]")
@example("HTTPS://API。Example．com:443/")
@example("https://[2001:DB8::1]:08443/")
@example("https://api.example.com:0")
@example(":https://api.example.com")
@settings(max_examples=2000, deadline=None)
def test_the_origin_of_a_url_is_where_httpx_connects(text: str) -> None:
    url = parsed(text)
    if url is None:
        return
    # The text is what an `apiUrl` is checked by, and its parts are what a request is.
    for written in (text, *written_again(url)):
        try:
            origin = origin_of(written)
        except ValueError:
            continue
        assert spelled_out(origin) == destination(url)


@given(hosts() | st.text("0123456789abcdefx."))
@settings(max_examples=1000, deadline=None)
def test_no_name_is_an_address_to_the_system(host: str) -> None:
    try:
        origin = origin_of(f"https://{host}")
    except ValueError:
        return
    _, name, _ = spelled_out(origin)
    if isinstance(name, str) and not re.fullmatch(r"[0-9.]+", name):
        with pytest.raises(OSError, match="illegal IP address"):
            socket.inet_aton(name)


# --- what an activity sends ------------------------------------------------------

ORIGINS = (
    "https://api.example.com",
    "https://*.eu.example.com:8443",
    "https://xn--bcher-kva.example",
    "https://[2001:db8::1]",
    "http://127.0.0.1:8080",
)
SENDERS = ["bearer", "key"]


def send(
    url: httpx.URL | str,
    *,
    by: str,
    token: str = TOKEN,
    origins: tuple[str, ...] = ORIGINS,
    extensions: dict[str, Any] | None = None,
    **options: Any,
) -> httpx.Response:
    """Ask an address in an activity that holds a token for these origins."""
    sealed = keyring().seal(replace(CLAIMS, origins=origins), token)
    holds = {DEFAULT_NAME: {"state": "held", "sealed": str(sealed)}}
    use = Use(ROOT, TREE, None, holds, own={}, last={})
    request = httpx.Request("GET", url, extensions=extensions, **options)
    request.extensions.setdefault("trace", stop(request.url.scheme))

    def ask() -> httpx.Response:
        with running(ActivityTokens(Newest(use, None, time.monotonic()), keyring, unrecorded())):
            if by == "key":
                return OriginTransport(NETWORK).handle_request(request)
            return NETWORK.handle_request(next(TokenAuth().sync_auth_flow(request)))

    return ActivityEnvironment().run(ask)


def is_signed(scheme: str, host: object, port: int) -> bool:
    """What `ORIGINS` mean, in other words."""
    if scheme == "https" and port == 8443:
        return re.fullmatch(r"[^.]+\.eu\.example\.com", str(host)) is not None
    return (scheme, str(host), port) in {
        ("https", "api.example.com", 443),
        ("https", "xn--bcher-kva.example", 443),
        ("https", "2001:db8::1", 443),
        ("http", "127.0.0.1", 8080),
    }


@pytest.mark.parametrize("by", SENDERS)
@given(text=urls())
@settings(max_examples=400, deadline=None)
def test_whatever_the_url_a_token_leaves_for_a_signed_origin_or_not_at_all(
    by: str, text: str
) -> None:
    try:
        request = httpx.Request("GET", text)
    except (httpx.InvalidURL, ValueError):
        return
    with pytest.raises((Connecting, OriginNotAllowed)) as happened:
        send(request.url, by=by)

    if isinstance(happened.value, Connecting):
        assert is_signed(*happened.value.to)
    else:
        assert TOKEN not in str(happened.value)


@pytest.mark.parametrize("by", SENDERS)
@pytest.mark.parametrize(
    ("url", "connects_to"),
    {
        "https://api.example.com/v1": ("https", "api.example.com", 443),
        "HTTPS://API.EXAMPLE.COM:443/v1": ("https", "api.example.com", 443),
        "https://a.eu.example.com:8443": ("https", "a.eu.example.com", 8443),
        "https://BÜCHER.example/?q": ("https", "xn--bcher-kva.example", 443),
        "https://[2001:DB8:0::1]": ("https", ip_address("2001:db8::1"), 443),
        "http://127.0.0.1:8080/x": ("http", "127.0.0.1", 8080),
    }.items(),
)
def test_a_token_leaves_for_its_origins(
    by: str, url: str, connects_to: tuple[str, object, int]
) -> None:
    with pytest.raises(Connecting) as connecting:
        send(url, by=by)
    assert connecting.value.to == connects_to


@pytest.mark.parametrize("by", SENDERS)
@pytest.mark.parametrize(
    ("url", "named"),
    {
        "https://evil.example/x?q=1": "https://evil.example",
        "https://api.example.com:8443": "https://api.example.com:8443",
        "https://api.example.com:0": "https://api.example.com:0",
        "https://u:secret@api.example.com": "https://api.example.com with user information",
        "https://api.example.com.": "https://api.example.com.",
        "https://api%2eexample.com": "https://api%2eexample.com",
        "http://api.example.com": "http://api.example.com",
        "ftp://api.example.com": "ftp://api.example.com",
        "http://localhost:8080": "http://localhost:8080",
        "/x": "://",
        ":https://api.example.com": "://",
    }.items(),
)
def test_a_refusal_names_the_origin_and_no_secret(by: str, url: str, named: str) -> None:
    with pytest.raises(OriginNotAllowed) as refused:
        send(url, by=by)
    message = str(refused.value)
    assert message.startswith(f"{DEFAULT_NAME} may not be sent to {named}")
    assert TOKEN not in message
    assert "secret" not in message


@pytest.mark.parametrize("by", SENDERS)
def test_a_host_that_is_no_idna_is_refused_as_any_other(by: str) -> None:
    # httpx raises an error of its own where such a host is asked for as text.
    with pytest.raises(OriginNotAllowed, match=r"sent to https://xn--zz.example;"):
        send("https://xn--zz.example", by=by, headers={"Host": "xn--zz.example"})


# --- beside the URL --------------------------------------------------------------


@pytest.mark.parametrize("by", SENDERS)
@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"host": "api.example.com.evil.example"},
        {"Host": "api.example.com:8443"},
        {"Host": "api.example.com@evil.example"},
        {"Host": ""},
        [("Host", "api.example.com"), ("HOST", "evil.example")],
        [(b"Host", b"api.example.com\xff")],
    ],
)
def test_a_host_header_of_another_host_keeps_the_token_back(by: str, headers: Any) -> None:
    # One address, many tenants: a CDN hands the request to the one that the header names.
    with pytest.raises(
        OriginNotAllowed, match=r"sent to https://api.example.com with a Host header"
    ):
        send("https://api.example.com", by=by, headers=headers)


@pytest.mark.parametrize("by", SENDERS)
def test_a_host_header_of_the_url_itself_is_no_obstacle(by: str) -> None:
    for url, host in (
        ("https://api.example.com", "API.example.com"),
        ("https://a.eu.example.com:8443", "a.eu.example.com:8443"),
        ("https://[2001:db8::1]", "[2001:DB8::1]"),
    ):
        with pytest.raises(Connecting):
            send(url, by=by, headers={"Host": host})


@pytest.mark.parametrize("by", SENDERS)
@pytest.mark.parametrize(
    "target",
    [
        b"https://evil.example/",  # servers go by it and not by Host (RFC 9112 section 3.2.2)
        b"evil.example:443",  # through a proxy, what CONNECT asks for
        b"@evil.example/",
        b".evil.example/",
        b"",
        b"/x HTTP/1.1\r\nHost: evil.example",
        "https://evil.example/",
    ],
)
def test_a_request_target_that_is_no_path_keeps_the_token_back(by: str, target: object) -> None:
    with pytest.raises(OriginNotAllowed, match=r"sent to https://api.example.com with a `target`"):
        send("https://api.example.com", by=by, extensions={"target": target})


@pytest.mark.parametrize("by", SENDERS)
@pytest.mark.parametrize("target", [b"/a%2Fb?q=//evil.example", b"*", "/x"])
def test_a_request_target_of_the_same_origin_is_no_obstacle(by: str, target: object) -> None:
    with pytest.raises(Connecting) as connecting:
        send("https://api.example.com", by=by, extensions={"target": target})
    assert connecting.value.to == ("https", "api.example.com", 443)


@pytest.mark.parametrize("by", SENDERS)
def test_a_certificate_of_another_host_is_not_asked_for(by: str) -> None:
    with pytest.raises(
        OriginNotAllowed, match=r"sent to https://api.example.com with an `sni_hostname`"
    ):
        send("https://api.example.com", by=by, extensions={"sni_hostname": "evil.example"})

    with pytest.raises(Connecting):
        send("https://api.example.com", by=by, extensions={"sni_hostname": "api.example.com"})


@pytest.mark.parametrize("by", SENDERS)
def test_characters_beyond_ascii_are_sent_and_not_quoted_in_an_error(by: str) -> None:
    with pytest.raises(Connecting):
        send(
            "https://api.example.com",
            by=by,
            token="tök-3f9c1b",
            headers=[(b"X-City", b"K\xf6ln"), (b"X-Name", "Zoë".encode())],
        )


def test_authorization_is_not_sent_where_httpx_would_take_it_to_another_origin() -> None:
    # On a redirect from http://HOST to https://HOST, and on no other, it keeps the header.
    both = ("http://127.0.0.1", "https://127.0.0.1")

    for url in ("http://127.0.0.1/x", "http://127.0.0.1:80/x", "HTTP://127.0.0.1:80/x"):
        with pytest.raises(
            OriginNotAllowed, match=r"sent to http://127\.0\.0\.1.* must sign it for both"
        ):
            send(url, by="bearer", origins=both[:1])

        for by, origins in (("bearer", both), ("key", both[:1])):
            with pytest.raises(Connecting) as connecting:
                send(url, by=by, origins=origins)
            assert connecting.value.to == ("http", "127.0.0.1", 80)
