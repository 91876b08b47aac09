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
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from contextlib import aclosing, closing
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import httpx

from ..sealed.message import DEFAULT_NAME
from ..sealed.token import ApiToken
from .presenting import Fallback, Outgoing, Presenter, Terms, host_detour
from .tokens import ActivityTokens, activity_tokens

if TYPE_CHECKING:
    from typing_extensions import Unpack

# A path and query (RFC 9112 section 3.2.1), or OPTIONS' asterisk.
_TARGET: Final = re.compile(rb"/[!-~]*|\*")

IsRefusal = Callable[[httpx.Response], bool]


@dataclass(frozen=True)
class _Wait:
    """A step of a flow that waits for something: what does so in a thread, and on the loop."""

    in_thread: Callable[[], Any]
    on_loop: Callable[[], Awaitable[Any]]


_Step = httpx.Request | _Wait
_Flow = Generator[_Step, Any, None]
"""Yields what is to be done, and gets what came of it: a response, or what was waited for."""


class TokenAuth(httpx.Auth):
    """httpx authentication with the running activity's token, as ``Authorization: Bearer``.

    Use it on a client or on one request, sync or async::

        async with httpx.AsyncClient(auth=TokenAuth()) as http: ...

    Args:
        name: credential name.
        scheme: what stands before the token; None for nothing.
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
        scheme: str | None = "Bearer",
        username: str | None = None,
        refused: IsRefusal | None = None,
        wait_for_newer: float | timedelta = 0.0,
        fallback: str | Callable[[], str] | None = None,
        origins: Sequence[str] = (),
    ) -> None:
        self._presenter = Presenter(
            name,
            scheme=scheme,
            username=username,
            wait_for_newer=wait_for_newer,
            fallback=fallback,
            origins=origins,
        )
        self._is_refusal = _is_401 if refused is None else refused

    def sync_auth_flow(
        self, request: httpx.Request
    ) -> Generator[httpx.Request, httpx.Response, None]:
        """See `httpx.Auth`."""
        with closing(self._flow(activity_tokens(), request)) as flow:
            answer: object = None
            while (step := _next(flow, answer)) is not None:
                answer = step.in_thread() if isinstance(step, _Wait) else (yield step)

    async def async_auth_flow(
        self, request: httpx.Request
    ) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """See `httpx.Auth`."""
        with closing(self._flow(activity_tokens(), request)) as flow:
            answer: object = None
            while (step := _next(flow, answer)) is not None:
                answer = await step.on_loop() if isinstance(step, _Wait) else (yield step)

    def _flow(self, tokens: ActivityTokens, request: httpx.Request) -> _Flow:
        presenter, rewind = self._presenter, _rewinding(request.stream)
        token: ApiToken | Fallback | None = yield _Wait(
            partial(presenter.current, tokens), partial(presenter.current_async, tokens)
        )
        known: list[httpx.Response] = []
        while token is not None:
            field = self._authorize(tokens, request, token)
            answers: list[httpx.Response] = []
            try:
                response: httpx.Response = yield request
                answers = [one for one in (*response.history, response) if one not in known]
            finally:
                self._record(tokens, token, field, request, answers)
            # httpx may have left the token behind on a redirect.
            if field not in response.request.headers.raw:
                return
            if not (yield from self._refuses(response)):
                return
            refused = tokens, token, None if known else rewind is not None
            token = yield _Wait(
                partial(presenter.after_refusal, *refused),
                partial(presenter.after_refusal_async, *refused),
            )
            known += answers
            if token is not None and rewind is not None:
                rewind()

    def _refuses(self, response: httpx.Response) -> Generator[_Wait, Any, bool]:
        try:
            return self._is_refusal(response)
        except httpx.ResponseNotRead:
            yield _Wait(response.read, response.aread)
            return self._is_refusal(response)

    def _authorize(
        self, tokens: ActivityTokens, request: httpx.Request, token: ApiToken | Fallback
    ) -> tuple[bytes, bytes]:
        """Put the token into the request, or put on record why it may not go there."""
        presenter = self._presenter
        value = presenter.field(tokens, token, _outgoing(request), *self._also(request.url))
        field = (presenter.header.encode("ascii"), value.encode())
        kept = [other for other in request.headers.raw if other[0].lower() != field[0].lower()]
        # As bytes: httpx's error over text would hold it.
        request.headers = httpx.Headers([*kept, field])
        return field

    def _record(
        self,
        tokens: ActivityTokens,
        token: ApiToken | Fallback,
        field: tuple[bytes, bytes],
        request: httpx.Request,
        answers: list[httpx.Response],
    ) -> None:
        """Put on record where the token went: which of the answered requests carried it.

        Where nothing came back it may have left all the same.
        """
        if not answers:
            self._presenter.recorded(tokens, token, _outgoing(request), None)
        for answer in answers:
            if field in answer.request.headers.raw:
                asked = _outgoing(answer.request)
                self._presenter.recorded(tokens, token, asked, answer.status_code)

    def _also(self, url: httpx.URL) -> list[Outgoing]:
        """Where httpx takes Authorization along: on a redirect from http://HOST to https://HOST."""
        if (url.scheme, url.port or 80) != ("http", 80):
            return []
        return [Outgoing(_place(url.copy_with(scheme="https", port=None)), "GET")]


class _KeyAuth(TokenAuth):
    """`TokenAuth` in a header of its own, whose requests httpx does not redirect by itself."""

    def __init__(self, presenter: Presenter, refused: IsRefusal | None) -> None:
        self._presenter = presenter
        self._is_refusal = _is_401 if refused is None else refused

    def _also(self, url: httpx.URL) -> list[Outgoing]:
        return []


class OriginTransport(httpx.BaseTransport):
    """A transport that adds the token in a header of its own to every request it lets out.

    Args:
        inner: what sends the requests, such as ``httpx.HTTPTransport()``.
        header: the header's name.
        name: credential name.
        refused, terms: as `TokenAuth`, but for the scheme: nothing stands before the token
            where none is given.

    Raises: as `TokenAuth`.
    """

    def __init__(
        self,
        inner: httpx.BaseTransport,
        *,
        header: str = "X-API-Key",
        name: str = DEFAULT_NAME,
        refused: IsRefusal | None = None,
        **terms: Unpack[Terms],
    ) -> None:
        self._inner = inner
        self._auth = _KeyAuth(Presenter(name, header=header, **terms), refused)

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
        refused: IsRefusal | None = None,
        **terms: Unpack[Terms],
    ) -> None:
        self._inner = inner
        self._auth = _KeyAuth(Presenter(name, header=header, **terms), refused)

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


def _next(flow: _Flow, answer: object) -> _Step | None:
    """The next step of a flow, or None at its end."""
    try:
        return flow.send(answer)
    except StopIteration:
        return None


def _is_401(response: httpx.Response) -> bool:
    """Whether an answer says that the API does not take the token, where the user says nothing."""
    return response.status_code == 401


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
    hosts = [
        value.decode("latin-1") for key, value in request.headers.raw if key.lower() == b"host"
    ]
    detour = host_detour(_place(url), *hosts)
    if detour is not None:
        return detour
    target = request.extensions.get("target", b"/")
    if not _TARGET.fullmatch(target.encode() if isinstance(target, str) else target):
        return "a `target` extension that is no path"
    host = url.raw_host.decode("ascii")
    if (request.extensions.get("sni_hostname") or host) != host:
        return "an `sni_hostname` extension that is not its URL's host"
    return None
