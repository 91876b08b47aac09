"""Plain http to other hosts than loopback: signed for a named host, and never by itself."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stateful_workflow import IssuerLimited
from stateful_workflow.sealed.issuing import Place, Terms
from stateful_workflow.sealed.keyring import Keyring
from stateful_workflow.sealed.keys import verify
from stateful_workflow.sealed.message import Claims, parse

NOW = 1_800_000_000
HTTP, HTTPS = "http://api.internal:8080", "https://api.internal:8080"
NONE = Place("apiToken", "default", "r", "t", "r")


def after(*origins: str) -> Place:
    held = Claims("apiToken", "default", "r", "t", "r", 1, origins=origins)
    return replace(NONE, held=held)


def test_a_token_is_sealed_for_a_plain_origin_where_its_issuer_names_the_host() -> None:
    claims = NONE.token(Terms(origins=[HTTP, HTTPS], allow_http=["api.internal"]), NOW)
    assert claims.origins == (HTTP, HTTPS)
    keyring = Keyring.generate()
    message = parse(keyring.seal(claims, "secret"))
    verify(message, keyring.trusted())
    assert message.claims.origins == (HTTP, HTTPS)


def test_the_next_token_keeps_a_plain_origin_that_was_signed_and_gets_no_other() -> None:
    assert after(HTTP).token(Terms(), NOW).origins == (HTTP,)
    for terms in (
        Terms(origins=[HTTP]),
        Terms(api_url=HTTP),
        Terms(origins=["http://other:8080"], allow_http=["api.internal"]),
    ):
        with pytest.raises(ValueError, match="plain http"):
            after(HTTPS).token(terms, NOW)
    assert after(HTTPS).token(Terms(allow_http=["api.internal"]), NOW).origins == (HTTPS,)


def test_a_keys_limit_covers_plain_http_only_where_it_names_it() -> None:
    claims = NONE.token(Terms(origins=[HTTP], allow_http=["api.internal"]), NOW)
    for limit in (HTTPS, "https://*.example.com", "http://api.internal"):
        with pytest.raises(IssuerLimited):
            Keyring().add_issuer(origins=[limit]).add_reader().seal(claims, "secret")
    named = Keyring().add_issuer(origins=[HTTP]).add_reader()
    assert parse(named.seal(claims, "secret")).claims.origins == (HTTP,)


def test_hosts_and_origins_are_lists() -> None:
    with pytest.raises(ValueError, match="takes a list"):
        NONE.token(Terms(origins=[HTTP], allow_http="api.internal"), NOW)
