"""Start a root with a new tree, and its first token, in the header of the start."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from datetime import timedelta
from typing import Any, Final, Literal, cast

import temporalio.common
from temporalio.client import (
    Client,
    Interceptor,
    OutboundInterceptor,
    StartWorkflowInput,
    WorkflowHandle,
)
from temporalio.service import RPCError
from typing_extensions import Self

from ..errors import AlreadyRunning, OutcomeUnknown
from ..node import limits
from ..node.contract import NODE_HEADER
from ..node.headers import Start
from ..node.ledger import Ledger
from ..record.event import Note
from ..sealed.grants import Granted, first_grant
from ..sealed.issuing import Place, Terms, TokenTerms, given_secret, parted
from ..sealed.keyring import Keyring
from ..sealed.keys import Issuer
from ..sealed.message import DEFAULT_NAME, Message, Renewal, parse
from ..sealed.origins import checked_address
from ..source.protocol import Grant
from ..text.times import in_seconds
from ..use.server import start_of_run
from .asleep import start_of

_SECRET_LENGTH: Final = 12
_LONGEST_EVERY: Final = 10 * 366 * 86_400


class FirstTerms:
    """What a `NewToken` and a `NewGrant` do alike with the terms that are among their fields."""

    origins: Sequence[str] | None
    api_url: str | None

    def or_as(self, common: Terms) -> Self:
        """The same, with the terms of a call where this one says nothing."""
        missing = {name for name in ("types", "readers", "expires_in") if self._lacks(name)}
        if (self.origins, self.api_url) == (None, None):
            missing |= {"origins", "api_url", "allow_http"}
        taken: dict[str, Any] = {name: common[name] for name in missing & common.keys()}
        return cast("Self", replace(cast("Any", self), **taken))

    def _lacks(self, name: str) -> bool:
        return hasattr(self, name) and getattr(self, name) is None

    @property
    def secrets(self) -> Sequence[str]:
        """What is not to stand in a note of who had it done."""
        raise NotImplementedError

    def terms(self) -> Terms:
        """The same as `Terms`."""
        names = (name for name in Terms.__annotations__ if hasattr(self, name))
        return cast("Terms", {name: getattr(self, name) for name in names})

    def seal(self, place: Place, keyring: Keyring) -> Message:
        """What is set there now.

        Raises:
            KeyringError, OriginsMissing, AddressRefused, ValueError, TokenMalformed: it cannot be
                sealed.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class NewToken(FirstTerms):
    """A token that a tree is started with, for `TokenClient.start_workflow`'s ``api_tokens``.

    Attributes:
        token: the secret; None with a reference.
        origins, api_url, allow_http: where it may be sent, and the API's address. Where neither
            of the first two is given, those of the call count.
        expires_in, types, readers: as `TokenClient.set`; those of the call where None.
        reference: in the place of the token, as `TokenClient.set`.
    """

    token: str | None = field(default=None, repr=False)
    origins: Sequence[str] | None = None
    expires_in: timedelta | float | None = None
    types: Sequence[str] | Literal["any"] | None = None
    readers: Sequence[str] | Literal["any"] | None = None
    api_url: str | None = None
    allow_http: Sequence[str] = ()
    reference: str | None = field(default=None, kw_only=True)

    @property
    def secrets(self) -> Sequence[str]:
        """The token."""
        return [self.token or ""]

    def seal(self, place: Place, keyring: Keyring) -> Message:
        """The token as it is set there now; raises as `FirstTerms.seal`."""
        secret = given_secret(self.token, self.reference)
        return parse(keyring.seal(place.token(self.terms(), time.time()), secret))


@dataclass(frozen=True)
class NewGrant(FirstTerms):
    """A source for a credential of a tree that is started, in the place of a `NewToken`.

    Attributes:
        source: its name; see `StatefulPlugin`.
        grant: what it needs to mint with.
        origins, types, readers, api_url, allow_http: of the tokens, as `NewToken`'s.
        renew_every, retire: as `TokenClient.authorize`.
    """

    source: str
    grant: Grant = field(default_factory=dict[str, Any], repr=False)
    _: KW_ONLY
    origins: Sequence[str] | None = None
    types: Sequence[str] | Literal["any"] | None = None
    readers: Sequence[str] | Literal["any"] | None = None
    api_url: str | None = None
    allow_http: Sequence[str] = ()
    renew_every: timedelta | float | None = None
    retire: bool = False

    @property
    def secrets(self) -> Sequence[str]:
        """The texts of the grant, but for short words."""
        values = self.grant.values()
        return [one for one in values if isinstance(one, str) and len(one) >= _SECRET_LENGTH]

    def seal(self, place: Place, keyring: Keyring) -> Message:
        """The grant as it is given there now; raises as `FirstTerms.seal`."""
        every = self.renew_every
        seconds = None if every is None else in_seconds(every)
        if seconds is not None and not 1 <= seconds <= _LONGEST_EVERY:
            raise ValueError("renew_every= is a second at least and ten years at most")
        renewal = Renewal(None if seconds is None else int(seconds), self.retire)
        terms, now = self.terms(), time.time()
        if place.held is not None or terms.get("origins") or terms.get("api_url"):
            place.token(terms, now)  # what is wrong with the terms is said now
        claims = first_grant(place, self.source, renewal, now)
        return parse(keyring.seal(claims, Granted(self.grant, terms).to_text()))


