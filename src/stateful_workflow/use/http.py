"""Send the current token with httpx: only to its signed origins, and always the newest.

`TokenAuth` puts it into ``Authorization``, which httpx strips on a redirect to another
origin. `OriginTransport` puts it into another header and checks every request of a
redirect chain, since httpx keeps such headers. Neither sends a request that names
another host beside its URL: in its ``Host`` header, or by httpx's extensions ``target``
and ``sni_hostname``.

Both are for activities. When the API refuses the token, they ask the workflow for the
newest and report the refusal; where there is a newer one, they send the request once
more in place, if its body can be sent again.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import httpx

from ..sealed.message import DEFAULT_NAME
from .newest import at_once
from .presenting import Exchange, Outgoing, Presenter, Terms, host_detour, is_401

if TYPE_CHECKING:
    from typing_extensions import Unpack

# A path and query (RFC 9112 section 3.2.1), or OPTIONS' asterisk.
_TARGET: Final = re.compile(rb"/[!-~]*|\*")

IsRefusal = Callable[[httpx.Response], bool]


T = TypeVar("T")


class TokenAuth(httpx.Auth):
    """httpx authentication with the running activity's token, as ``Authorization: Bearer``.

    Use it on a client or on one request, sync or async::

        async with httpx.AsyncClient(auth=TokenAuth()) as http: ...

    Args:
        name: credential name.
        scheme: what stands before the token; Bearer if none is given, None for nothing.
        username: with ``scheme="Basic"``, whose password the token is; without it the token is
            ``user:password``.
        refused: whether an answer says that the API does not take the token; None for the
            status 401. It may look at the answer's body.
        wait_for_newer: seconds, or a timedelta, to wait within the request for another token,
            where the one held was refused, is past its expiry, or there is none to use.
        fallback: a secret, or what gives one, for the time before the workflow has its first
            token. It is used only while the workflow answers that it never held one of this
            name, was never kept from it, and that none was revoked; on record as *fallback*.
        origins: where the fallback may be sent, such as ``["https://api.example.com"]``.

    Raises:
        ValueError: an argument is not what it has to be.

    Raises, when a request is sent:
        OriginNotAllowed: the request's origin is not among the token's signed ones, or the
            request names another host beside it.
        StatefulError: as `stateful_workflow.current_token`.
    """

    def __init__(
        self,
        name: str = DEFAULT_NAME,
        *,
        refused: IsRefusal | None = None,
        **terms: Unpack[Terms],
    ) -> None:
        terms.setdefault("scheme", "Bearer")
        self._presenter = Presenter(name, **terms)
        self._is_refusal = is_401 if refused is None else refused

    def sync_auth_flow(
        self, request: httpx.Request
    ) -> Generator[httpx.Request, httpx.Response, None]:
        """See `httpx.Auth`."""
        flow = self._flow(request, blocks=True)
        try:
            sent = at_once(anext(flow))
            while True:
                sent = at_once(flow.asend((yield sent)))
        except StopAsyncIteration:
            return
        finally:
            at_once(flow.aclose())

    def async_auth_flow(
        self, request: httpx.Request
    ) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """See `httpx.Auth`."""
        return self._flow(request, blocks=False)

    async def _flow(
        self, request: httpx.Request, *, blocks: bool
    ) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """Either of them; it never suspends where the caller `blocks`."""
        exchange, rewind = await self._presenter.begin(blocks=blocks), _rewinding(request.stream)
        known: list[httpx.Response] = []
        while True:
            field = self._authorize(exchange, request)
            answers: list[httpx.Response] = []
            try:
                response = yield request
                answers = [one for one in (*response.history, response) if one not in known]
            finally:
                if not answers:  # it may have left all the same
                    exchange.recorded(_outgoing(request), None)
                for answer in answers:
                    if field in answer.request.headers.raw:
                        exchange.recorded(_outgoing(answer.request), answer.status_code)
            # httpx may have left the token behind on a redirect.
            if field not in response.request.headers.raw:
                return
            try:
                is_refused = self._is_refusal(response)
            except httpx.ResponseNotRead:
                _ = response.read() if blocks else await response.aread()
                is_refused = self._is_refusal(response)
            if not is_refused or not await exchange.goes_on(rewind is not None):
                return
            known += answers
            if rewind is not None:
                rewind()

    def _authorize(self, exchange: Exchange, request: httpx.Request) -> tuple[bytes, bytes]:
        """Put the token into the request, or put on record why it may not go there."""
        value = exchange.field(_outgoing(request), *self._also(request.url))
        field = (self._presenter.header.encode("ascii"), value.encode())
        kept = [other for other in request.headers.raw if other[0].lower() != field[0].lower()]
        # As bytes: httpx's error over text would hold it.
        request.headers = httpx.Headers([*kept, field])
        return field

    def _also(self, url: httpx.URL) -> list[Outgoing]:
        """Where httpx takes Authorization along: on a redirect from http://HOST to https://HOST."""
        if (url.scheme, url.port or 80) != ("http", 80):
            return []
        return [Outgoing(_place(url.copy_with(scheme="https", port=None)), "GET")]


