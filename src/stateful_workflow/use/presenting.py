"""Present a token to an API: which one, in which header, and only where it may go.

What the HTTP clients share. Each of them is a loop around a `Presenter`: it takes the
`current` token, puts the `field` into a request that may carry it, has the answer
`recorded`, and where that is a refusal takes what comes `after_refusal`, if anything.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import ClassVar, Final, TypedDict

from ..errors import OriginNotAllowed, StatefulError, TokenMalformed, TokenNotSet
from ..sealed.message import DEFAULT_NAME
from ..sealed.origins import allowed_origin, is_allowed, origin_or_none
from ..sealed.token import ApiToken, require_signed
from .tokens import ActivityTokens

# RFC 9110 section 5.5: no control characters, no white space at the ends.
_FIELD_VALUE: Final = re.compile(r"[^\x00-\x20\x7f]+(?:[ \t]+[^\x00-\x20\x7f]+)*")
# Section 5.6.2.
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# RFC 7617 section 2.
_USERNAME: Final = re.compile(r"[^\x00-\x1f\x7f:]*")


@dataclass(frozen=True)
class Outgoing:
    """A request just before it leaves.

    Attributes:
        url: what the client connects to; no user information is shown of it.
        method: GET and so on.
        detour: what else in it could bring it to somebody else, or None.
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
    """What is presented while a workflow was never given a token of a name.

    Attributes:
        name: credential name.
        origins: where it may be sent.
        secret: it, or what gives it.
        message: there is none that it came in.
    """

    message: ClassVar[None] = None
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
        is_delta = isinstance(wait_for_newer, timedelta)
        self._wait = wait_for_newer.total_seconds() if is_delta else wait_for_newer
        self._fallback = None
        if fallback is not None:
            self._fallback = Fallback(name, tuple(map(allowed_origin, origins)), fallback)

    # --- which one -----------------------------------------------------------------------------

    def current(self, tokens: ActivityTokens) -> ApiToken | Fallback:
        """What to present now, in a thread.

        Raises:
            StatefulError: as `stateful_workflow.current_token`.
        """
        if self._fallback is None:
            return tokens.current(self.name, self._wait)
        try:
            return tokens.current(self.name)
        except TokenNotSet:
            is_before_all = tokens.newest.never_held(self.name)
            return self._fallback if is_before_all else tokens.open(self.name)

    async def current_async(self, tokens: ActivityTokens) -> ApiToken | Fallback:
        """As `current`, in the worker's loop."""
        if self._fallback is None:
            return await tokens.current_async(self.name, self._wait)
        try:
            return await tokens.current_async(self.name)
        except TokenNotSet:
            is_before_all = await tokens.newest.never_held_async(self.name)
            return self._fallback if is_before_all else await tokens.open_async(self.name)

    def after_refusal(
        self, tokens: ActivityTokens, refused: ApiToken | Fallback, may_resend: bool | None
    ) -> ApiToken | None:
        """Ask for a newer one and report the refusal, in a thread.

        Args:
            tokens: of the running activity.
            refused: what the API did not take.
            may_resend: whether the same request can be sent once more; None where it was already,
                so that nothing is waited for.

        Returns:
            What to send it with; None where there is no newer one, or it may not be sent again:
            then the caller's next request has the newer one.
        """
        if isinstance(refused, Fallback):
            return None
        if may_resend:
            is_there = tokens.newest.renew(self.name, refused, self._wait)
            return tokens.open(self.name) if is_there else None
        tokens.report_refused(refused, 0.0 if may_resend is None else self._wait)
        return None

    async def after_refusal_async(
        self, tokens: ActivityTokens, refused: ApiToken | Fallback, may_resend: bool | None
    ) -> ApiToken | None:
        """As `after_refusal`, in the worker's loop."""
        if isinstance(refused, Fallback):
            return None
        if may_resend:
            is_there = await tokens.newest.renew_async(self.name, refused, self._wait)
            return await tokens.open_async(self.name) if is_there else None
        wait = 0.0 if may_resend is None else self._wait
        await tokens.report_refused_async(refused, wait)
        return None

    # --- where it may go -----------------------------------------------------------------------

    def field(
        self,
        tokens: ActivityTokens,
        token: ApiToken | Fallback,
        request: Outgoing,
        *also: Outgoing,
    ) -> str:
        """The header's value for a request, or on record why the token may not go there.

        Args:
            tokens: of the running activity.
            token: what to present.
            request: what is about to be sent.
            also: other places where the client would take the header by itself.

        Raises:
            OriginNotAllowed: it may not go to one of these.
            TokenMalformed: no header may have it.
        """
        secret = token.reveal()
        if isinstance(token, Fallback):
            tokens.secrets.add(self.name, secret)
        try:
            _require_allowed(token, request)
            for other in also:
                if other.origin is None or not is_allowed(other.origin, token.origins):
                    raise OriginNotAllowed(
                        f"{token.name} may not be sent to {request.place} in {self.header}, which "
                        f"would be taken along on a redirect to {other.place}: its issuer must "
                        "sign it for both"
                    )
            if not self._is_basic and not _FIELD_VALUE.fullmatch(secret):
                raise TokenMalformed(
                    f"{token.name} has characters that no HTTP header may have, such as a line "
                    "end; set it again without them"
                )
        except StatefulError as error:
            about = {"origin": request.origin, "method": request.method}
            tokens.refused(self.name, token.message, error, **about)
            raise
        if self._is_basic:
            pair = secret if self._username is None else f"{self._username}:{secret}"
            secret = b64encode(pair.encode()).decode("ascii")
        return self._scheme + secret

    # --- on record -----------------------------------------------------------------------------

    def recorded(
        self,
        tokens: ActivityTokens,
        token: ApiToken | Fallback,
        request: Outgoing,
        status: int | None,
    ) -> None:
        """Put on record that a request carried the token; no status where nothing came back."""
        tokens.used(self.name, token.message, request.origin, request.method, status)


def scheme_in(header: str) -> str | None:
    """What stands before a token in a header, where the user says nothing."""
    return "Bearer" if header.lower() == "authorization" else None


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
