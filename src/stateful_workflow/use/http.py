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

import asyncio
import concurrent.futures
import re
import time
from collections.abc import AsyncGenerator, Coroutine, Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import httpx

from ..errors import NewestUnknown, OriginNotAllowed, StatefulError, TokenMalformed
from ..sealed.message import DEFAULT_NAME
from ..sealed.origins import is_allowed, origin_of
from ..sealed.token import ApiToken
from .tokens import ActivityTokens, activity_tokens

T = TypeVar("T")

# RFC 9110 section 5.5: no control characters, no white space at the ends.
_HEADER_VALUE: Final = re.compile(r"[^\x00-\x20\x7f]+(?:[ \t]+[^\x00-\x20\x7f]+)*")
# A path and query (RFC 9112 section 3.2.1), or OPTIONS' asterisk.
_TARGET: Final = re.compile(rb"/[!-~]*|\*")
_WAIT_FOR_NEWER_SECONDS: Final = 1.0
_SYNC_TIMEOUT_SECONDS: Final = 20.0


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

    def sync_auth_flow(
        self, request: httpx.Request
    ) -> Generator[httpx.Request, httpx.Response, None]:
        """See `httpx.Auth`."""
        source = _Source(self._name)
        token = source.current()
        sent = _Sent(source, request)
        request.extensions["trace"] = sent.trace
        sent.authorize(token)
        try:
            response = yield request
            sent.answered(response)
            if _may_resend(request, response):
                newer = source.newer_than(token)
                if newer is not None:
                    response.read()
                    sent.authorize(newer)
                    response = yield request
                    sent.answered(response)
        finally:
            sent.ended()

    async def async_auth_flow(
        self, request: httpx.Request
    ) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """See `httpx.Auth`."""
        source = _Source(self._name)
        token = await source.current_async()
        sent = _Sent(source, request)
        request.extensions["trace"] = sent.trace_async
        sent.authorize(token)
        try:
            response = yield request
            sent.answered(response)
            if _may_resend(request, response):
                newer = await source.newer_than_async(token)
                if newer is not None:
                    await response.aread()
                    sent.authorize(newer)
                    response = yield request
                    sent.answered(response)
        finally:
            sent.ended()


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
        self._header = header
        self._name = name

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """See `httpx.BaseTransport`."""
        source = _Source(self._name)
        token = source.current()
        response = self._send(source, request, token)
        if response.status_code == 401 and _is_replayable(request):
            try:
                newer = source.newer_than(token)
            except BaseException:
                response.close()
                raise
            if newer is not None:
                response.close()
                return self._send(source, request, newer)
        return response

    def _send(self, source: _Source, request: httpx.Request, token: ApiToken) -> httpx.Response:
        sent = _with(request, self._header, source.secret_for(request, token))
        try:
            response = self._inner.handle_request(sent)
        except BaseException:
            source.used(token, _origin(request.url), request.method, None)
            raise
        source.used(token, _origin(request.url), request.method, response.status_code)
        return response

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
        self._header = header
        self._name = name

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """See `httpx.AsyncBaseTransport`."""
        source = _Source(self._name)
        token = await source.current_async()
        response = await self._send(source, request, token)
        if response.status_code == 401 and _is_replayable(request):
            try:
                newer = await source.newer_than_async(token)
            except BaseException:
                await response.aclose()
                raise
            if newer is not None:
                await response.aclose()
                return await self._send(source, request, newer)
        return response

    async def _send(
        self, source: _Source, request: httpx.Request, token: ApiToken
    ) -> httpx.Response:
        sent = _with(request, self._header, source.secret_for(request, token))
        try:
            response = await self._inner.handle_async_request(sent)
        except BaseException:
            source.used(token, _origin(request.url), request.method, None)
            raise
        source.used(token, _origin(request.url), request.method, response.status_code)
        return response

    async def aclose(self) -> None:
        """Close the inner transport."""
        await self._inner.aclose()


