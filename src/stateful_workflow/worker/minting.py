"""What the worker of a source does for the homes of grants: mint, retire, announce.

An exchange with a provider is not repeated here, and not undone: whether and when it is tried again
is the home's decision, in its history. So what comes after the provider's answer is the sealing of
it, and nothing that may fail or wait (docs/decisions/51-living-tokens.md).
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar, cast

from temporalio import activity
from temporalio.client import Client
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError

from ..client.walk import TreeWalk
from ..errors import (
    AnswerUnusable,
    GrantRefused,
    NoReaderKey,
    ProviderUnreachable,
    RateLimited,
    SourceError,
    StatefulError,
    TokenForged,
    TokenMalformed,
    TokenRefused,
    TokenRevoked,
)
from ..node import limits
from ..node.contract import (
    ANNOUNCE,
    MINT,
    RETIRE,
    AnnounceRequest,
    MintRequest,
    MintResult,
    Outcome,
    RetireRequest,
    RetireResult,
)
from ..node.members import to_json
from ..node.renewal import AS_BEFORE
from ..record.event import Action, Scene
from ..record.event import Outcome as EventOutcome
from ..record.recorder import Recorder
from ..sealed.grants import AUDIENCE, Granted, next_grant
from ..sealed.issuing import Place, Said, Terms, verified_place
from ..sealed.keyring import Keyring
from ..sealed.message import MAX_MESSAGE_BYTES, Claims, Message, SealedToken, parse
from ..sealed.secret import Secret
from ..source.announcing import DeadGrant, OnDeadGrant
from ..source.clock import going_by
from ..source.clock import now as unix_now
from ..source.protocol import Grant, Minted, Probes, Retires, Source
from ..text.printable import printable
from ..use.clock import server_clock
from ..use.exposure import OpenedSecrets
from .activities import beat, known
from .left_behind import left_behind

_log = logging.getLogger(__name__)

MOST_EXCHANGES = 25
"""With one source in one process at a time; one that waits too long for its turn is not made."""

_BEAT_SECONDS: Final = 1.0
_EXCHANGED_WITHIN: Final = 12.0
"""Seconds of an attempt after which no answer is waited for: its home takes it for lost at 15."""

_EXCHANGE_TAKES: Final = 7.0
"""Seconds that have to be left of those where an exchange begins."""

_CONVERGED_WITHIN: Final = 60.0
_MOST_BEHIND: Final = 100

_SAID_BYTES: Final = 1_000
_LONGEST_RETRY_AFTER: Final = 86_400.0

_KINDS: Final[Mapping[type[SourceError], Outcome]] = {
    GrantRefused: "refused_grant",
    RateLimited: "rate_limited",
    ProviderUnreachable: "unreachable",
    AnswerUnusable: "malformed",
}

T = TypeVar("T")


@dataclass(frozen=True)
class OfSources:
    """What the activities of sources need of their plugin.

    Attributes:
        sources: by name.
        keyring: gives the process's keyring as it is now.
        recorder: puts on record what is minted and retired.
        on_dead_grant: whom to tell of a dead grant.
    """

    sources: Mapping[str, Source]
    keyring: Callable[[], Keyring]
    recorder: Recorder
    on_dead_grant: Sequence[OnDeadGrant]


class SourceActivities:
    """The activities of one source.

    Args:
        name: of the source.
        plugin: see `OfSources`.
        client: gives the client that trees are walked with.
    """

    def __init__(self, name: str, plugin: OfSources, client: Callable[[], Client]) -> None:
        self._name = name
        self._source = plugin.sources[name]
        self._plugin = plugin
        self._client = client
        # More at once on one event loop would each take longer than its home waits for it.
        self._few = asyncio.Semaphore(MOST_EXCHANGES)

    def all(self) -> list[Callable[..., Any]]:
        """What to register with the source's worker."""
        return [self.mint, self.retire, self.announce]

    # --- mint ----------------------------------------------------------------

    @activity.defn(name=MINT)
    async def mint(self, request: MintRequest) -> dict[str, Any]:
        """Mint a token with a grant, in one exchange, and seal what came of it."""
        request = known(MintRequest, request)
        clock = server_clock()
        with going_by(clock):
            return to_json(await to_the_end(self._mint(request, clock)))

    async def _mint(self, request: MintRequest, now: Callable[[], float]) -> MintResult:
        until = time.monotonic() + _EXCHANGED_WITHIN
        async with self._few:
            return await self._minted(request, now, until)

    async def _minted(
        self, request: MintRequest, now: Callable[[], float], until: float
    ) -> MintResult:
        info = activity.info()
        workflow_id, run_id = info.workflow_id or "", info.workflow_run_id or ""
        try:
            minting = _Minting.of(request, self._name, self._plugin.keyring(), now)
            newer = await left_behind(self._client(), workflow_id, run_id, minting.grant)
            if newer is not None:
                return newer
            unknown = minting.unknown_to(request.trusted)
            if unknown is not None:
                return unknown
            event = self._event("mint", "unknown", request.name, reason=request.why)
            await self._plugin.recorder.require_async(event)
        except (StatefulError, RPCError) as error:
            event = self._event("mint", "failure", request.name, reason="not_ready")
            self._plugin.recorder.record(event)
            said = said_without(error)
            if isinstance(error, NoReaderKey):
                said = f"give its worker the reader key of audience {AUDIENCE}: the grant of {said}"
            return MintResult("not_ready", detail=said)
        result = await self._exchanged(minting, request, until)
        self._recorded_soon(minting, result)
        return result

    async def _exchanged(self, minting: _Minting, request: MintRequest, until: float) -> MintResult:
        """Ask the provider; from its answer on nothing waits for anything."""
        if request.why == "refused":
            probed = await self._probed(minting, until)
            if probed is not None:
                return probed
        left, grant = until - time.monotonic(), minting.granted.grant
        if left < _EXCHANGE_TAKES:
            return MintResult("not_ready", detail="the server, the record or a probe was too slow")
        try:
            # One that never ends would keep its place in this worker for ever.
            minted = await asyncio.wait_for(self._source.mint(grant), left)
        except SourceError as error:
            result = _failed(error, grant)
            if result.outcome == "refused_grant" and request.why == "refused":
                result = replace(result, revocation=minting.revocation())
            return result
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - the user's, may be anything
            said = type(error).__name__
            at = f"Source {self._name} raised {said} at {_line_of(error)}"
            _log.error(printable(f"{at}, which is no SourceError"))
            return MintResult("lost_reply", detail=f"the source raised {said}", reached=True)
        return minting.sealed(minted)

    async def _probed(self, minting: _Minting, until: float) -> MintResult | None:
        """What comes of a token that an API is said to have refused; None where it is to be minted.

        Nothing that a probe raises says anything of the grant, which it did not send.
        """
        token = minting.standing_token()
        if token is None:
            return None
        try:
            left = until - time.monotonic()
            is_refused = await asyncio.wait_for(self._is_refused(token), left)
        except SourceError as error:
            result = _failed(error, minting.granted.grant, token)
            is_kept = result.outcome in ("rate_limited", "malformed")
            outcome = result.outcome if is_kept else "unreachable"
            return replace(result, outcome=outcome, reached=False)
        except Exception as error:  # noqa: BLE001 - as of `mint`
            return MintResult("unreachable", detail=f"its probe raised {type(error).__name__}")
        if is_refused is not False:
            return None
        return MintResult("alive", detail="the provider says that the token is good")

    def _recorded_soon(self, minting: _Minting, result: MintResult) -> None:
        """A sink that waits or fails is not to hold the result."""
        is_well = result.outcome in ("minted", *AS_BEFORE)
        outcome: EventOutcome = "success" if is_well else "failure"
        message = None if result.token is None else parse(result.token)
        is_after_lost = result.outcome == "refused_grant" and minting.is_lost
        reason = "refused_grant_after_lost_reply" if is_after_lost else result.outcome
        event = self._event("mint", outcome, minting.grant.claims.name, message, reason=reason)
        asyncio.get_running_loop().call_soon(self._plugin.recorder.record, event)

    # --- retire --------------------------------------------------------------

    @activity.defn(name=RETIRE)
    async def retire(self, request: RetireRequest) -> dict[str, Any]:
        """Revoke a token at the provider once no workflow and no activity uses it any more."""
        request = known(RetireRequest, request)
        beating = asyncio.create_task(beat(_BEAT_SECONDS))
        try:
            with going_by(server_clock()):
                result = await self._retired(request)
        finally:
            beating.cancel()
        is_done = result.done and result.problem is None
        outcome: EventOutcome = "success" if is_done else "failure"
        reason = {True: "refused_now", False: "still_taken", None: None}[result.proven]
        if result.problem is not None and reason is None:
            reason = "not_converged" if result.behind else "not_retired"
        event = self._event("retire", outcome, request.name, parse(request.old), reason=reason)
        self._plugin.recorder.record(event)
        return to_json(result)

    async def _retired(self, request: RetireRequest) -> RetireResult:
        source, info = self._source, activity.info()
        if not isinstance(source, Retires):
            problem = f"source {self._name} cannot revoke a token at its provider"
            return RetireResult(done=True, problem=problem)
        old, token = parse(request.old), None
        # Whoever may start workflows may ask, with a token of anybody's.
        meant = (info.workflow_id, request.name, self._name)
        if (old.claims.authority, old.claims.name, old.claims.source) != meant:
            problem = f"source {self._name} did not mint it for this workflow"
            return RetireResult(done=True, problem=problem)
        try:
            keyring = self._plugin.keyring()
            token = _opened(keyring, old, info.namespace, unix_now())
            if token is None:
                return RetireResult(done=True)  # it has expired
            behind = await self._behind(info.workflow_id or "", request)
        except (StatefulError, RPCError) as error:
            return RetireResult(done=False, problem=said_without(error, token))
        if behind:
            problem = f"{len(behind)} workflows do not hold its successor"
            return RetireResult(done=False, behind=behind[:_MOST_BEHIND], problem=problem)
        # Until running activities have asked for the newest.
        await asyncio.sleep(limits.LIMITS.settle_seconds)
        event = self._event("retire", "unknown", request.name, old)
        try:
            await self._plugin.recorder.require_async(event)
            await source.retire(*token)
            proven = await self._is_refused(token)
        except StatefulError as error:
            return RetireResult(done=False, problem=said_without(error, token))
        except Exception as error:  # noqa: BLE001 - the user's; its text may be the token
            return RetireResult(done=False, problem=f"the source raised {type(error).__name__}")
        problem = "it was revoked, and the provider still takes it" if proven is False else None
        return RetireResult(done=True, proven=proven, problem=problem)

    async def _behind(self, home: str, request: RetireRequest) -> list[str]:
        deadline = time.monotonic() + _CONVERGED_WITHIN
        walk = TreeWalk(self._client(), request.name, deadline, keyring=self._plugin.keyring())
        tree = await walk.run(home)
        return [node.id for node in tree.behind]

    async def _is_refused(self, token: tuple[str, Mapping[str, str]]) -> bool | None:
        """Whether the provider refuses a token; None where it cannot be asked."""
        if not isinstance(self._source, Probes):
            return None
        try:
            await self._source.probe(*token)
        except TokenRefused:
            return True
        return False

    # --- a dead grant --------------------------------------------------------

    @activity.defn(name=ANNOUNCE)
    async def announce(self, request: AnnounceRequest) -> None:
        """Tell whom the plugin names that somebody has to authorize a source again."""
        request = known(AnnounceRequest, request)
        info = activity.info()
        dead = DeadGrant(
            info.namespace,
            info.workflow_id or "",
            info.workflow_type or "",
            request.name,
            self._name,
            request.grant,
            request.after_lost,
            request.detail,
        )
        reason = "after_lost_reply" if request.after_lost else "out_of_the_blue"
        problems = [await _problem(tell, dead) for tell in self._plugin.on_dead_grant]
        said = "; ".join(filter(None, problems))
        outcome: EventOutcome = "failure" if said else "success"
        event = self._event("needs_authorization", outcome, request.name, reason=reason)
        self._plugin.recorder.record(event)
        if said:
            raise ApplicationError(f"not everybody could be told: {said}")

    def _event(
        self,
        action: Action,
        outcome: EventOutcome,
        name: str,
        message: Message | None = None,
        **detail: Any,
    ) -> Any:
        scene = Scene.of(self._plugin.recorder.identity, activity.info())
        return scene.event(action, outcome, message, name, source=self._name, **detail)


