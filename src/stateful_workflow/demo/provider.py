"""A vendor's OAuth 2.0 authorization server on loopback: it issues the tokens that its API takes.

Small, and a real one: refresh tokens that are good once (RFC 6749 section 6), and one that comes a
second time ends the grant (RFC 9700 section 4.14.2); revocation (RFC 7009) and introspection (RFC
7662) for its one client. It knows nothing of workflows, and counts what the report says.
"""

from __future__ import annotations

import time
from base64 import b64encode
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from secrets import compare_digest, token_urlsafe
from typing import Any, Final
from urllib.parse import parse_qsl

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

from .api import TokenApi

CLIENT_ID: Final = "demo"


@dataclass
class _Grant:
    """What somebody has consented to: the refresh token that is good, if any, and its tokens."""

    refresh: str | None
    tokens: list[str] = field(default_factory=list[str])


@dataclass
class AuthorizationServer:
    """The authorization server of an API.

    Attributes:
        api: takes the tokens that are issued here.
        lives: seconds that a token lives which is issued from now on.
        client_secret: of its one client, which authenticates by HTTP Basic.
        exchanges: refresh tokens that were exchanged.
        retired: tokens that its client revoked while they were good.
    """

    api: TokenApi
    lives: float
    client_secret: str = field(default_factory=token_urlsafe, repr=False)
    exchanges: int = 0
    retired: list[str] = field(default_factory=list[str], repr=False)
    _grants: dict[str, _Grant] = field(default_factory=dict[str, _Grant], repr=False)

    @property
    def secrets(self) -> list[str]:
        """Whatever it gave out, but for tokens: its client's secret and all refresh tokens."""
        return [self.client_secret, *self._grants]

    def consent(self) -> str:
        """A new grant's first refresh token, as a browser's redirect would leave it."""
        return self._next(_Grant(None))

    def _next(self, grant: _Grant) -> str:
        grant.refresh = token_urlsafe(32)
        self._grants[grant.refresh] = grant
        return grant.refresh

    def app(self) -> Starlette:
        """The ASGI application, with the API's in it."""
        endpoints = {"token": self._token, "revoke": self._revoke, "introspect": self._introspect}
        routes = [
            Route(f"/{name}", self._of_client(act), methods=["POST"])
            for name, act in endpoints.items()
        ]
        return Starlette(routes=[*routes, Mount("/", self.api.app())])

    def _of_client(
        self, act: Callable[[dict[str, str]], dict[str, Any]]
    ) -> Callable[[Request], Awaitable[Response]]:
        pair = b64encode(f"{CLIENT_ID}:{self.client_secret}".encode()).decode()

        async def answer(request: Request) -> Response:
            if not compare_digest(request.headers.get("Authorization", ""), f"Basic {pair}"):
                return JSONResponse({"error": "invalid_client"}, 401)
            said = act(dict(parse_qsl((await request.body()).decode())))
            return JSONResponse(said, 400 if "error" in said else 200)

        return answer

    def _token(self, form: dict[str, str]) -> dict[str, Any]:
        if form.get("grant_type") != "refresh_token":
            return {"error": "unsupported_grant_type"}
        refresh = form.get("refresh_token", "")
        grant = self._grants.get(refresh)
        if grant is None or grant.refresh != refresh:
            if grant is not None:  # it was used before: by whom, nobody can say
                grant.refresh = None
                self.api.revoked.update(grant.tokens)
            return {"error": "invalid_grant"}
        self.exchanges += 1
        token = self.api.issue(time.time() + self.lives)
        grant.tokens.append(token)
        return {
            "access_token": token,
            "token_type": "Bearer",
            "expires_in": self.lives,
            "refresh_token": self._next(grant),
        }

    def _revoke(self, form: dict[str, str]) -> dict[str, Any]:
        token = form.get("token", "")
        if self.api.is_good(token):
            self.api.revoked.add(token)
            self.retired.append(token)
        return {}

    def _introspect(self, form: dict[str, str]) -> dict[str, Any]:
        return {"active": self.api.is_good(form.get("token", ""))}
