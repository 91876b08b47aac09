"""The authorization servers that other tests stand on do what those tests take for granted."""

from __future__ import annotations

import httpx
import pytest

from tests.support.authorization_servers import AuthorizationServer

ALL = ["oauth_toolkit", "strict_oauth_toolkit", "oidc_provider", "authgent"]


@pytest.fixture
def server(request: pytest.FixtureRequest) -> AuthorizationServer:
    return request.getfixturevalue(request.param)


def exchange(server: AuthorizationServer, grant: dict[str, str]) -> httpx.Response:
    form = {"grant_type": "refresh_token", **grant}
    return httpx.post(server.token_url, data=form, auth=server.basic, timeout=30)


@pytest.mark.parametrize("server", ALL, indirect=True)
def test_each_rotates_counts_and_ends(server: AuthorizationServer) -> None:
    first, before = server.new_grant(), server.exchanges()
    answer = exchange(server, first).json()
    assert server.exchanges() == before + 1
    assert answer["refresh_token"] != first["refresh_token"]
    token, second = answer["access_token"], {"refresh_token": answer["refresh_token"]}
    assert server.is_active(token)
    server.revoke(token)
    assert not server.is_active(token)
    answer = exchange(server, second).json()
    server.end({"refresh_token": answer["refresh_token"]})
    ended = exchange(server, {"refresh_token": answer["refresh_token"]})
    assert (ended.status_code, ended.json()["error"]) == (400, "invalid_grant")


@pytest.mark.parametrize("server", ALL[1:], indirect=True)
def test_without_a_grace_a_reused_refresh_token_ends_the_grant(server: AuthorizationServer) -> None:
    first = server.new_grant()
    second = {"refresh_token": exchange(server, first).json()["refresh_token"]}
    assert exchange(server, first).json()["error"] == "invalid_grant"
    assert exchange(server, second).json()["error"] == "invalid_grant"


def test_within_a_grace_the_same_answer_comes_again(oauth_toolkit: AuthorizationServer) -> None:
    first = oauth_toolkit.new_grant()
    once, again = exchange(oauth_toolkit, first).json(), exchange(oauth_toolkit, first).json()
    assert once == again
