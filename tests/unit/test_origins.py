"""Where a token may be sent: scheme, host and port, and every trick to blur them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stateful_workflow.origins import allowed_origin, is_allowed, origin_of

CANONICAL = {
    "https://api.example.com": "https://api.example.com",
    "https://api.example.com/": "https://api.example.com",
    "https://api.example.com/v1/items?q=1#top": "https://api.example.com",
    # Case.
    "HTTPS://API.Example.COM/V1": "https://api.example.com",
    # Ports: only the scheme's own is left out.
    "https://api.example.com:443": "https://api.example.com",
    "https://api.example.com:0443": "https://api.example.com",
    "https://api.example.com:": "https://api.example.com",
    "https://api.example.com:80": "https://api.example.com:80",
    "https://api.example.com:8443/v1": "https://api.example.com:8443",
    "http://127.0.0.1:80": "http://127.0.0.1",
    "http://127.0.0.1:443": "http://127.0.0.1:443",
    # Names.
    "https://localhost:8080": "https://localhost:8080",
    "https://my_service.svc": "https://my_service.svc",
    "https://a--b.example": "https://a--b.example",
    # IDNA: one form, the ASCII one.
    "https://bücher.example": "https://xn--bcher-kva.example",
    "https://BÜCHER.example": "https://xn--bcher-kva.example",
    "https://xn--bcher-kva.example": "https://xn--bcher-kva.example",
    "https://ｅxample.com": "https://example.com",
    "https://example。com": "https://example.com",
    # Addresses.
    "https://192.0.2.7": "https://192.0.2.7",
    "https://[2001:DB8:0:0::1]": "https://[2001:db8::1]",
    "https://[2001:db8::1]:443/x": "https://[2001:db8::1]",
    "https://[2001:db8::1]:8443": "https://[2001:db8::1]:8443",
    # Plain http, to literal loopback addresses only.
    "http://127.0.0.1:8080/v1": "http://127.0.0.1:8080",
    "http://127.9.9.9": "http://127.9.9.9",
    "http://[::1]:8080": "http://[::1]:8080",
    "http://[0:0:0:0:0:0:0:1]": "http://[::1]",
    # An @ after the authority is no user information.
    "https://api.example.com/@evil.example": "https://api.example.com",
    "https://api.example.com?user=@evil.example": "https://api.example.com",
    "https://api.example.com#@evil.example": "https://api.example.com",
}

REFUSED = {
    "no URL": ["", "*", "api.example.com", "//api.example.com", "/v1", "https", "https://"],
    "no host": ["https:api.example.com", "https:///v1", "https://:443", "https://?q"],
    "another scheme": [
        "ftp://api.example.com",
        "ws://api.example.com",
        "file:///etc/passwd",
        "javascript:alert(1)",
        "httpss://api.example.com",
    ],
    "user information": [
        "https://user@api.example.com",
        "https://user:secret@api.example.com",
        "https://@api.example.com",
        "https://api.example.com@evil.example",
        "https://api.example.com:443@evil.example",
        "https://api.example.com@",
        "https://a@b@api.example.com",
    ],
    "a backslash": [
        "https://evil.example\\@api.example.com",
        "https://api.example.com\\.evil.example",
        "https:\\\\api.example.com",
        "https://api.example.com/a\\b",
    ],
    "white space or a control character": [
        " https://api.example.com",
        "https://api.example.com ",
        "https://api.example.com\n",
        "ht\ttps://api.example.com",
        "https://api.exam\tple.com",
        "https://api.example.com/\r\nHost: evil.example",
        "https://api\u00a0.example.com",
        "https://api.example.com\x00.evil.example",
        "https://api.example.com\x7f",
    ],
    "a percent sign in the host": [
        "https://api%2eexample.com",
        "https://api%2Eexample.com",
        "https://%61pi.example.com",
        "https://api.example.com%00.evil.example",
        "https://[fe80::1%25eth0]",
        "https://[fe80::1%eth0]",
    ],
    "a trailing dot": [
        "https://api.example.com.",
        "https://api.example.com.:443",
        "https://192.0.2.7.",
        "https://api.example.com。",
    ],
    "no domain name": [
        "https://.example.com",
        "https://api..example.com",
        "https://-api.example.com",
        "https://api-.example.com",
        "https://api.example.com;evil.example",
        "https://api.example.com,evil.example",
        "https://api&example.com",
        "https://api\u2044.example.com",
        "https://℀.example.com",
        "https://api\u200d.example.com",
    ],
    "what some read as an IPv4 address": [
        "https://2130706433",
        "https://127.1",
        "https://127.0.1",
        "https://0177.0.0.1",
        "https://127.0.0.01",
        "https://127.0.0.256",
        "https://127.0.0.0.1",
        "https://api.example.1",
        "https://１２７.0.0.1",
        "https://0x7f000001",
        "https://0x7F000001",
        "https://127.0.0.0x1",
        "https://0x7f.0x0.0x0.0x1",
        "https://api.0x",
    ],
    "brackets around or beside anything but an IPv6 address": [
        "https://[::1",
        "https://::1]",
        "https://[api.example.com]",
        "https://[192.0.2.7]",
        "https://[v1.example]",
        "https://[::1]evil.example",
        "https://evil.example[::1]",
        "https://[::1][::2]",
        "https://2001:db8::1",
    ],
    # Written in two ways: ::ffff:7f00:1 and ::ffff:127.0.0.1, which is 127.0.0.1 to the system.
    "an IPv4 address in IPv6 clothes": [
        "https://[::ffff:192.0.2.7]",
        "https://[::ffff:7f00:1]",
        "http://[::ffff:127.0.0.1]",
    ],
    "no port": [
        "https://api.example.com:https",
        "https://api.example.com:-1",
        "https://api.example.com:+443",
        "https://api.example.com:65536",
        "https://api.example.com:4_43",
        "https://api.example.com:４４３",
        "https://api.example.com:443:443",
    ],
    "plain http to anything but a literal loopback address": [
        "http://api.example.com",
        "http://localhost",
        "http://localhost:8080",
        "http://localhost.",
        "http://127.0.0.1.nip.io",
        "http://192.0.2.7",
        "http://10.0.0.1",
        "http://0.0.0.0",
        "http://[::]",
        "http://[2001:db8::1]",
        "http://2130706433",
        "http://127.1",
        "http://0x7f000001",
    ],
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
        "https://*.eu.api.example.com": "https://*.eu.api.example.com",
    }.items(),
)
def test_a_wildcard_may_be_the_whole_leftmost_label(entry: str, canonical: str) -> None:
    assert allowed_origin(entry) == canonical


@pytest.mark.parametrize(
    "entry",
    [
        "*",
        "https://*",
        "https://*:443",
        "https://*.",
        "https://*.com",
        "https://*.localhost",
        "https://**.example.com",
        "https://*.*.example.com",
        "https://*api.example.com",
        "https://api*.example.com",
        "https://api.*.example.com",
        "https://api.example.*",
        "https://%2a.example.com",
        "https://＊.example.com",
        "https://*。example.com",
        "https://*.192.0.2.7",
        "https://*.0.2.7",
        "https://*.[::1]",
        "https://[*::1]",
        "https://*.example.0x1",
        "http://*.example.com",
        "http://*.0.0.1",
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


def test_nothing_is_sent_to_a_wildcard() -> None:
    with pytest.raises(ValueError, match="wildcard"):
        origin_of("https://*.example.com")


# --- what is covered -------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "entry"),
    [
        ("https://api.example.com/v1", "https://api.example.com"),
        ("https://API.example.com:443", "https://api.example.com/"),
        ("https://api.example.com:8443", "https://api.example.com:8443"),
        ("https://bücher.example", "https://xn--bcher-kva.example"),
        ("https://[2001:db8:0::1]", "https://[2001:db8::1]"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("https://eu.example.com", "https://*.example.com"),
        ("https://eu.example.com:8443", "https://*.example.com:8443"),
        ("https://a-b.example.com", "https://*.example.com"),
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
        ("http://127.0.0.1", "https://127.0.0.1"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8081"),
        ("http://127.0.0.2", "http://127.0.0.1"),
        ("https://example.com", "https://api.example.com"),
        ("https://api.example.com", "https://example.com"),
        ("https://api.example.com.evil.example", "https://api.example.com"),
        ("https://evil-api.example.com", "https://api.example.com"),
        ("https://apiexample.com", "https://*.example.com"),
        ("https://example.com", "https://*.example.com"),
        ("https://a.b.example.com", "https://*.example.com"),
        ("https://evil-example.com", "https://*.example.com"),
        ("https://eu.example.com.evil.example", "https://*.example.com"),
        ("https://eu.example.com:8443", "https://*.example.com"),
        ("https://eu.example.com", "https://*.example.com:8443"),
        ("https://eu.example.org", "https://*.example.com"),
    ],
)
def test_a_url_of_another_scheme_host_or_port_is_not_covered(url: str, entry: str) -> None:
    assert not is_allowed(origin_of(url), [allowed_origin(entry)])


@pytest.mark.parametrize(
    "origin", ["https://api.example.com", "http://127.0.0.1", "https://[2001:db8::1]"]
)
def test_an_empty_list_grants_nothing(origin: str) -> None:
    assert not is_allowed(origin, [])
    assert not is_allowed(origin, ())


@pytest.mark.parametrize("entry", ["", "*", "https://*", "https://", "api.example.com"])
def test_an_entry_that_is_no_origin_grants_nothing(entry: str) -> None:
    # The claims are an issuer's text; another library may have signed anything.
    assert not is_allowed("https://api.example.com", [entry])


@pytest.mark.parametrize(
    ("origin", "entry"),
    [
        ("https://10.0.0.1", "https://*.0.0.1"),
        ("http://127.0.0.1", "http://*.0.0.1"),
        ("https://example.com", "https://*.com"),
    ],
)
def test_a_wildcard_that_could_not_be_signed_here_grants_nothing(origin: str, entry: str) -> None:
    assert not is_allowed(origin, [entry])