@dataclass(frozen=True)
class _Minting:
    """What one exchange is about, checked before it.

    Attributes:
        grant: as it came.
        granted: what it was sealed over.
        by: key id of the issuer who gave the first one.
        place: where the token will stand.
        keyring: seals it.
        now: the time.
        is_lost: an answer to the same grant was lost before.
    """

    grant: Message
    granted: Granted
    by: str
    place: Place
    keyring: Keyring
    now: Callable[[], float]
    is_lost: bool

    @classmethod
    def of(
        cls, request: MintRequest, source: str, keyring: Keyring, now: Callable[[], float]
    ) -> _Minting:
        """Check what was asked for.

        Raises:
            StatefulError: it is not to be believed, or could not be sealed.
        """
        info, message = activity.info(), parse(request.grant)
        home = info.workflow_id or ""
        text = keyring.open_grant(message, namespace=info.namespace, workflow_id=home)
        claims, granted = message.claims, Granted.from_text(text)
        if claims.name != request.name or claims.source != source:
            raise TokenMalformed(f"the grant is for {claims.name} of source {claims.source}")
        said = Said(claims.root, claims.tree, request.standing, request.last)
        place = verified_place(
            said,
            name=request.name,
            namespace=info.namespace,
            authority=home,
            trusted=keyring.trusted(),
        )
        if (place.root, place.tree) != (claims.root, claims.tree):
            raise TokenMalformed("what stands there is of another tree than the grant")
        by = granted.by or message.issuer
        if by in keyring.revoked():
            raise TokenRevoked(
                f"issuer {by} gave the grant of {claims.name} and is revoked; authorize the source "
                "again"
            )
        minting = cls(message, granted, by, place, keyring, now, request.is_lost)
        minting._try()
        return minting

    def _try(self) -> None:
        """What can be told before the exchange is not to fail after it; raises as `of`."""
        terms = self.granted.terms
        given = terms.get("origins") is not None or terms.get("api_url") is not None
        with_origins = given or self.place.held is not None
        like = Minted("token", origins=None if with_origins else [])
        self.keyring.seal(self._claims(like), like.token)
        self.keyring.seal(self._next_grant(), "{}")

    def unknown_to(self, trusted: Sequence[str]) -> MintResult | None:
        """The same grant, signed here, where the home does not know the key that signs here.

        It looks it up for that. What a provider gave before would be lost if it did not find it.
        """
        grant = self._sealed_grant(self.granted.grant)
        issuer = parse(grant).issuer
        if issuer in trusted:
            return None
        detail = f"the workflow's workers do not know issuer {issuer}, which signs what is minted"
        return MintResult("not_ready", grant=grant, detail=detail)

    def _claims(self, minted: Minted) -> Claims:
        terms: Terms = {**self.granted.terms}
        readers = terms.get("readers")
        if readers is None and self.place.held is not None:
            readers = self.place.held.audiences
        if readers is not None and readers != "any":
            terms["readers"] = [*dict.fromkeys([*readers, AUDIENCE])]
        if minted.origins is not None:
            terms["origins"] = minted.origins
        if minted.api_url is not None:
            terms["api_url"] = minted.api_url
        claims = self.place.token(terms, self.now())
        # Whoever gave the grant gets no more by it than he may sign himself.
        giver = self.keyring.trusted().get(self.by)
        if giver is None:
            raise TokenForged(f"issuer {self.by}, who gave the grant, is not trusted here")
        giver.check(claims)
        expires = cast("object", minted.expires_at)
        if not isinstance(expires, int | float | None):
            raise TokenMalformed("its expiry is no number")
        return replace(
            claims,
            version=max(claims.version, self._next_grant().version),
            expires_at=None if expires is None else max(int(expires), 1),
            source=self.grant.claims.source,
        )

    def _next_grant(self) -> Claims:
        return next_grant(self.grant.claims, self.now())

    def _sealed_grant(self, grant: Grant) -> SealedToken:
        granted = Granted(grant, self.granted.terms, self.by)
        return self.keyring.seal(self._next_grant(), granted.to_text())

    def sealed(self, minted: Minted) -> MintResult:
        """Seal what the provider gave; the next grant above all."""
        grant = token = None
        try:
            if minted.grant is not None:
                grant = self._sealed_grant(minted.grant)
            secret, claims = Secret(minted.token, minted.values), self._claims(minted)
            if claims.expires_at is not None and claims.expires_at <= self.now():
                detail = "the source gave a token that has expired"
                return MintResult("malformed", grant=grant, detail=detail, reached=True)
            if grant is None and self._is_standing(secret, claims.expires_at):
                return MintResult("unchanged")
            token = self.keyring.seal(claims, secret)
        except Exception as error:  # noqa: BLE001 - whatever is wrong, the next grant is kept
            if not isinstance(cast("Any", minted), Minted):
                detail = f"the source's mint returned {type(minted).__name__} in place of a Minted"
                return MintResult("malformed", detail=detail, reached=True)
            detail = "what the source gave could not be sealed: "
            if isinstance(error, StatefulError | ValueError):
                given = (getattr(minted, one, None) for one in ("token", "values", "grant"))
                detail += said_without(error, *given)
            else:
                detail += type(error).__name__
            return MintResult("malformed", grant=grant, detail=detail, reached=True)
        return MintResult("minted", token=token, grant=grant)

    def _is_standing(self, secret: Secret, expires_at: int | None) -> bool:
        before = self.place.before
        if before is None or before.claims.expires_at != expires_at:
            return False
        is_newest = before.claims.version >= self.grant.claims.version
        return is_newest and self.standing_token() == (secret.token, secret.values)

    def standing_token(self) -> tuple[str, Mapping[str, str]] | None:
        """The token that stands there, if this source minted it and it has not expired."""
        before = self.place.before
        if before is None or before.kind != "token":
            return None
        if before.claims.source != self.grant.claims.source:
            return None  # it is not for this source's provider to see
        with suppress(StatefulError):
            return _opened(self.keyring, before, before.claims.namespace, self.now())
        return None

    def revocation(self) -> str | None:
        """What lets no workflow call with a token that is dead."""
        before = self.place.before
        if before is None or before.kind != "token":
            return None
        with suppress(StatefulError):
            return self.keyring.revocation(self.place.revocation(self.now(), inherit=False))
        return None