class _KeyAuth(TokenAuth):
    """`TokenAuth` in a header of its own, whose requests httpx does not redirect by itself."""

    def __init__(self, presenter: Presenter, refused: IsRefusal | None) -> None:
        self._presenter = presenter
        self._is_refusal = is_401 if refused is None else refused

    def _also(self, url: httpx.URL) -> list[Outgoing]:
        return []

    async def exchange(
        self,
        request: httpx.Request,
        send: Callable[[httpx.Request], Awaitable[httpx.Response]],
        close: Callable[[httpx.Response], Awaitable[None]],
        *,
        blocks: bool,
    ) -> httpx.Response:
        """Send a copy of a request with the token, by a transport's own two calls."""
        async with aclosing(self._flow(_copy(request), blocks=blocks)) as flow:
            sent = await anext(flow)
            while True:
                response = await send(sent)
                response.request = sent
                try:
                    sent = await flow.asend(response)
                except StopAsyncIteration:
                    response.request = request  # what was sent has the token in a header
                    return response
                except BaseException:
                    await close(response)
                    raise
                await close(response)


class _Transport(Generic[T]):
    """What both transports are: a `_KeyAuth` around another transport."""

    def __init__(
        self,
        inner: T,
        *,
        header: str = "X-API-Key",
        name: str = DEFAULT_NAME,
        refused: IsRefusal | None = None,
        **terms: Unpack[Terms],
    ) -> None:
        self._inner = inner
        self._auth = _KeyAuth(Presenter(name, header=header, **terms), refused)


class OriginTransport(_Transport[httpx.BaseTransport], httpx.BaseTransport):
    """A transport that adds the token in a header of its own to every request it lets out.

    Args:
        inner: what sends the requests, such as ``httpx.HTTPTransport()``.
        header: the header's name.
        name: credential name.
        refused, terms: as `TokenAuth`, but for the scheme: nothing stands before the token
            where none is given.

    Raises: as `TokenAuth`.
    """

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """See `httpx.BaseTransport`."""

        async def send(sent: httpx.Request) -> httpx.Response:
            return self._inner.handle_request(sent)

        async def close(response: httpx.Response) -> None:
            response.close()

        return at_once(self._auth.exchange(request, send, close, blocks=True))

    def close(self) -> None:
        """Close the inner transport."""
        self._inner.close()


class AsyncOriginTransport(_Transport[httpx.AsyncBaseTransport], httpx.AsyncBaseTransport):
    """`OriginTransport` for `httpx.AsyncClient`."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """See `httpx.AsyncBaseTransport`."""
        send, close = self._inner.handle_async_request, httpx.Response.aclose
        return await self._auth.exchange(request, send, close, blocks=False)

    async def aclose(self) -> None:
        """Close the inner transport."""
        await self._inner.aclose()


def _rewinding(stream: object) -> Callable[[], object] | None:
    """What makes a request's body ready to be sent again, or None where it cannot be.

    httpx begins its multipart bodies anew by itself, where their files can seek.
    """
    if isinstance(stream, httpx.ByteStream):
        return lambda: None
    fields = getattr(stream, "fields", None)
    if fields is not None:
        files = [getattr(one, "file", b"") for one in fields]
        is_rewound = all(isinstance(one, str | bytes) or _is_seekable(one) for one in files)
        return (lambda: None) if is_rewound else None
    file = getattr(stream, "_stream", None)  # of `content=`
    return partial(file.seek, file.tell()) if file is not None and _is_seekable(file) else None


def _is_seekable(file: Any) -> bool:
    seekable = getattr(file, "seekable", None)
    return hasattr(file, "read") and seekable is not None and seekable() is True


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


def _outgoing(request: httpx.Request) -> Outgoing:
    return Outgoing(_place(request.url), request.method, _detour(request))


def _detour(request: httpx.Request) -> str | None:
    """What in a request, beside its URL's host and port, could bring it to somebody else."""
    url = request.url
    if url.userinfo:
        return "user information in its URL"
    detour = host_detour(_place(url), *request.headers.get_list("host"))
    if detour is not None:
        return detour
    target = request.extensions.get("target", b"/")
    if not _TARGET.fullmatch(target.encode() if isinstance(target, str) else target):
        return "a `target` extension that is no path"
    host = url.raw_host.decode("ascii")
    if (request.extensions.get("sni_hostname") or host) != host:
        return "an `sni_hostname` extension that is not its URL's host"
    return None
