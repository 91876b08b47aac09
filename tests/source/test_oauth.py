"""Tokens of real authorization servers, and of one that answers what it is told to."""

from __future__ import annotations

import asyncio
import json
import re
import time
import traceback
from collections.abc import AsyncIterator, Callable, Mapping
from email.utils import formatdate
from typing import Any, Final

import httpx
import pytest

from stateful_workflow.errors import (
    AddressRefused,
    AnswerUnusable,
    GrantRefused,
    ProviderUnreachable,
    RateLimited,
    ReplyLost,
    SourceError,
    TokenRefused,
)
from stateful_workflow.source import Narrows, Probes, Retires, Source, oauth
from stateful_workflow.source.oauth import OAuthSource
from tests.engine.test_engine import free_port
from tests.support.api import start_api
from tests.support.authorization_servers import SIGNING, AuthorizationServer, client_key

ALL: Final = ["oauth_toolkit", "strict_oauth_toolkit", "oidc_provider", "authgent"]
REFRESH: Final = "CANARY-refresh-token"
SECRET: Final = "CANARY-client-secret"


@pytest.fixture
def server(request: pytest.FixtureRequest) -> AuthorizationServer:
    return request.getfixturevalue(request.param)


def source_of(server: AuthorizationServer, **other: Any) -> OAuthSource:
    settings: dict[str, Any] = {"client_id": server.client_id, "issuer": server.issuer}
    settings |= {"client_secret": server.client_secret, **other}
    return OAuthSource(**settings)


# --- at real authorization servers ----------------------------------------------------------------


@pytest.mark.parametrize("server", ALL, indirect=True)
async def test_a_refresh_token_is_exchanged_once_and_the_next_grant_is_given(
    server: AuthorizationServer,
) -> None:
    source, grant, before = source_of(server), server.new_grant(), server.exchanges()
    asked_at = time.time()
    first = await source.mint(grant)
    assert server.exchanges() == before + 1
    assert server.is_active(first.token)
    assert first.expires_at is not None
    assert asked_at + 3500 < first.expires_at <= time.time() + 3600
    assert first.grant is not None
    assert first.grant.keys() == {"refresh_token"}
    assert first.grant != grant
    second = await source.mint(first.grant)
    assert server.is_active(second.token)
    assert server.exchanges() == before + 2


@pytest.mark.parametrize("server", ALL, indirect=True)
async def test_the_credentials_of_a_client_are_exchanged_and_nothing_follows(
    server: AuthorizationServer,
) -> None:
    minted = await source_of(server, scopes=["read"]).mint({})
    assert server.is_active(minted.token)
    assert minted.grant is None


@pytest.mark.parametrize("server", ALL, indirect=True)
async def test_a_grant_that_was_ended_is_refused(server: AuthorizationServer) -> None:
    source = source_of(server)
    minted = await source.mint(server.new_grant())
    assert minted.grant is not None
    server.end(minted.grant)
    with pytest.raises(GrantRefused, match="good no more"):
        await source.mint(minted.grant)


@pytest.mark.parametrize("server", ALL[1:], indirect=True)
async def test_without_a_grace_what_is_sent_again_ends_the_grant(
    server: AuthorizationServer,
) -> None:
    source, grant = source_of(server), server.new_grant()
    minted = await source.mint(grant)
    for ended in (grant, minted.grant):
        assert ended is not None
        with pytest.raises(GrantRefused):
            await source.mint(ended)


async def test_within_a_grace_the_same_grant_gives_the_same_token_again(
    oauth_toolkit: AuthorizationServer,
) -> None:
    source, grant = source_of(oauth_toolkit), oauth_toolkit.new_grant()
    first, again = await source.mint(grant), await source.mint(grant)
    assert (first.token, first.grant) == (again.token, again.grant)
    # It says the whole lifetime again, of a token that is older.
    assert first.expires_at is not None
    assert again.expires_at is not None
    assert first.expires_at < again.expires_at


@pytest.mark.parametrize("server", ALL, indirect=True)
async def test_a_client_that_is_not_known_is_no_dead_grant(server: AuthorizationServer) -> None:
    grant = server.new_grant()
    with pytest.raises(AnswerUnusable, match="check the source's client_id") as raised:
        await source_of(server, client_secret=SECRET).mint(grant)
    assert not raised.value.reached
    assert server.is_active((await source_of(server).mint(grant)).token)