def _opened(
    keyring: Keyring, message: Message, namespace: str, now: float
) -> tuple[str, Mapping[str, str]] | None:
    """A token and its values; None where it has expired.

    Raises:
        StatefulError: this worker cannot open it.
    """
    expires = message.claims.expires_at
    if expires is not None and now >= expires:
        return None
    secret = keyring.unseal(message, now=now, namespace=namespace, workflow_type=None)
    return secret.token, secret.values


def _failed(error: SourceError, *secrets: object) -> MintResult:
    outcome: Outcome = "lost_reply" if error.reached else "not_ready"
    for kind, meant in _KINDS.items():
        outcome = meant if isinstance(error, kind) else outcome
    after: object = error.retry_after if isinstance(error, RateLimited) else None
    return MintResult(
        outcome,
        detail=said_without(error, *secrets),
        reached=bool(error.reached),
        retry_after=_whole_seconds(after),
    )


def _whole_seconds(after: object) -> int | None:
    if not isinstance(after, int | float) or not after > 0:
        return None
    return math.ceil(min(after, _LONGEST_RETRY_AFTER))


def _line_of(error: BaseException) -> str:
    """Where it was raised: what it says may be a token, and is not logged."""
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    return "?" if at is None else f"{at.tb_frame.f_code.co_filename}:{at.tb_lineno}"