class TokenOptions(TokenTerms, total=False):
    """The tokens a tree is started with; see `TokenClient.start_workflow`."""

    api_token: str | None
    api_tokens: Mapping[str, str | NewToken | NewGrant] | None
    source: str | None
    grant: Grant | None
    renew_every: timedelta | float | None
    retire: bool
    name: str


class StartOptions(TokenOptions, Note, total=False):
    """Those, and what `temporalio.client.Client.start_workflow` takes, which is passed on."""

    execution_timeout: timedelta | None
    run_timeout: timedelta | None
    task_timeout: timedelta | None
    id_reuse_policy: temporalio.common.WorkflowIDReusePolicy
    id_conflict_policy: temporalio.common.WorkflowIDConflictPolicy
    retry_policy: temporalio.common.RetryPolicy | None
    cron_schedule: str
    memo: Mapping[str, Any] | None
    search_attributes: (
        temporalio.common.TypedSearchAttributes | temporalio.common.SearchAttributes | None
    )
    static_summary: str | None
    static_details: str | None
    start_delay: timedelta | None
    start_signal: str | None
    start_signal_args: Sequence[Any]
    rpc_metadata: Mapping[str, str | bytes]
    rpc_timeout: timedelta | None
    request_eager_start: bool
    priority: temporalio.common.Priority


def first_tokens(options: TokenOptions) -> dict[str, NewToken | NewGrant]:
    """What a tree is started with, by credential name, each with its terms.

    Raises:
        ValueError: a name is given twice, or a grant without its source.
    """
    given = dict(options.get("api_tokens") or {})
    secret, source = options.get("api_token"), options.get("source")
    reference = options.get("reference")
    name = options.get("name", DEFAULT_NAME)
    if source is None and {"grant", "renew_every", "retire"} & options.keys():
        raise ValueError("grant=, renew_every= and retire= are for source=")
    if [secret, source, reference].count(None) < 2:
        raise ValueError("give one of api_token=, reference= and source=, which mints the first")
    one: NewToken | NewGrant | None = None
    if source is not None:
        one = NewGrant(
            source,
            options.get("grant") or {},
            renew_every=options.get("renew_every"),
            retire=options.get("retire", False),
        )
    elif (secret, reference) != (None, None):
        one = NewToken(secret, reference=reference)
    if one is not None:
        if name in given:
            raise ValueError(f"api_tokens= and another option both have a {name}")
        given[name] = one
    elif "name" in options and given:
        raise ValueError("name= is for api_token=; in api_tokens= the names are the keys")
    [terms] = parted({key: options[key] for key in Terms.__annotations__ if key in options}, Terms)
    return {
        name: (NewToken(each) if isinstance(each, str) else each).or_as(terms)
        for name, each in given.items()
    }


def new_tree(
    workflow_id: str,
    tree: str,
    trusted: Mapping[str, Issuer],
    tokens: Sequence[Message],
    api_url: str | None,
) -> Start:
    """The state a root is started with: a tree's id, its issuers, and its first tokens.

    An address belongs to the tokens; without one it is the workflow's own.

    Raises:
        AddressRefused: it is no URL that a token may go to.
    """
    if api_url is not None:
        checked_address(api_url)
    ledger = Ledger((workflow_id,), tree, trusted)
    for message in tokens:
        ledger.accept(message, message.claims.version)
    return Start(ledger.dump(), api_url=None if tokens else api_url)


async def start(
    client: Client, state: Start, *args: Any, **options: Any
) -> WorkflowHandle[Any, Any]:
    """As the SDK's `start_workflow`, with this state in the header."""
    config = client.config(active_config=True)
    config["interceptors"] = [*config["interceptors"], _StartHeader(state)]
    config["plugins"] = []  # they have configured this already
    handle: WorkflowHandle[Any, Any] = await Client(**config).start_workflow(*args, **options)
    return handle


async def confirm_started(client: Client, handle: WorkflowHandle[Any, Any], tree: str) -> None:
    """Check that a start with a signal began this run: one that ran already is signalled alone.

    Raises:
        AlreadyRunning: it did not.
        OutcomeUnknown: the server does not say.
    """
    run_id, wait = handle.result_run_id or "", limits.LIMITS.client_question
    try:
        started = await start_of_run(client, handle.id, run_id, timeout=wait)
        begun = await start_of(client, started)
    except RPCError as error:
        raise OutcomeUnknown(
            f"workflow {handle.id} was started or signalled, and the server does not say which "
            f"({error.message}): look at its status"
        ) from None
    if begun is None or begun.ledger.get("tree") != tree:
        raise AlreadyRunning(
            f"workflow {handle.id} was running already: it got the signal and not this token. Set "
            "the token with set() or rotate()"
        )


class _StartHeader(Interceptor):
    def __init__(self, state: Start) -> None:
        self._state = state

    def intercept_client(self, next: OutboundInterceptor) -> OutboundInterceptor:
        state = self._state

        class _Outbound(OutboundInterceptor):
            async def start_workflow(self, input: StartWorkflowInput) -> WorkflowHandle[Any, Any]:
                input.headers = {**input.headers, NODE_HEADER: state.to_payload()}
                return await super().start_workflow(input)

        return _Outbound(next)
