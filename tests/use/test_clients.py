"""Each HTTP client presents a token by the same rule, against a real HTTP server."""

from __future__ import annotations

import base64
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from temporalio.testing import ActivityEnvironment

from stateful_workflow import OriginNotAllowed, PluginMissing, TokenProvider, current_token
from stateful_workflow.use.tokens import running
from tests.support.api import Api, start_api
from tests.support.builders import TOKEN
from tests.support.clients import CLIENTS, Asking, Kept, holding, in_activity

CLIENT = pytest.mark.parametrize("client", CLIENTS)
HEADER = pytest.mark.parametrize("header", [None, "X-API-Key"], ids=["bearer", "key"])


@pytest.fixture
def api() -> Iterator[Api]:
    with start_api() as api:
        api.valid = {TOKEN}
        yield api


@pytest.fixture
def other() -> Iterator[Api]:
    with start_api() as other:
        other.valid = {TOKEN}
        yield other


@pytest.fixture
def kept() -> Kept:
    return Kept()


def used(origin: str, status: int | None, method: str = "GET") -> tuple[Any, ...]:
    outcome = "unknown" if status is None else "success" if status < 400 else "failure"
    return ("apiToken", origin, method, status, outcome, None)


@CLIENT
@HEADER
async def test_a_request_carries_the_token_and_is_on_record(
    api: Api, kept: Kept, client: str, header: str | None
) -> None:
    tokens = holding(kept, [api.origin])

    answer = await in_activity(tokens, Asking(client, api.url("x"), header=header))

    assert (answer.status, api.tokens()) == (200, [TOKEN])
    assert kept.said() == [used(api.origin, 200)]
    assert TOKEN not in answer.shown


@CLIENT
async def test_a_refused_request_of_an_activity_that_can_ask_nobody_is_its_answer(
    api: Api, kept: Kept, client: str
) -> None:
    api.valid = set()

    answer = await in_activity(holding(kept, [api.origin]), Asking(client, api.url("x")))

    assert (answer.status, api.tokens()) == (401, [TOKEN])
    assert kept.said() == [used(api.origin, 401)]


@CLIENT
@HEADER
async def test_nothing_leaves_for_an_origin_that_was_not_signed(
    api: Api, other: Api, kept: Kept, client: str, header: str | None
) -> None:
    tokens = holding(kept, [api.origin])
    # What the client would add on a lucky day: the host by another name, another port.
    for url in (other.url("x"), api.url("x").replace("127.0.0.1", "localhost")):
        with pytest.raises(OriginNotAllowed, match="its issuer signed it for") as raised:
            await in_activity(tokens, Asking(client, url, header=header))
        assert TOKEN not in str(raised.value)

    assert api.calls == other.calls == kept.said()
    assert [reason for *_, reason in kept.said("refuse")] == ["OriginNotAllowed"] * 2


@CLIENT
@HEADER
async def test_a_redirect_within_the_origin_takes_the_token_along(
    api: Api, kept: Kept, client: str, header: str | None
) -> None:
    asking = Asking(client, f"{api.url('to')}?url=/x", header=header)

    answer = await in_activity(holding(kept, [api.origin]), asking)

    assert (answer.status, api.tokens()) == (200, [TOKEN, TOKEN])
    assert kept.said() == [used(api.origin, 307), used(api.origin, 200)]


@CLIENT
@HEADER
async def test_a_redirect_elsewhere_never_takes_the_token_along(
    api: Api, other: Api, kept: Kept, client: str, header: str | None
) -> None:
    asking = Asking(client, f"{api.url('to')}?url={quote(other.url('x'))}", header=header)

    if header is None and client.startswith("httpx"):
        # httpx itself drops Authorization there, and goes on.
        assert (await in_activity(holding(kept, [api.origin]), asking)).status == 401
    else:
        with pytest.raises(OriginNotAllowed):
            await in_activity(holding(kept, [api.origin]), asking)

    assert api.tokens() == [TOKEN]
    assert set(other.tokens()) <= {None}
    assert kept.said() in ([used(api.origin, 307)], [used(api.origin, None)])


@CLIENT
async def test_a_redirect_to_another_signed_origin_takes_a_key_along(
    api: Api, other: Api, kept: Kept, client: str
) -> None:
    url = f"{api.url('to')}?url={quote(other.url('x'))}"
    tokens = holding(kept, [api.origin, other.origin])

    answer = await in_activity(tokens, Asking(client, url, header="X-API-Key"))

    assert (answer.status, api.tokens(), other.tokens()) == (200, [TOKEN], [TOKEN])
    assert kept.said() == [used(api.origin, 307), used(other.origin, 200)]


@CLIENT
async def test_a_redirect_that_is_not_followed_is_the_answer(
    api: Api, other: Api, kept: Kept, client: str
) -> None:
    url = f"{api.url('to')}?url={quote(other.url('x'))}"

    answer = await in_activity(holding(kept, [api.origin]), Asking(client, url, follow=False))

    assert (answer.status, other.calls) == (307, [])


@CLIENT
@HEADER
async def test_a_request_with_another_host_beside_its_url_does_not_leave(
    api: Api, kept: Kept, client: str, header: str | None
) -> None:
    asking = Asking(client, api.url("x"), header=header, headers={"Host": "evil.example"})

    with pytest.raises(OriginNotAllowed, match="with a Host header that is not its URL's"):
        await in_activity(holding(kept, [api.origin]), asking)

    assert api.calls == []


@CLIENT
async def test_a_header_of_the_users_own_is_replaced(api: Api, kept: Kept, client: str) -> None:
    asking = Asking(client, api.url("x"), headers={"authorization": "Bearer of-mine"})

    assert (await in_activity(holding(kept, [api.origin]), asking)).status == 200
    assert api.tokens() == [TOKEN]