@pytest.mark.parametrize("server", ["oauth_toolkit", "oidc_provider"], indirect=True)
async def test_a_public_client_has_no_secret(server: AuthorizationServer) -> None:
    client = server.public_client_id
    source = source_of(server, client_id=client, client_secret=None)
    assert server.is_active((await source.mint(server.new_grant(client))).token)


@pytest.mark.parametrize("server", ["oauth_toolkit", "authgent"], indirect=True)
async def test_a_client_sends_its_secret_in_the_form(server: AuthorizationServer) -> None:
    source = source_of(server, auth="client_secret_post")
    assert server.is_active((await source.mint({})).token)


async def test_a_client_signs_with_its_key(oidc_provider: AuthorizationServer) -> None:
    key = client_key().as_pem(private=True).decode()
    source = source_of(
        oidc_provider, client_id=SIGNING, client_secret=lambda: key, auth="private_key_jwt"
    )
    minted = await source.mint(oidc_provider.new_grant(SIGNING))
    assert oidc_provider.is_active(minted.token)


@pytest.mark.parametrize("server", ALL, indirect=True)
async def test_what_was_retired_is_refused(server: AuthorizationServer) -> None:
    source = source_of(
        server,
        issuer=None,
        token_url=server.token_url,
        revocation_url=server.revocation_url,
        introspection_url=server.introspection_url,
    )
    assert isinstance(source, Source)
    assert isinstance(source, Retires)
    assert isinstance(source, Probes)
    kept, retired = await source.mint({}), await source.mint({})
    await source.probe(retired.token, {})
    await source.retire(retired.token, {})
    await source.retire(retired.token, {})
    with pytest.raises(TokenRefused):
        await source.probe(retired.token, {})
    await source.probe(kept.token, {})


@pytest.mark.parametrize("server", ALL, indirect=True)
async def test_what_becomes_of_the_token_before_is_the_servers_choice(
    server: AuthorizationServer,
) -> None:
    source = source_of(server)
    first = await source.mint(server.new_grant())
    assert first.grant is not None
    await source.mint(first.grant)
    assert server.is_active(first.token) is server.keeps_tokens


async def test_a_server_may_end_the_grant_with_a_token_that_is_retired(
    oidc_provider: AuthorizationServer,
) -> None:
    source = source_of(oidc_provider)
    minted = await source.mint(oidc_provider.new_grant())
    assert minted.grant is not None
    with pytest.raises(SourceError, match="can_retire=False"):
        await source_of(oidc_provider, can_retire=False).retire(minted.token, {})
    assert oidc_provider.is_active(minted.token)
    await source.retire(minted.token, {})
    with pytest.raises(GrantRefused):
        await source.mint(minted.grant)


async def test_a_token_is_narrowed_to_some_of_its_scopes(authgent: AuthorizationServer) -> None:
    source = source_of(authgent, params={"audience": "https://api.example.com"})
    assert isinstance(source, Narrows)
    whole = await source.mint(authgent.new_grant())
    narrow = await source.narrow(whole.token, {}, ["read"])
    assert narrow.grant is None
    said = authgent.introspected(narrow.token)
    assert said["active"]
    assert said["scope"] == "read"
    with pytest.raises(SourceError):
        await source.narrow(narrow.token, {}, ["read", "write"])
    authgent.revoke(whole.token)
    with pytest.raises(SourceError):
        await source.narrow(whole.token, {}, ["read"])


async def test_the_api_itself_is_asked_whether_it_takes_a_token() -> None:
    with start_api() as api:
        api.valid = {"good"}
        source = OAuthSource(
            "client", token_url="https://login.example.com/token", probe_url=f"{api.origin}/me"
        )
        await source.probe("good", {})
        with pytest.raises(TokenRefused, match="does not take the token"):
            await source.probe("bad", {})


# --- at one that answers what it is told to -------------------------------------------------------


