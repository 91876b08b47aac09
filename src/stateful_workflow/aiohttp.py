"""Send the current token with aiohttp; needs ``stateful-workflow[aiohttp]``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from inspect import isawaitable
from typing import TYPE_CHECKING

from aiohttp import ClientHandlerType, ClientRequest, ClientResponse

from .sealed.message import DEFAULT_NAME
from .use.presenting import Exchange, Outgoing, Presenter, Terms, host_detour, scheme_in

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["TokenMiddleware"]


class TokenMiddleware:
    """A client middleware that sends the running activity's token with every request::

        async with aiohttp.ClientSession(middlewares=[TokenMiddleware()]) as session: ...

    Each request of a chain of redirects is checked by itself: one to an origin that the token's
    issuer did not sign raises, and does not leave. It is to be the last of the middlewares:
    whatever comes after it sees the token, and may send it elsewhere.

    Args:
        name: credential name.
        header: where the token goes; in ``Authorization`` the scheme is Bearer if none is given.
        refused: whether an answer says that the API does not take the token, may be asynchronous;
            None for a 401.
        terms: as `stateful_workflow.TokenAuth`.

    Raises: as `stateful_workflow.TokenAuth`.
    """

    def __init__(
        self,
        name: str = DEFAULT_NAME,
        *,
        header: str = "Authorization",
        refused: Callable[[ClientResponse], bool | Awaitable[bool]] | None = None,
        **terms: Unpack[Terms],
    ) -> None:
        terms.setdefault("scheme", scheme_in(header))
        self._presenter = Presenter(name, header=header, **terms)
        self._is_refusal = _is_401 if refused is None else refused

    async def __call__(self, request: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
        """See aiohttp's client middlewares."""
        exchange = await self._presenter.begin(blocks=False)
        while True:
            response = await self._send(exchange, request, handler)
            try:
                refused = self._is_refusal(response)
                # Known when it was sent: aiohttp begins a body anew that it still has.
                may_resend = not getattr(request.body, "consumed", False)
                is_refused = await refused if isawaitable(refused) else refused
                if not is_refused or not await exchange.goes_on(may_resend):
                    return response
            except BaseException:
                response.close()
                raise
            response.release()
            await request.close()  # until its body is left alone

    async def _send(
        self, exchange: Exchange, request: ClientRequest, handler: ClientHandlerType
    ) -> ClientResponse:
        header, outgoing = self._presenter.header, _outgoing(request)
        request.headers[header] = exchange.field(outgoing)
        status = None
        try:
            response = await handler(request)
            status = response.status
        finally:
            # The answer, and aiohttp's errors, show the request's headers.
            request.headers.popall(header)
            exchange.recorded(outgoing, status)
        return response


def _is_401(response: ClientResponse) -> bool:
    return response.status == 401


def _outgoing(request: ClientRequest) -> Outgoing:
    url = request.url
    outgoing = Outgoing(str(url), request.method)
    detour = host_detour(outgoing.place, *request.headers.getall("Host", []))
    if detour is None and request.server_hostname not in (None, url.host):
        detour = "a `server_hostname` that is not its URL's host"
    return Outgoing(outgoing.url, outgoing.method, detour)