def said_without(error: BaseException, *secrets: object) -> str:
    """What an error says, as far as a result may have it; nothing where it holds a secret."""
    kind, search = type(error).__name__, OpenedSecrets()
    try:
        text = str(error)[:_SAID_BYTES]
    except Exception:  # noqa: BLE001 - it may be the user's
        text = kind
    for secret in secrets:
        for one in _texts(secret):
            search.add("secret", one)
    if search.found_in([text.encode(errors="replace")]) is not None:
        text = f"{kind}, whose text is left out, since it held a secret"
    return printable(text).encode()[:_SAID_BYTES].decode(errors="ignore")


def _texts(value: object) -> Iterator[str]:
    """The texts in what a source was given or gave, which may be deep, or within itself."""
    left = [value]
    for _ in range(MAX_MESSAGE_BYTES):  # no grant that was sealed has more
        if not left:
            return
        one = left.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, Mapping):
            left.extend(cast("Mapping[object, object]", one).values())
        elif isinstance(one, list | tuple):
            left.extend(cast("Sequence[object]", one))


async def _problem(tell: OnDeadGrant, dead: DeadGrant) -> str | None:
    """Why somebody could not be told; never the text of a strange error, such as a secret URL's."""
    try:
        told = tell(dead)
        if inspect.isawaitable(told):
            await told
    except StatefulError as error:
        return said_without(error)
    except Exception as error:  # noqa: BLE001 - the user's
        return type(error).__name__
    return None


async def to_the_end(exchange: Coroutine[Any, Any, T]) -> T:
    """What it gives, whoever cancels meanwhile: what a provider answered is not to be lost."""
    beating = asyncio.create_task(beat(_BEAT_SECONDS))
    task = asyncio.create_task(exchange)
    try:
        while not task.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        return task.result()
    finally:
        beating.cancel()