@pytest.mark.parametrize("client", ["requests", "aiohttp"])
async def test_a_request_that_got_no_answer_is_on_record_and_its_error_shows_no_token(
    api: Api, kept: Kept, client: str
) -> None:
    tokens = holding(kept, ["http://127.0.0.1:1"])

    answer = await in_activity(tokens, Asking(client, "http://127.0.0.1:1/x"))

    assert answer.status is None
    assert TOKEN not in answer.text + answer.shown
    assert kept.said() == [used("http://127.0.0.1:1", None)]


@CLIENT
async def test_no_client_logs_the_token(
    api: Api, kept: Kept, client: str, caplog: pytest.LogCaptureFixture
) -> None:
    api.refusal = (401, "")
    with caplog.at_level(logging.DEBUG):
        for url in (f"{api.url('to')}?url=/x", "http://127.0.0.1:1/x"):
            tokens = holding(kept, [api.origin, "http://127.0.0.1:1"])
            for how in ({}, {"scheme": "Basic", "username": "admin"}):
                with suppress(httpx.ConnectError):
                    await in_activity(tokens, Asking(client, url, how=how))

    assert len(api.calls) == 4
    pair = base64.b64encode(f"admin:{TOKEN}".encode()).decode()
    assert not [text for text in (TOKEN, pair) if text in caplog.text]


# --- schemes -------------------------------------------------------------------------------------


@CLIENT
@pytest.mark.parametrize(
    ("secret", "how", "sent"),
    [
        ("geheim:ä", {"scheme": "Basic", "username": "ädmin"}, "Basic ädmin:geheim:ä"),
        ("admin:geheim", {"scheme": "basic"}, "basic admin:geheim"),
        ("geheim", {"scheme": "Token"}, "Token geheim"),
        ("geheim", {"scheme": None}, "geheim"),
    ],
    ids=["a password", "a pair", "another scheme", "none"],
)
async def test_a_token_goes_in_the_scheme_that_the_api_wants(
    api: Api, kept: Kept, client: str, secret: str, how: dict[str, Any], sent: str
) -> None:
    tokens = holding(kept, [api.origin], secret)

    await in_activity(tokens, Asking(client, api.url("x"), how=how))

    scheme, _, value = api.authorizations[0].rpartition(" ")
    if scheme.lower() == "basic":
        value = base64.b64decode(value).decode()
    assert f"{scheme} {value}".strip() == sent


@CLIENT
@pytest.mark.parametrize(
    "how",
    [
        {"username": "admin"},
        {"scheme": "Basic", "username": "ad:min"},
        {"scheme": "Basic", "username": "ad\nmin"},
        {"scheme": "Bearer x"},
        {"fallback": "geheim"},
        {"origins": ["https://api.example.com"]},
        {"fallback": "geheim", "origins": "https://api.example.com"},
        {"fallback": "geheim", "origins": ["https://api.example.com/x"]},
    ],
)
async def test_what_cannot_be_meant_is_an_error_where_it_is_said(
    kept: Kept, client: str, how: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=r"a header|a username|go together|an origin is") as raised:
        await in_activity(holding(kept, []), Asking(client, "https://api.example.com", how=how))
    assert "geheim" not in str(raised.value)


# --- token.for_url -------------------------------------------------------------------------------


def test_a_token_is_given_for_a_signed_url_alone_and_that_is_on_record(kept: Kept) -> None:
    tokens = holding(kept, ["https://api.example.com", "https://db.example.com:5432"])

    def ask() -> list[str]:
        with running(tokens()):
            token = current_token()
            given = [token.for_url("https://API.example.com/v1?x=1")]
            given.append(token.for_url("https://db.example.com:5432"))
            for url in ("https://evil.example/?geheim", "geheim", "https://u:p@api.example.com/"):
                with pytest.raises(OriginNotAllowed) as raised:
                    token.for_url(url)
                assert "geheim" not in str(raised.value)
                assert TOKEN not in str(raised.value)
            return given

    assert ActivityEnvironment().run(ask) == [TOKEN, TOKEN]
    assert [(origin, outcome) for _, origin, _, _, outcome, _ in kept.said()] == [
        ("https://api.example.com", "unknown"),
        ("https://db.example.com:5432", "unknown"),
    ]
    assert len(kept.said("refuse")) == 3


# --- what an SDK calls ---------------------------------------------------------------------------


def test_a_provider_gives_the_token_in_a_thread_of_an_sdk_for_its_url_alone(kept: Kept) -> None:
    tokens = holding(kept, ["https://api.example.com"])

    def ask() -> str:
        with running(tokens()), ThreadPoolExecutor(1) as threads:
            with pytest.raises(OriginNotAllowed):
                threads.submit(TokenProvider("https://evil.example")).result()
            return threads.submit(TokenProvider("https://api.example.com/v1")).result()

    assert ActivityEnvironment().run(ask) == TOKEN
    assert [(origin, outcome) for _, origin, _, _, outcome, _ in kept.said()] == [
        ("https://api.example.com", "unknown")
    ]
    assert len(kept.said("refuse")) == 1


async def test_a_provider_gives_nothing_outside_its_activity(kept: Kept) -> None:
    def ask() -> TokenProvider:
        with running(holding(kept, ["https://api.example.com"])()):
            return TokenProvider("https://api.example.com")

    secret = ActivityEnvironment().run(ask)

    with pytest.raises(PluginMissing, match="has ended"):
        secret()
    with pytest.raises(PluginMissing, match="has ended"):
        await secret.call_async()
    with pytest.raises(PluginMissing):
        TokenProvider("https://api.example.com")
    assert kept.events == []