class Scripted:
    """Answers each connection with these bytes and closes it; None leaves it without an answer.

    Attributes:
        behind: a URL to which each request is passed on before that; what it answers is lost.
    """

    def __init__(self) -> None:
        self.answer: bytes | None = b""
        self.behind: str | None = None
        self.requests: list[bytes] = []
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readexactly(1)
        if head == b"\x16":  # TLS, which it does not speak
            writer.close()
            return
        head += await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head.lower())
        body = await reader.readexactly(int(length[1]) if length else 0)
        self.requests.append(head + body)
        if self.behind is not None:
            lines = dict(line.split(": ", 1) for line in head.decode().splitlines()[1:-1])
            kept = {name: lines[name] for name in ("Authorization", "Content-Type")}
            async with httpx.AsyncClient(timeout=30) as client:
                answer = await client.post(self.behind, content=body, headers=kept)
            assert answer.status_code == 200
        if self.answer is None:
            await reader.read()  # until the other side gives up
        else:
            writer.write(self.answer)
        writer.close()


@pytest.fixture
async def scripted() -> AsyncIterator[Scripted]:
    scripted = Scripted()
    server = await asyncio.start_server(scripted.serve, "127.0.0.1", 0)
    scripted.port = server.sockets[0].getsockname()[1]
    yield scripted
    server.close()


def http(status: int, body: object, *headers: str) -> bytes:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(content)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + content


def said(**members: object) -> bytes:
    return http(200, {"access_token": "secret", "token_type": "Bearer", **members})


async def minting(scripted: Scripted, answer: bytes | None, **settings: Any) -> SourceError:
    """The error of one exchange; it holds nothing secret, and comes of one request."""
    scripted.answer, scripted.requests = answer, []
    url = f"http://127.0.0.1:{scripted.port}/token"
    source = OAuthSource("client", token_url=url, client_secret=SECRET, **settings)
    with pytest.raises(SourceError) as raised:
        await source.mint({"refresh_token": REFRESH})
    assert len(scripted.requests) == 1
    assert REFRESH.encode() in scripted.requests[0]
    error = raised.value
    assert error.__context__ is None
    assert "CANARY" not in "".join(traceback.format_exception(error)) + repr(source)
    return error


INVALID_GRANT: Final = {"error": "invalid_grant", "error_description": REFRESH}

LATER: Final = "Retry-After: 17"

KINDS: Final[dict[str, tuple[bytes, type[SourceError], bool, Mapping[str, Any]]]] = {
    "invalid_grant": (http(400, INVALID_GRANT), GrantRefused, False, {}),
    "invalid_grant as 401": (http(401, INVALID_GRANT), GrantRefused, False, {}),
    "a code of its own, told": (
        http(200, {"error": "bad_refresh_token"}),
        GrantRefused,
        False,
        {"refused": ["bad_refresh_token"]},
    ),
    "a code of its own": (http(400, {"error": REFRESH}), AnswerUnusable, False, {}),
    "invalid_client": (http(401, {"error": "invalid_client"}), AnswerUnusable, False, {}),
    "unauthorized_client": (http(400, {"error": "unauthorized_client"}), AnswerUnusable, False, {}),
    "invalid_scope": (http(400, {"error": "invalid_scope"}), AnswerUnusable, False, {}),
    "400 with a page": (http(400, b"<html>" + REFRESH.encode()), AnswerUnusable, False, {}),
    "404": (http(404, b""), AnswerUnusable, False, {}),
    "429": (http(429, b""), RateLimited, False, {}),
    "slow_down": (http(400, {"error": "slow_down"}), RateLimited, False, {}),
    "temporarily_unavailable": (
        http(400, {"error": "temporarily_unavailable"}),
        ProviderUnreachable,
        False,
        {},
    ),
    "500": (http(500, INVALID_GRANT), ProviderUnreachable, True, {}),
    "502": (http(502, b"<html>"), ProviderUnreachable, True, {}),
    "503": (http(503, b""), ProviderUnreachable, False, {}),
    "504": (http(504, b""), ProviderUnreachable, True, {}),
    "server_error": (http(400, {"error": "server_error"}), ProviderUnreachable, True, {}),
    "closed without an answer": (b"", ReplyLost, True, {}),
    "cut in the head": (b"HTTP/1.1 200 OK\r\nContent-", ReplyLost, True, {}),
    "cut in the body": (said()[:-5], ReplyLost, True, {}),
    "no HTTP": (b"SSH-2.0-OpenSSH_9.6\r\n", ReplyLost, True, {}),
    "200 with nothing": (http(200, b""), AnswerUnusable, True, {}),
    "200 with a page": (http(200, b"<html>" + REFRESH.encode()), AnswerUnusable, True, {}),
    "200 with a list": (http(200, [1]), AnswerUnusable, True, {}),
    "200 that goes on": (said(more="x" * 70_000), AnswerUnusable, True, {}),
    "a member twice": (
        http(200, b'{"access_token":"a","access_token":"b"}'),
        AnswerUnusable,
        True,
        {},
    ),
    "no token": (said(access_token=None), AnswerUnusable, True, {}),
    "an empty token": (said(access_token=""), AnswerUnusable, True, {}),
    "a number for a token": (said(access_token=7), AnswerUnusable, True, {}),
    "a token of two lines": (said(access_token="a\r\nX: y"), AnswerUnusable, True, {}),
    "a token of another type": (said(token_type="DPoP"), AnswerUnusable, True, {}),
    "an expiry that is none": (said(expires_in="soon"), AnswerUnusable, True, {}),
    "a lifetime in JSON's true": (said(expires_in=True), AnswerUnusable, True, {}),
    "a number for a refresh token": (said(refresh_token=7), AnswerUnusable, True, {}),
}


