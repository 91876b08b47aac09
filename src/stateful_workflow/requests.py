"""Send the current token with requests; needs ``stateful-workflow[requests]``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from requests import PreparedRequest, RequestException, Response
from requests.adapters import BaseAdapter, HTTPAdapter
from requests.utils import rewind_body

from .sealed.message import DEFAULT_NAME
from .use.newest import at_once
from .use.presenting import Exchange, Outgoing, Presenter, Terms, host_detour, is_401, scheme_in

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["TokenAdapter"]


class TokenAdapter(BaseAdapter):
    """A transport adapter that sends the running activity's token with every request::

        session = requests.Session()
        session.mount("https://", TokenAdapter())

    Each request of a chain of redirects is checked by itself: one to an origin that the token's
    issuer did not sign raises, and does not leave.

    Args:
        name: credential name.
        header: where the token goes; in ``Authorization`` the scheme is Bearer if none is given.
        refused: whether an answer says that the API does not take the token; None for a 401.
        inner: what sends the requests; None for an ``HTTPAdapter()``.
        terms: as `stateful_workflow.TokenAuth`.

    Raises: as `stateful_workflow.TokenAuth`.
    """

    def __init__(
        self,
        name: str = DEFAULT_NAME,
        *,
        header: str = "Authorization",
        refused: Callable[[Response], bool] | None = None,
        inner: BaseAdapter | None = None,
        **terms: Unpack[Terms],
    ) -> None:
        super().__init__()
        terms.setdefault("scheme", scheme_in(header))
        self._presenter = Presenter(name, header=header, **terms)
        self._is_refusal = is_401 if refused is None else refused
        self._inner = HTTPAdapter() if inner is None else inner

    def send(self, request: PreparedRequest, *args: Any, **options: Any) -> Response:
        """See `requests.adapters.BaseAdapter`."""
        exchange = at_once(self._presenter.begin(blocks=True))
        may_resend = _can_be_sent_again(request)
        while True:
            response = self._send(exchange, request, *args, **options)
            try:
                if not self._is_refusal(response) or not at_once(exchange.goes_on(may_resend)):
                    return response
                if not isinstance(request.body, str | bytes | None):
                    rewind_body(request)
            except BaseException:
                response.close()
                raise
            response.close()

    def _send(
        self, exchange: Exchange, request: PreparedRequest, *args: Any, **options: Any
    ) -> Response:
        """Send a copy with the token: requests copies a request's headers into a redirect."""
        outgoing = _outgoing(request)
        sent = request.copy()
        field = exchange.field(outgoing)
        sent.headers[self._presenter.header] = field.encode()  # pyright: ignore[reportArgumentType]
        status = None
        try:
            response = self._inner.send(sent, *args, **options)
            status = response.status_code
        except RequestException as error:
            error.request = request
            raise
        finally:
            exchange.recorded(outgoing, status)
        response.request = request  # what was sent has the token in a header
        return response

    def close(self) -> None:
        """Close the inner adapter."""
        self._inner.close()


def _outgoing(request: PreparedRequest) -> Outgoing:
    outgoing = Outgoing(request.url or "", request.method or "")
    host = request.headers.get("Host")
    named = host.decode("latin-1") if isinstance(host, bytes) else host
    return Outgoing(outgoing.url, outgoing.method, host_detour(outgoing.place, named))


def _can_be_sent_again(request: PreparedRequest) -> bool:
    """Whether a body is at hand as a whole, or a file whose beginning requests has noted."""
    position: object = getattr(request, "_body_position", None)
    return request.body is None or isinstance(request.body, str | bytes) or type(position) is int