class _Source:
    """Where a request's token comes from, and where it stands on record that it was sent.

    It comes from the activity, asked again where need be.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._tokens: ActivityTokens = activity_tokens()

    def authorize(self, request: httpx.Request, token: ApiToken) -> None:
        """Put the token into ``Authorization``, or put on record why it may not go there."""
        with self._refusing(request, token):
            _authorize(request, token)

    def secret_for(self, request: httpx.Request, token: ApiToken) -> str:
        """The secret for a request, or on record why it may not go there."""
        with self._refusing(request, token):
            return _for(request, token)

    @contextmanager
    def _refusing(self, request: httpx.Request, token: ApiToken) -> Generator[None, None, None]:
        try:
            yield
        except StatefulError as error:
            self._tokens.refused(
                self._name,
                token.message,
                error,
                origin=_origin(request.url),
                method=request.method,
            )
            raise

    def used(self, token: ApiToken, origin: str | None, method: str, status: int | None) -> None:
        """Put a request that carried the token on record, with the status of its answer.

        Args:
            token: that it carried.
            origin, method: of the request.
            status: None where no answer came.
        """
        self._tokens.recorder.record(
            self._tokens.event(
                "use",
                "unknown" if status is None else "success" if status < 400 else "failure",
                self._name,
                token.message,
                origin=origin,
                method=method,
                status=status,
            )
        )

    async def current_async(self) -> ApiToken:
        await self._tokens.refresh(self._name)
        return await self._tokens.open_async(self._name)

    async def newer_than_async(self, refused: ApiToken) -> ApiToken | None:
        """The newest token where it is not the refused one; else the refusal is reported once."""
        if self._tokens.client is None:
            return None
        await self._tokens.ask(self._name)
        if self._tokens.has_other_than(refused):
            return await self._tokens.open_async(self._name)
        await self._tokens.report(refused)
        give_up = time.monotonic() + _WAIT_FOR_NEWER_SECONDS
        while time.monotonic() < give_up:
            await asyncio.sleep(_WAIT_FOR_NEWER_SECONDS / 4)
            await self._tokens.ask(self._name)
            if self._tokens.has_other_than(refused):
                return await self._tokens.open_async(self._name)
        return None

    def current(self) -> ApiToken:
        loop = self._loop()
        if loop is not None and self._tokens.is_stale(self._name):
            self._run(self._tokens.refresh(self._name), loop)
        return self._tokens.open(self._name)

    def newer_than(self, refused: ApiToken) -> ApiToken | None:
        loop = self._loop()
        if loop is None:
            return None
        return self._run(self.newer_than_async(refused), loop)

    def _run(self, asking: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop) -> T:
        future = asyncio.run_coroutine_threadsafe(asking, loop)
        try:
            return future.result(_SYNC_TIMEOUT_SECONDS)
        except concurrent.futures.TimeoutError:
            future.cancel()
            raise NewestUnknown(
                f"the workflow was not heard of within {_SYNC_TIMEOUT_SECONDS:g} s for its newest "
                f"{self._name}; the activity is to be retried"
            ) from None

    def _loop(self) -> asyncio.AbstractEventLoop | None:
        """The worker's loop, where this thread may wait for it."""
        loop = self._tokens.loop
        if loop is None:
            return None
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        return None if running is loop else loop


class _Sent:
    """Puts on record each request of `TokenAuth` that carried the token, as it leaves.

    That is seen by httpcore's extension ``trace``, which httpx hands on to each hop of a
    redirect, or where a transport has none by the responses that come back.
    """

    def __init__(self, source: _Source, request: httpx.Request) -> None:
        self._source = source
        self._request = request
        self._theirs = request.extensions.get("trace")
        self._token: ApiToken | None = None
        self._carried = b""
        self._waiting: tuple[str | None, str] | None = None
        self._is_traced = False
        self._is_recorded = False
        self._answers: list[httpx.Response] = []

    def authorize(self, token: ApiToken) -> None:
        """Put the token into the request, or put on record why it may not go there."""
        self._source.authorize(self._request, token)
        self._token = token
        self._carried = _authorization(self._request.headers.raw)

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """See httpcore's documentation of its extensions."""
        self._saw(event, info)
        if self._theirs is not None:
            self._theirs(event, info)

    async def trace_async(self, event: str, info: Mapping[str, Any]) -> None:
        """See httpcore's documentation of its extensions."""
        self._saw(event, info)
        if self._theirs is not None:
            await self._theirs(event, info)

    def _saw(self, event: str, info: Mapping[str, Any]) -> None:
        self._is_traced = True
        if event.endswith(".send_request_headers.started"):
            self._settle(None)
            request = info["request"]
            if self._carried and _authorization(request.headers) == self._carried:
                self._waiting = _wire_origin(request.url), request.method.decode("ascii")
        elif event.endswith(".receive_response_headers.complete"):
            status = next((part for part in info["return_value"] if isinstance(part, int)), None)
            self._settle(status)

    def _settle(self, status: int | None) -> None:
        if self._waiting is not None:
            origin, method = self._waiting
            self._waiting = None
            self._used(origin, method, status)

    def _used(self, origin: str | None, method: str, status: int | None) -> None:
        if self._token is not None:
            self._is_recorded = True
            self._source.used(self._token, origin, method, status)

    def answered(self, response: httpx.Response) -> None:
        """A response came back, at the end of its redirects."""
        for answer in (*response.history, response):
            if any(answer is known for known in self._answers):
                continue
            self._answers.append(answer)
            request = answer.request
            if not self._is_traced and _authorization(request.headers.raw) == self._carried:
                self._used(_origin(request.url), request.method, answer.status_code)

    def ended(self) -> None:
        """Nothing more comes back."""
        self._settle(None)
        if not self._is_recorded:  # it may have left all the same
            self._used(_origin(self._request.url), self._request.method, None)