@pytest.mark.parametrize("kind", KINDS)
async def test_each_failure_is_of_a_kind_and_takes_one_request(
    scripted: Scripted, kind: str
) -> None:
    answer, expected, reached, settings = KINDS[kind]
    error = await minting(scripted, answer, **settings)
    assert (type(error), error.reached) == (expected, reached)


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("date", [False, True], ids=["seconds", "date"])
async def test_who_asks_for_patience_says_for_how_long(
    scripted: Scripted, status: int, date: bool
) -> None:
    later = formatdate(time.time() + 3600, usegmt=True) if date else "3600"
    error = await minting(scripted, http(status, b"", f"Retry-After: {later}"))
    assert isinstance(error, RateLimited)
    assert error.retry_after is not None
    assert 3500 < error.retry_after <= 3600


@pytest.mark.parametrize("code", ["slow_down", "temporarily_unavailable"])
async def test_patience_asked_for_in_words_is_as_long_as_said(
    scripted: Scripted, code: str
) -> None:
    error = await minting(scripted, http(400, {"error": code}, LATER))
    assert isinstance(error, RateLimited)
    assert error.retry_after == 17


async def test_what_is_not_encrypted_goes_through_no_proxy(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    assert isinstance(await minting(scripted, http(400, INVALID_GRANT)), GrantRefused)


async def test_no_redirect_is_followed(scripted: Scripted) -> None:
    there = f"Location: http://127.0.0.1:{scripted.port}/elsewhere"
    error = await minting(scripted, http(307, b"", there))  # one request, it says
    assert isinstance(error, ProviderUnreachable)


async def test_an_answer_that_does_not_come_is_a_lost_reply(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oauth, "TIMEOUT", 1.0)
    error = await minting(scripted, None)
    assert type(error) is ReplyLost


@pytest.mark.parametrize("server", ALL, indirect=True)
async def test_what_a_lost_reply_costs_is_the_servers_choice(
    scripted: Scripted, server: AuthorizationServer
) -> None:
    source, grant, before = source_of(server), server.new_grant(), server.exchanges()
    scripted.behind = server.token_url
    losing = source_of(server, token_url=f"http://127.0.0.1:{scripted.port}/token")
    with pytest.raises(ReplyLost):
        await losing.mint(grant)
    assert server.exchanges() == before + 1
    if server.grace:
        assert server.is_active((await source.mint(grant)).token)
    else:
        with pytest.raises(GrantRefused):
            await source.mint(grant)


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_who_takes_no_connection_was_not_reached(scripted: Scripted, scheme: str) -> None:
    port = free_port() if scheme == "http" else scripted.port  # which speaks no TLS
    source = OAuthSource("client", token_url=f"{scheme}://127.0.0.1:{port}/", client_secret=SECRET)
    with pytest.raises(ProviderUnreachable) as raised:
        await source.mint({"refresh_token": REFRESH})
    assert not raised.value.reached
    assert scripted.requests == []


@pytest.mark.parametrize("following", [None, REFRESH])
async def test_a_refresh_token_that_is_not_replaced_is_kept(
    scripted: Scripted, following: str | None
) -> None:
    scripted.answer = said(refresh_token=following, expires_on=2_000_000_000)
    url = f"http://127.0.0.1:{scripted.port}/token"
    source = OAuthSource("client", token_url=url, margin=100)
    minted = await source.mint({"refresh_token": REFRESH})
    assert (minted.token, minted.grant, minted.expires_at) == ("secret", None, 1_999_999_900)


async def test_a_narrower_token_that_is_not_is_refused(scripted: Scripted) -> None:
    source = OAuthSource("client", token_url=f"http://127.0.0.1:{scripted.port}/token")
    scripted.answer = said(scope="read write")
    with pytest.raises(AnswerUnusable, match="other scopes"):
        await source.narrow("token", {}, ["read"])
    scripted.answer = said(scope="read", issued_token_type="x")
    assert (await source.narrow("token", {}, ["read", "write"])).token == "secret"


async def test_the_metadata_of_another_issuer_is_refused(scripted: Scripted) -> None:
    scripted.answer = http(200, {"issuer": "https://login.example.com", "token_endpoint": "x"})
    source = OAuthSource("client", issuer=f"http://127.0.0.1:{scripted.port}")
    with pytest.raises(AnswerUnusable, match="another issuer") as raised:
        await source.mint({"refresh_token": REFRESH})
    assert not raised.value.reached
    assert b"CANARY" not in b"".join(scripted.requests)


@pytest.mark.parametrize(
    "endpoint", ["http://login.example.com/token", "ftp://x/", 7, "https://u:p@x/", None]
)
async def test_an_endpoint_that_is_no_https_url_is_not_sent_to(
    scripted: Scripted, endpoint: object
) -> None:
    issuer = f"http://127.0.0.1:{scripted.port}"
    scripted.answer = http(200, {"issuer": issuer, "token_endpoint": endpoint})
    with pytest.raises(AnswerUnusable) as raised:
        await OAuthSource("client", issuer=issuer).mint({"refresh_token": REFRESH})
    assert not raised.value.reached
    assert len(scripted.requests) == 1


def failing() -> str:
    raise RuntimeError(SECRET)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"client_secret": failing}, ProviderUnreachable),
        ({"client_secret_env": "STATEFUL_NO_SUCH_SECRET"}, ProviderUnreachable),
        ({"client_secret": SECRET, "auth": "private_key_jwt"}, AnswerUnusable),
    ],
)
async def test_without_its_client_secret_it_asks_nothing(
    scripted: Scripted, settings: Mapping[str, Any], expected: type[SourceError]
) -> None:
    source = OAuthSource("client", token_url=f"http://127.0.0.1:{scripted.port}/", **settings)
    with pytest.raises(expected) as raised:
        await source.mint({})
    assert not raised.value.reached
    assert "CANARY" not in "".join(traceback.format_exception(raised.value))
    assert scripted.requests == []


