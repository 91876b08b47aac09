"""Present a token to an API: which one, in which header, and only where it may go.

What the HTTP clients share. Each of them is a loop around an `Exchange`: it puts the `field` into
a request that may carry it, has the answer `recorded`, and where that is a refusal asks whether it
`goes_on`.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, ClassVar, Final, TypedDict

from ..errors import OriginNotAllowed, StatefulError, TokenMalformed, TokenNotSet
from ..sealed.message import DEFAULT_NAME
from ..sealed.origins import allowed_origin, is_allowed, origin_or_none
from ..sealed.token import ApiToken, require_signed
from ..text.times import in_seconds
from .tokens import ActivityTokens, activity_tokens

# RFC 9110 section 5.5: no control characters, no white space at the ends.
_FIELD_VALUE: Final = re.compile(r"[^\x00-\x20\x7f]+(?:[ \t]+[^\x00-\x20\x7f]+)*")
# Section 5.6.2.
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# RFC 7617 section 2.
_USERNAME: Final = re.compile(r"[^\x00-\x1f\x7f:]*")


@dataclass(frozen=True)
class Outgoing:
    """A request just before it leaves; no user information is shown of its URL.

    `detour` is what else in it could bring it to somebody else, or None.
    """

    url: str
    method: str
    detour: str | None = None

    @property
    def origin(self) -> str | None:
        """Its origin, or None where it has none that a token could be signed for."""
        return origin_or_none(self.url)

    @property
    def place(self) -> str:
        """Its scheme, host and port as they are written."""
        scheme, _, rest = self.url.partition("://")
        return f"{scheme}://{re.split('[/?#]', rest, maxsplit=1)[0].rpartition('@')[2]}"


@dataclass(frozen=True)
class Fallback:
    """What is presented while a workflow was never given a token of a name."""

    message: ClassVar[None] = None  # there is none that it came in
    name: str
    origins: tuple[str, ...]
    secret: str | Callable[[], str] = field(repr=False)

    def reveal(self) -> str:
        """The secret."""
        return self.secret if isinstance(self.secret, str) else self.secret()


class Terms(TypedDict, total=False):
    """How a token is presented, in any client: see `stateful_workflow.TokenAuth`."""

    scheme: str | None
    username: str | None
    wait_for_newer: float | timedelta
    fallback: str | Callable[[], str] | None
    origins: Sequence[str]


class Presenter:
    """How a token is presented: see `stateful_workflow.TokenAuth` for what the arguments mean.

    Raises:
        ValueError: an argument is not what it has to be.
    """

    def __init__(
        self,
        name: str = DEFAULT_NAME,
        *,
        header: str = "Authorization",
        scheme: str | None = None,
        username: str | None = None,
        wait_for_newer: float | timedelta = 0.0,
        fallback: str | Callable[[], str] | None = None,
        origins: Sequence[str] = (),
    ) -> None:
        if not _TOKEN.fullmatch(header) or not _TOKEN.fullmatch(scheme or "x"):
            raise ValueError("a header or a scheme is a word, as Authorization and Bearer")
        self._is_basic = (scheme or "").lower() == "basic"
        if username is not None and not (self._is_basic and _USERNAME.fullmatch(username)):
            raise ValueError("a username is for scheme='Basic', and has no colon in it")
        if isinstance(origins, str) or (fallback is None) != (not origins):
            raise ValueError("fallback= and origins=[…], where it may be sent, go together")
        self.name = name
        self.header = header
        self._scheme = f"{scheme} " if scheme else ""
        self._username = username
        self.wait = in_seconds(wait_for_newer)
        self._fallback = None
        if fallback is not None:
            self._fallback = Fallback(name, tuple(map(allowed_origin, origins)), fallback)

    async def begin(self, *, blocks: bool) -> Exchange:
        """Take what is to be presented now; `blocks` where the caller cannot await (`at_once`).

        Raises:
            StatefulError: as `stateful_workflow.current_token`.
        """
        tokens, name = activity_tokens(), self.name
        wait = self.wait if self._fallback is None else 0.0
        token: ApiToken | Fallback
        try:
            token = await tokens.current(name, wait, blocks=blocks)
        except TokenNotSet:
            if self._fallback is None:
                raise
            if await tokens.newest.never_held(name, blocks=blocks):
                token = self._fallback
            else:
                token = await tokens.open(name, blocks=blocks)
        return Exchange(self, tokens, token, blocks)

    def value_of(self, secret: str) -> str:
        """The header's value; raises TokenMalformed where none may have it."""
        if self._is_basic:
            pair = secret if self._username is None else f"{self._username}:{secret}"
            secret = b64encode(pair.encode()).decode("ascii")
        elif not _FIELD_VALUE.fullmatch(secret):
            raise TokenMalformed(
                f"{self.name} has characters that no HTTP header may have, such as a line end; "
                "set it again without them"
            )
        return self._scheme + secret


