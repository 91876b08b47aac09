"""Tokens of an OAuth 2.0 authorization server; needs ``stateful-workflow[oauth]``.

Of authlib it takes how a client authenticates and where metadata is found. Its clients refresh by
themselves and read any answer, while here a mint is one POST on a connection of its own: where one
that was kept breaks, nobody can say whether the server has exchanged the refresh token.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from ssl import SSLContext
from typing import Any, Final, Literal
from urllib.parse import quote_plus, urlencode

import httpx

from ..errors import (
    AddressRefused,
    AnswerUnusable,
    GrantRefused,
    ProviderUnreachable,
    RateLimited,
    SourceError,
    StatefulError,
    TokenRefused,
)
from ..sealed.origins import checked_address, origin_of
from ..text.strict_json import json_object
from .clock import now as unix_now
from .exchange import TIMEOUT, exchanged, retry_after
from .expiry import expiry
from .protocol import Grant, Minted

try:
    from authlib.oauth2.auth import ClientAuth
    from authlib.oauth2.rfc7523 import PrivateKeyJWT
    from authlib.oauth2.rfc8414 import get_well_known_url
except ModuleNotFoundError as error:
    raise StatefulError(
        f"OAuthSource needs the package {error.name}: pip install 'stateful-workflow[oauth]'"
    ) from None

Auth = Literal["client_secret_basic", "client_secret_post", "private_key_jwt", "none"]
"""How a client authenticates (RFC 6749 section 2.3, RFC 7523 section 2.2)."""

_BEFORE: Final = TIMEOUT / 2
"""Seconds for what comes before an exchange, so that what is sent has time for its answer."""

_MAX_ANSWER: Final = 65_536
_TOKEN: Final = re.compile(r"[!-~]+")
_TO_CHECK: Final = {
    **dict.fromkeys(("invalid_client", "unauthorized_client"), "client_id, client secret and auth"),
    **dict.fromkeys(
        (
            *("access_denied", "invalid_grant", "invalid_request", "invalid_scope"),
            *("invalid_target", "unsupported_grant_type", "unsupported_token_type"),
        ),
        "scopes and params",
    ),
}
"""By error code. No other text of an answer is repeated: it may be anything, such as a token."""

_Refusal = type[GrantRefused] | type[TokenRefused]


class OAuthSource:
    """Client credentials, or a refresh token, exchanged for access tokens (RFC 6749).

    The grant is ``{}`` for client credentials, or ``{"refresh_token": "…"}``; where the server
    gives another refresh token with its answer, that is the next grant. The expiry is the earliest
    of the answer's ``expires_in``, its ``expires_on`` and the ``exp`` of a JWT.

    Args:
        client_id: the client's name at the authorization server.
        issuer: where its endpoints are found: by its metadata (RFC 8414), or those of OpenID
            Connect; read once.
        token_url: the token endpoint; this and the next two go before what the metadata says.
        revocation_url: where tokens are revoked (RFC 7009).
        introspection_url: where it says whether a token is good (RFC 7662).
        probe_url: an address of the API that answers 401 to a token that it does not take, and 2xx
            to others; asked in the place of introspection.
        client_secret: a text, or what gives one, called at each exchange in a thread; with
            ``private_key_jwt`` an RSA key in PEM.
        client_secret_env: the environment variable that holds it.
        auth: how the client authenticates; None for HTTP Basic, or ``none`` without a secret.
        scopes: to ask for at each mint; none leaves it to the server.
        params: other parameters of each request for a token, such as ``audience`` or ``resource``.
        refused: the error codes that say that a grant is good no more.
        can_retire: False where the server ends the whole grant with a token that is revoked, as
            RFC 7009 section 2.1 lets it.
        margin: seconds before its expiry from which a token is not to be used, yet never more than
            half of what it has left.
        verify: the certificates that are trusted; None for those of httpx.

    Raises:
        AddressRefused: an address is no https URL, or http to a literal loopback address.
        ValueError: the arguments do not go together.
    """

    def __init__(
        self,
        client_id: str,
        *,
        issuer: str | None = None,
        token_url: str | None = None,
        revocation_url: str | None = None,
        introspection_url: str | None = None,
        probe_url: str | None = None,
        client_secret: str | Callable[[], str] | None = None,
        client_secret_env: str | None = None,
        auth: Auth | None = None,
        scopes: Sequence[str] = (),
        params: Mapping[str, str] | None = None,
        refused: Collection[str] = ("invalid_grant",),
        can_retire: bool = True,
        margin: float = 0,
        verify: SSLContext | None = None,
    ) -> None:
        if issuer is None and token_url is None:
            raise ValueError("give the issuer= or the token_url= of the authorization server")
        if client_secret is not None and client_secret_env is not None:
            raise ValueError("give the client secret in one way")
        has_secret = client_secret is not None or client_secret_env is not None
        self._auth: Auth = auth or ("client_secret_basic" if has_secret else "none")
        if has_secret != (self._auth != "none"):
            raise ValueError(f"auth={self._auth!r} does not go with the client secret, or its lack")
        self._urls = {"token": token_url, "revocation": revocation_url}
        self._urls["introspection"] = introspection_url
        for url in (issuer, probe_url, *self._urls.values()):
            if url is not None:
                checked_address(url, ())
        self._client_id = client_id
        self._issuer = issuer
        self._probe_url = probe_url
        self._secret = client_secret
        if client_secret_env is not None:
            self._secret = partial(os.environ.__getitem__, client_secret_env)
        self._params = dict(params or {})
        if scopes:
            self._params["scope"] = " ".join(scopes)
        self._refused = frozenset(refused)
        self._can_retire = can_retire
        self._margin = margin
        self._verify = httpx.create_ssl_context() if verify is None else verify

    def __repr__(self) -> str:
        where = self._issuer or self._urls["token"]
        return f"OAuthSource({self._client_id!r}, {where!r})"

    async def mint(self, grant: Grant) -> Minted:
        """Exchange the refresh token, or the client's credentials, for an access token."""
        form = {**self._params, "grant_type": "client_credentials"}
        refresh: object = None
        if grant:
            refresh = grant.get("refresh_token")
            if not isinstance(refresh, str) or not refresh or len(grant) != 1:
                raise GrantRefused("a grant is {} or has a 'refresh_token': authorize with such")
            form |= {"grant_type": "refresh_token", "refresh_token": refresh}
        answer, sent_at = await self._ask("token", form, refusal=GrantRefused)
        following = answer.get("refresh_token")
        if following is not None and not (isinstance(following, str) and following):
            raise AnswerUnusable("the authorization server gave a refresh token that is no text")
        is_kept = refresh is None or following in (None, refresh)
        return self._minted(answer, sent_at, None if is_kept else {"refresh_token": following})

    async def retire(self, token: str, values: Mapping[str, str]) -> None:
        """Revoke an access token (RFC 7009)."""
        if not self._can_retire:
            raise SourceError("this source revokes no tokens: it has can_retire=False")
        await self._ask("revocation", {"token": token, "token_type_hint": "access_token"})

    async def probe(self, token: str, values: Mapping[str, str]) -> None:
        """Ask the API with the token, or the authorization server about it (RFC 7662)."""
        if self._probe_url is None:
            form = {"token": token, "token_type_hint": "access_token"}
            active = (await self._ask("introspection", form))[0].get("active")
            if not isinstance(active, bool):
                raise AnswerUnusable("the authorization server does not say whether it is active")
            if not active:
                raise TokenRefused("the authorization server says that the token is not active")
            return
        headers = {"Authorization": f"Bearer {token}"}
        response = await self._send(TIMEOUT, "GET", self._probe_url, headers, changes=False)
        if response.status_code == 401:
            raise TokenRefused(f"{origin_of(self._probe_url)} does not take the token (401)")
        if not response.is_success:
            raise _not_done(self._probe_url, f"{response.status_code} to a probe")

    async def narrow(self, token: str, values: Mapping[str, str], scopes: Sequence[str]) -> Minted:
        """Exchange a token for one that has no more than the scopes (RFC 8693)."""
        form = {
            **self._params,
            "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
            "subject_token": token,
            "subject_token_type": "urn:ietf:params:oauth:token-type:access_token",
            "scope": " ".join(scopes),
        }
        answer, sent_at = await self._ask("token", form, refusal=TokenRefused)
        given = answer.get("scope")  # left out, it is as asked for (section 2.2.1)
        if given is not None and not (isinstance(given, str) and {*given.split()} <= {*scopes}):
            raise AnswerUnusable("the token that was derived has other scopes than were asked for")
        return self._minted(answer, sent_at, None)

    def _minted(self, answer: Mapping[str, Any], sent_at: float, grant: Grant | None) -> Minted:
        token, kind = answer.get("access_token"), answer.get("token_type", "Bearer")
        if not isinstance(token, str) or not _TOKEN.fullmatch(token):
            raise AnswerUnusable("the authorization server's answer has no access token")
        if not isinstance(kind, str) or kind.lower() != "bearer":
            raise AnswerUnusable("the authorization server gave a token that is no bearer token")
        lasts, at = answer.get("expires_in"), answer.get("expires_on")
        return Minted(token, expiry(token, sent_at, self._margin, lasts=lasts, at=at), grant=grant)

    async def _ask(
        self, endpoint: str, form: Mapping[str, str], refusal: _Refusal | None = None
    ) -> tuple[dict[str, Any], float]:
        """What the authorization server answers, and the Unix seconds at which it was asked."""
        began = time.monotonic()
        url = await self._url(endpoint)
        headers, body = self._authenticated(url, urlencode(form), await self._client_secret())
        headers["Content-Type"] = "application/x-www-form-urlencoded"
        sent_at, changes = unix_now(), endpoint != "introspection"
        left = began + TIMEOUT - time.monotonic()
        response = await self._send(left, "POST", url, headers, body, changes=changes)
        answer = _object(response)
        error = None if answer is None else answer.get("error")
        if not response.is_success or error is not None:
            raise self._failure(url, response, error, refusal)
        if answer is None and endpoint != "revocation":  # whose success has no body
            raise AnswerUnusable(f"{origin_of(url)} answered with what is no JSON object")
        return answer or {}, sent_at

    def _failure(
        self, url: str, response: httpx.Response, error: object, refusal: _Refusal | None
    ) -> SourceError:
        where, code = origin_of(url), error if isinstance(error, str) else ""
        after = retry_after(response.headers["Retry-After"], unix_now())
        if refusal is not None and code in self._refused:
            return refusal(f"{where} says that what was to be exchanged is good no more")
        if code == "slow_down" or (code == "temporarily_unavailable" and after is not None):
            return RateLimited(f"{where} asks for patience ({code})", after)
        if code in {"server_error", "temporarily_unavailable"}:
            return ProviderUnreachable(f"{where} answered {code}", reached=code == "server_error")
        if code in _TO_CHECK:
            return _not_done(url, f"{code}: check the source's {_TO_CHECK[code]}")
        return _not_done(url, f"{response.status_code} and no error of OAuth 2.0: check the URL")

    async def _url(self, endpoint: str) -> str:
        url = self._urls[endpoint]
        if url is None and self._issuer is not None:
            found = (await self._metadata(self._issuer)).get(f"{endpoint}_endpoint")
            with suppress(AddressRefused):
                if isinstance(found, str):
                    checked_address(found, ())
                    url = self._urls[endpoint] = found
        if url is None:
            problem = f"no https URL of a {endpoint} endpoint is known: give {endpoint}_url="
            raise AnswerUnusable(problem, reached=False)
        return url

    async def _metadata(self, issuer: str) -> dict[str, Any]:
        base, until = issuer.rstrip("/"), time.monotonic() + _BEFORE
        openid = f"{base}/.well-known/openid-configuration"
        for url in (get_well_known_url(base, external=True), openid):
            response = await self._send(until - time.monotonic(), "GET", url, {}, changes=False)
            metadata = _object(response)
            if response.is_success and metadata is not None:
                if metadata.get("issuer") != issuer:  # section 3.3
                    raise _not_done(issuer, "with the metadata of another issuer")
                return metadata
        raise _not_done(issuer, "without metadata: check issuer, or give token_url=")

    async def _client_secret(self) -> str:
        try:
            if callable(self._secret):
                return await asyncio.wait_for(asyncio.to_thread(self._secret), _BEFORE)
            return self._secret or ""
        except Exception as error:  # noqa: BLE001 - of a function of somebody's, with any text
            problem = f"the client secret cannot be had ({type(error).__name__})"
        raise ProviderUnreachable(problem)

    def _authenticated(self, url: str, body: str, secret: str) -> tuple[dict[str, str], str]:
        """The headers and the body of a request in which the client says who it is."""
        client: Any = ClientAuth(self._client_id, secret, self._auth)
        if self._auth == "client_secret_basic":  # each part encoded, as section 2.3.1 has it
            client = ClientAuth(quote_plus(self._client_id), quote_plus(secret), self._auth)
        elif self._auth == "private_key_jwt":
            client.auth_method = PrivateKeyJWT(url)
        with suppress(Exception):  # whose text may be the key's
            _, headers, body = client.prepare("POST", url, {}, body)
            return headers, body
        raise AnswerUnusable("the client secret is no RSA key in PEM", reached=False)

    async def _send(
        self,
        seconds: float,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: str | None = None,
        *,
        changes: bool,
    ) -> httpx.Response:
        """The answer, without its body where that is too long; raises as `exchanged`."""
        if seconds <= 0:
            raise ProviderUnreachable(f"there was no time left to ask {origin_of(url)}")
        usual = {"Accept": "application/json", "Accept-Encoding": "identity"}
        timeout = httpx.Timeout(seconds, connect=min(seconds, _BEFORE))

        async def whole() -> httpx.Response:
            async with (
                httpx.AsyncClient(
                    verify=self._verify,
                    timeout=timeout,
                    headers=usual,
                    trust_env=url.startswith("https:"),  # or a proxy would read it in clear text
                ) as http,
                http.stream(method, url, headers=headers, content=body) as response,
            ):
                content = b""
                async for chunk in response.aiter_raw():
                    content += chunk
                    if len(content) > _MAX_ANSWER:
                        content = b""
                        break
                kept = {"Retry-After": response.headers.get("Retry-After", "")}
                return httpx.Response(response.status_code, headers=kept, content=content)

        return await exchanged(whole(), seconds, origin_of(url), changes=changes)


def _object(response: httpx.Response) -> dict[str, Any] | None:
    try:
        return json_object(response.content)
    except ValueError:
        return None


def _not_done(url: str, what: str) -> SourceError:
    return AnswerUnusable(f"{origin_of(url)} answered {what}", reached=False)