def _authorization(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    return next((value for name, value in headers if name.lower() == b"authorization"), b"")


def _wire_origin(url: Any) -> str | None:
    """The origin of one of httpcore's URLs; through a proxy its target is the URL itself."""
    target = url.target.decode("ascii")
    if target.startswith(("http://", "https://")):
        return _origin(httpx.URL(target))
    host = url.host.decode("ascii")
    host = f"[{host}]" if ":" in host and not host.startswith("[") else host
    port = "" if url.port is None else f":{url.port}"
    return _origin(httpx.URL(f"{url.scheme.decode('ascii')}://{host}{port}"))


def _authorize(request: httpx.Request, token: ApiToken) -> None:
    secret = _for(request, token)
    url = request.url
    # httpx takes Authorization along on a redirect from http://HOST to https://HOST.
    upgraded = _place(url.copy_with(scheme="https", port=None))
    upgrades = (url.scheme, url.port or 80) == ("http", 80)
    if upgrades and not is_allowed(origin_of(upgraded), token.origins):
        raise OriginNotAllowed(
            f"{token.name} may not be sent to {_place(url)} in Authorization, which httpx "
            f"would take along on a redirect to {upgraded}: its issuer must sign it for both"
        )
    request.headers = _headers(request, "Authorization", f"Bearer {secret}")


def _for(request: httpx.Request, token: ApiToken) -> str:
    """The secret, where the request goes to one of the token's origins."""
    origin = _origin(request.url)
    if origin is None or not is_allowed(origin, token.origins):
        raise OriginNotAllowed(
            f"{token.name} may not be sent to {origin or _place(request.url)}; its issuer signed "
            f"it for {', '.join(token.origins) or 'no origin at all'}"
        )
    detour = _detour(request)
    if detour is not None:
        raise OriginNotAllowed(f"{token.name} may not be sent to {origin} with {detour}")
    secret = token.reveal()
    if not _HEADER_VALUE.fullmatch(secret):
        raise TokenMalformed(
            f"{token.name} (version {token.version}) has characters that no HTTP header may have, "
            "such as a line end; set it again without them"
        )
    return secret


def _with(request: httpx.Request, header: str, secret: str) -> httpx.Request:
    """A copy to send: httpx copies the headers of the original into a redirect."""
    return httpx.Request(
        request.method,
        request.url,
        headers=_headers(request, header, secret),
        stream=request.stream,
        extensions=request.extensions,
    )


def _headers(request: httpx.Request, name: str, value: str) -> httpx.Headers:
    """A request's headers with one set, as bytes: httpx's error over text would hold it."""
    key = name.encode("ascii")
    kept = [item for item in request.headers.raw if item[0].lower() != key.lower()]
    return httpx.Headers([*kept, (key, value.encode())])


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


def _may_resend(request: httpx.Request, response: httpx.Response) -> bool:
    """Whether the origin that was asked refused the token, and the body can be sent again.

    After redirects elsewhere and back httpx has left the token behind.
    """
    refused = response.request
    return (
        response.status_code == 401
        and _origin(refused.url) == _origin(request.url)
        and refused.headers.get("Authorization") == request.headers.get("Authorization")
        and _is_replayable(request)
    )


def _is_replayable(request: httpx.Request) -> bool:
    return isinstance(request.stream, httpx.ByteStream)
