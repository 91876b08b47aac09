"""Send the current token with httpx: only to its signed origins, and always the newest.

`TokenAuth` puts it into ``Authorization``, which httpx strips on a redirect to another
origin. `OriginTransport` puts it into another header and checks every request of a
redirect chain, since httpx keeps such headers. Neither sends a request that names
another host beside its URL: in its ``Host`` header, or by httpx's extensions ``target``
and ``sni_hostname``.

Both are for activities. When the API answers 401, they ask the workflow for the
newest token and send the request once more in place, where it is newer and the body
can be sent again.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing, closing
from dataclasses import dataclass
from typing import Any, Final

import httpx

from ..errors import OriginNotAllowed, StatefulError, TokenMalformed
from ..sealed.message import DEFAULT_NAME
from ..sealed.origins import is_allowed, origin_of
from ..sealed.token import ApiToken
from .tokens import ActivityTokens, activity_tokens

# RFC 9110 section 5.5: no control characters, no white space at the ends.
_HEADER_VALUE: Final = re.compile(r"[^\x00-\x20\x7f]+(?:[ \t]+[^\x00-\x20\x7f]+)*")
# A path and query (RFC 9112 section 3.2.1), or OPTIONS' asterisk.
_TARGET: Final = re.compile(rb"/[!-~]*|\*")


@dataclass(frozen=True)
class _Wanted:
    """A step of a flow: the current token, or one in the place of the refused."""

    refused: ApiToken | None = None


_Flow = Generator[httpx.Request | _Wanted, Any, None]
"""Yields a request to send, and gets its response; or what token is wanted, and gets that."""


class TokenAuth(httpx.Auth):
    """httpx authentication with the running activity's token, as ``Authorization: Bearer``.

    Use it on a client or on one request, sync or async::

        async with httpx.AsyncClient(auth=TokenAuth()) as http: ...

    Raises, when a request is sent:
        OriginNotAllowed: the request's origin is not among the token's signed ones, or the
            request names another host beside it.
        StatefulError: as `stateful_workflow.current_token`.
    """

    def __init__(self, name: str = DEFAULT_NAME) -> None:
        self._name = name
        self._header = b"Authorization"
        self._scheme = b"Bearer "

    def sync_auth_flow(
        self, request: httpx.Request
    ) -> Generator[httpx.Request, httpx.Response, None]:
        """See `httpx.Auth`."""
        tokens = activity_tokens()
        with closing(self._flow(tokens, request)) as flow:
            answer: httpx.Response | ApiToken | None = None
            while (step := _next(flow, answer)) is not None:
                if isinstance(step, httpx.Request):
                    answer = yield step
                else:
                    answer = tokens.current(self._name, step.refused)

    async def async_auth_flow(
        self, request: httpx.Request
    ) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """See `httpx.Auth`."""
        tokens = activity_tokens()
        with closing(self._flow(tokens, request)) as flow:
            answer: httpx.Response | ApiToken | None = None
            while (step := _next(flow, answer)) is not None:
                if isinstance(step, httpx.Request):
                    answer = yield step
                else:
                    answer = await tokens.current_async(self._name, step.refused)

    def _flow(self, tokens: ActivityTokens, request: httpx.Request) -> _Flow:
        token: ApiToken | None = yield _Wanted()
        known: list[httpx.Response] = []
        for may_resend in (_is_replayable(request), False):
            if token is None:
                return
            field = self._authorize(tokens, request, token)
            answers: list[httpx.Response] = []
            try:
                response: httpx.Response = yield request
                answers = [one for one in (*response.history, response) if one not in known]
            finally:
                _record(tokens, token, field, request, answers)
            known += answers
            if not (may_resend and _is_refused(response, field)):
                return
            token = yield _Wanted(refused=token)

    def _authorize(
        self, tokens: ActivityTokens, request: httpx.Request, token: ApiToken
    ) -> tuple[bytes, bytes]:
        """Put the token into the request, or put on record why it may not go there."""
        try:
            self._check(request, token)
        except StatefulError as error:
            origin, method = _origin(request.url), request.method
            tokens.refused(self._name, token.message, error, origin=origin, method=method)
            raise
        field = (self._header, self._scheme + token.reveal().encode())
        kept = [other for other in request.headers.raw if other[0].lower() != field[0].lower()]
        # As bytes: httpx's error over text would hold it.
        request.headers = httpx.Headers([*kept, field])
        return field

    def _check(self, request: httpx.Request, token: ApiToken) -> None:
        """Raise where the token may not go with this request."""
        _require_allowed(request, token)
        url = request.url
        # httpx takes Authorization along on a redirect from http://HOST to https://HOST.
        upgraded = _place(url.copy_with(scheme="https", port=None))
        upgrades = (url.scheme, url.port or 80) == ("http", 80)
        if upgrades and not is_allowed(origin_of(upgraded), token.origins):
            raise OriginNotAllowed(
                f"{token.name} may not be sent to {_place(url)} in Authorization, which httpx "
                f"would take along on a redirect to {upgraded}: its issuer must sign it for both"
            )


class _KeyAuth(TokenAuth):
    """`TokenAuth` in a header of its own, whose requests httpx does not redirect by itself."""

    def __init__(self, name: str, header: str) -> None:
        super().__init__(name)
        self._header = header.encode("ascii")
        self._scheme = b""

    def _check(self, request: httpx.Request, token: ApiToken) -> None:
        _require_allowed(request, token)


class OriginTransport(httpx.BaseTransport):
    """A transport that adds the token in a header of its own to every request it lets out.

    Args:
        inner: what sends the requests, such as ``httpx.HTTPTransport()``.
        header: the header's name.
        name: credential name.

    Raises, when a request is sent: as `TokenAuth`.
    """

    def __init__(
        self, inner: httpx.BaseTransport, *, header: str = "X-API-Key", name: str = DEFAULT_NAME
    ) -> None:
        self._inner = inner
        self._auth = _KeyAuth(name, header)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """See `httpx.BaseTransport`."""
        with closing(self._auth.sync_auth_flow(_copy(request))) as flow:
            sent = next(flow)
            while True:
                response = self._inner.handle_request(sent)
                response.request = sent
                try:
                    sent = flow.send(response)
                except StopIteration:
                    response.request = request  # what was sent has the token in a header
                    return response
                except BaseException:
                    response.close()
                    raise
                response.close()

    def close(self) -> None:
        """Close the inner transport."""
        self._inner.close()


class AsyncOriginTransport(httpx.AsyncBaseTransport):
    """`OriginTransport` for `httpx.AsyncClient`."""

    def __init__(
        self,
        inner: httpx.AsyncBaseTransport,
        *,
        header: str = "X-API-Key",
        name: str = DEFAULT_NAME,
    ) -> None:
        self._inner = inner
        self._auth = _KeyAuth(name, header)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """See `httpx.AsyncBaseTransport`."""
        async with aclosing(self._auth.async_auth_flow(_copy(request))) as flow:
            sent = await anext(flow)
            while True:
                response = await self._inner.handle_async_request(sent)
                response.request = sent
                try:
                    sent = await flow.asend(response)
                except StopAsyncIteration:
                    response.request = request  # what was sent has the token in a header
                    return response
                except BaseException:
                    await response.aclose()
                    raise
                await response.aclose()

    async def aclose(self) -> None:
        """Close the inner transport."""
        await self._inner.aclose()


def _next(flow: _Flow, answer: object) -> httpx.Request | _Wanted | None:
    """The next step of a flow, or None at its end."""
    try:
        return flow.send(answer)
    except StopIteration:
        return None


def _require_allowed(request: httpx.Request, token: ApiToken) -> None:
    """Raise where the token may not go to the origin that a request names."""
    origin = _origin(request.url)
    if origin is None or not is_allowed(origin, token.origins):
        raise OriginNotAllowed(
            f"{token.name} may not be sent to {origin or _place(request.url)}; its issuer "
            f"signed it for {', '.join(token.origins) or 'no origin at all'}"
        )
    detour = _detour(request)
    if detour is not None:
        raise OriginNotAllowed(f"{token.name} may not be sent to {origin} with {detour}")
    if not _HEADER_VALUE.fullmatch(token.reveal()):
        raise TokenMalformed(
            f"{token.name} (version {token.version}) has characters that no HTTP header may "
            "have, such as a line end; set it again without them"
        )


def _record(
    tokens: ActivityTokens,
    token: ApiToken,
    field: tuple[bytes, bytes],
    request: httpx.Request,
    answers: list[httpx.Response],
) -> None:
    """Put on record where the token went: which of the answered requests carried it.

    Where nothing came back it may have left all the same.
    """
    if not answers:
        tokens.used(token, _origin(request.url), request.method, None)
    for answer in answers:
        asked = answer.request
        if field in asked.headers.raw:
            tokens.used(token, _origin(asked.url), asked.method, answer.status_code)


def _is_refused(response: httpx.Response, field: tuple[bytes, bytes]) -> bool:
    """Whether this answers a request that carried the token: httpx may have left it behind."""
    return response.status_code == 401 and field in response.request.headers.raw


def _is_replayable(request: httpx.Request) -> bool:
    return isinstance(request.stream, httpx.ByteStream)


def _copy(request: httpx.Request) -> httpx.Request:
    """What a transport sends: httpx copies the headers of the original into a redirect."""
    return httpx.Request(
        request.method,
        request.url,
        headers=request.headers,
        stream=request.stream,
        extensions=request.extensions,
    )


def _place(url: httpx.URL) -> str:
    """What httpx connects to: no user information, and the host as it is asked for."""
    return f"{url.scheme}://{url.netloc.decode('ascii')}"


def _origin(url: httpx.URL) -> str | None:
    try:
        return origin_of(_place(url))
    except ValueError:
        return None


def _detour(request: httpx.Request) -> str | None:
    """What in a request, beside its URL's host and port, could bring it to somebody else."""
    url = request.url
    if url.userinfo:
        return "user information in its URL"
    # A server, or a CDN in front of many, goes by these and not by where it was reached.
    hosts = {value.lower() for key, value in request.headers.raw if key.lower() == b"host"}
    if hosts - {url.netloc.lower()}:
        return "a Host header that is not its URL's"
    target = request.extensions.get("target", b"/")
    if not _TARGET.fullmatch(target.encode() if isinstance(target, str) else target):
        return "a `target` extension that is no path"
    host = url.raw_host.decode("ascii")
    if (request.extensions.get("sni_hostname") or host) != host:
        return "an `sni_hostname` extension that is not its URL's host"
    return None