async def test_the_client_secret_may_stand_in_the_environment(
    oidc_provider: AuthorizationServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OAUTH_SECRET", oidc_provider.client_secret)
    source = source_of(oidc_provider, client_secret=None, client_secret_env="OAUTH_SECRET")
    assert oidc_provider.is_active((await source.mint({})).token)


@pytest.mark.parametrize("grant", [{"token": REFRESH}, {"refresh_token": 7}, {"refresh_token": ""}])
async def test_what_is_no_grant_waits_for_somebody_to_authorize(grant: Mapping[str, Any]) -> None:
    with pytest.raises(GrantRefused):
        await OAuthSource("client", token_url="https://login.example.com/token").mint(grant)


@pytest.mark.parametrize(
    "make",
    [
        lambda: OAuthSource("client"),
        lambda: OAuthSource("client", token_url="http://login.example.com/token"),
        lambda: OAuthSource("client", issuer="http://localhost:8000"),
        lambda: OAuthSource("client", issuer="https://a.example", probe_url="http://a.example"),
        lambda: OAuthSource("client", issuer="https://a.example", auth="client_secret_post"),
        lambda: OAuthSource("client", issuer="https://a.example", client_secret="x", auth="none"),
        lambda: OAuthSource(
            "client", issuer="https://a.example", client_secret="x", client_secret_env="X"
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises((ValueError, AddressRefused)):
        make()