@dataclass
class Exchange:
    """One request that carries the running activity's token, and after a refusal another one."""

    _how: Presenter
    _tokens: ActivityTokens
    _token: ApiToken | Fallback
    _blocks: bool
    _is_second: bool = False

    def field(self, request: Outgoing, *also: Outgoing) -> str:
        """The header's value for a request, or on record why the token may not go there.

        Raises:
            OriginNotAllowed: it may not, or not to one of the other places where the client would
                take the header by itself.
            TokenMalformed: no header may have it.
        """
        how, token, secret = self._how, self._token, self._token.reveal()
        if isinstance(token, Fallback):
            self._tokens.secrets.add(how.name, secret)
        try:
            _require_allowed(token, request)
            for other in also:
                if other.origin is None or not is_allowed(other.origin, token.origins):
                    raise OriginNotAllowed(
                        f"{token.name} may not be sent to {request.place} in {how.header}, which "
                        f"would be taken along on a redirect to {other.place}: its issuer must "
                        "sign it for both"
                    )
            return how.value_of(secret)
        except StatefulError as error:
            about = {"origin": request.origin, "method": request.method}
            self._tokens.refused(how.name, token.message, error, **about)
            raise

    def recorded(self, request: Outgoing, status: int | None) -> None:
        """Put on record that a request carried the token; no status where nothing came back."""
        about = request.origin, request.method, status
        self._tokens.used(self._how.name, self._token.message, *about)

    async def goes_on(self, may_resend: bool) -> bool:
        """Report that the API refused the token; whether to send the request again with a newer.

        It is sent once more at the most. Where it cannot be, the next request has the newer one.
        """
        how, tokens, refused = self._how, self._tokens, self._token
        if isinstance(refused, Fallback):
            return False
        if self._is_second or not may_resend:
            wait = 0.0 if self._is_second else how.wait
            await tokens.report_refused(refused, wait, blocks=self._blocks)
            return False
        if not await tokens.newest.renew(how.name, refused, how.wait, blocks=self._blocks):
            return False
        self._token = await tokens.current(how.name, how.wait, blocks=self._blocks)
        self._is_second = True
        return True


def scheme_in(header: str) -> str | None:
    """What stands before a token in a header, where the user says nothing."""
    return "Bearer" if header.lower() == "authorization" else None


def is_401(response: Any) -> bool:
    """Whether an answer of requests or httpx says that the API does not take the token."""
    return response.status_code == 401


def host_detour(place: str, *hosts: str | None) -> str | None:
    """Whether a Host header names another than the place; an absent one does not.

    A server, or a CDN in front of many, goes by it and not by where it was reached.
    """
    here = place.partition("://")[2].lower()
    if {host.lower() for host in hosts if host is not None} - {here}:
        return "a Host header that is not its URL's"
    return None


def _require_allowed(token: ApiToken | Fallback, request: Outgoing) -> None:
    """Raise where a token may not go with a request."""
    if isinstance(token, ApiToken):
        require_signed(token, request.origin, request.place)
    elif request.origin is None or not is_allowed(request.origin, token.origins):
        raise OriginNotAllowed(
            f"the fallback of {token.name} may not be sent to {request.origin or request.place}; "
            f"its origins are {', '.join(token.origins)}"
        )
    if request.detour is not None:
        raise OriginNotAllowed(
            f"{token.name} may not be sent to {request.origin} with {request.detour}"
        )
