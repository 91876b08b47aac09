"""What the worker of a source does for children that are to do less than their parent may.

It believes the server alone on whose child a workflow is, and takes what a token is limited to from
the parent's, never wider (docs/decisions/53-narrower-for-a-child.md).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from temporalio import activity
from temporalio.client import Client
from temporalio.service import RPCError

from ..client.calls import find_place, signal
from ..errors import AnswerUnusable, NotStateful, SourceError, StatefulError, TokenForged, WrongTree
from ..node.contract import NARROW, NarrowRequest, NarrowResult
from ..node.members import to_json
from ..record.event import Action, Scene
from ..record.event import Outcome as EventOutcome
from ..sealed.issuing import Place, verified_place
from ..sealed.keyring import Keyring
from ..sealed.message import Claims, Message, parse
from ..sealed.origins import allowed_origin, is_allowed, is_covered
from ..sealed.secret import Secret
from ..source.clock import going_by
from ..source.protocol import Minted, Narrows
from ..use.clock import server_clock
from ..use.parents import confirm_above
from ..use.server import describe
from .activities import known
from .descent import RPC_TIMEOUT
from .minting import OfSources, said_without, to_the_end

_AT_ONCE: Final = 10
_BEGUN_WITHIN: Final = 60.0

Given = tuple[int, str | None]
"""Version and fingerprint."""


@dataclass(frozen=True)
class _Parent:
    """What children's tokens are derived from; without a token theirs are revoked."""

    id: str
    namespace: str
    name: str
    keyring: Keyring
    now: Callable[[], float]
    claims: Claims | None = None
    secret: Secret | None = None
    source: Narrows | None = None


class Narrower:
    """The activity of one source; its arguments are those of `SourceActivities`."""

    def __init__(self, name: str, plugin: OfSources, client: Callable[[], Client]) -> None:
        self._name = name
        self._source = plugin.sources[name]
        self._plugin = plugin
        self._client = client

    @activity.defn(name=NARROW)
    async def narrow(self, request: NarrowRequest) -> dict[str, Any]:
        """Give children tokens that the source derives from their parent's, or revoke them."""
        request = known(NarrowRequest, request)
        clock = server_clock()
        with going_by(clock):
            return to_json(await to_the_end(self._narrow(request, clock)))

    async def _narrow(self, request: NarrowRequest, now: Callable[[], float]) -> NarrowResult:
        result = NarrowResult(more=request.more)
        try:
            parent = await self._opened(request, now)
        except (StatefulError, RPCError) as error:
            why = _why(error)
            return NarrowResult(failed={child_id: why for child_id, _, _ in request.children})
        slots, until = asyncio.Semaphore(_AT_ONCE), time.monotonic() + _BEGUN_WITHIN

        async def one(child_id: str, scopes: Sequence[str], given: str | None) -> None:
            async with slots:
                try:
                    if time.monotonic() > until:
                        raise SourceError("it was not tried in time")
                    result.given[child_id] = await self._give(parent, child_id, scopes, given)
                except NotStateful:
                    result.plain.append(child_id)
                except Exception as error:  # noqa: BLE001 - a source, or a codec, raises anything
                    result.failed[child_id] = _why(error, parent.secret)

        await asyncio.gather(*(one(*child) for child in request.children))
        return result

    async def _opened(self, request: NarrowRequest, now: Callable[[], float]) -> _Parent:
        """The parent, and the token in force there.

        Raises:
            StatefulError: it cannot be opened, is no token of the parent's, or cannot be narrowed.
        """
        info, keyring = activity.info(), self._plugin.keyring()
        parent_id = info.workflow_id or ""
        parent = _Parent(parent_id, info.namespace, request.name, keyring, now)
        message = None if request.message is None else parse(request.message)
        if message is None or message.kind != "token":
            return parent
        claims, run_id = message.claims, info.workflow_run_id
        if claims.name != request.name or claims.source not in (None, self._name):
            raise TokenForged(f"that is the {claims.name} of source {claims.source}")
        if not isinstance(self._source, Narrows):
            raise SourceError(f"source {self._name} does not narrow tokens")
        for above in (claims.authority, claims.root):
            await confirm_above(self._client(), parent_id, above, run_id=run_id)
        at = now()
        secret = keyring.unseal(message, now=at, namespace=info.namespace, workflow_type=None)
        if secret.is_reference:
            raise SourceError("the token in force is a reference, of which none can be derived")
        return replace(parent, claims=claims, secret=secret, source=self._source)

    async def _give(
        self, parent: _Parent, child_id: str, scopes: Sequence[str], given: str | None
    ) -> Given:
        """Give one child its token, unless somebody else has set or revoked one there."""
        client = self._client()
        child = await describe(client, child_id, timeout=RPC_TIMEOUT)
        if child.parent_id != parent.id:
            raise WrongTree(f"the server does not say that it is a child of {parent.id}")
        trusted = parent.keyring.trusted()
        said, _ = await find_place(client, child_id, parent.name, trusted)
        place = verified_place(
            said,
            name=parent.name,
            namespace=parent.namespace,
            authority=child_id,
            trusted=trusted,
        )
        if place.stranger is not None:
            raise TokenForged(f"what stands there is of issuer {place.stranger}, unknown here")
        before = place.before
        if before is not None and _is_kept(before, given, is_token=parent.claims is not None):
            return before.claims.version, given if before.fingerprint == given else None
        if parent.claims is None or parent.secret is None or parent.source is None:
            if before is None:
                return 0, None
            signed = parent.keyring.revocation(place.revocation(parent.now(), inherit=False))
            return await self._send("revoke", child_id, parse(signed))
        if (place.root, place.tree) != (parent.claims.root, parent.claims.tree):
            raise WrongTree("it stands in another tree than the token")
        event = self._event("mint", "unknown", child_id, name=parent.name)
        await self._plugin.recorder.require_async(event)
        secret = parent.secret
        minted = await parent.source.narrow(secret.token, secret.values, tuple(scopes))
        claims = _claims(place, parent.claims, minted, self._name, parent.now())
        sealed = parent.keyring.seal(claims, Secret(minted.token, minted.values))
        return await self._send("mint", child_id, parse(sealed))

    async def _send(self, action: Action, child_id: str, message: Message) -> Given:
        outcome: EventOutcome = "failure"
        try:
            await signal(self._client(), child_id, message)
            outcome = "success"
        finally:
            self._plugin.recorder.record(self._event(action, outcome, child_id, message=message))
        return message.claims.version, message.fingerprint

    def _event(self, action: Action, outcome: EventOutcome, child_id: str, **about: Any) -> Any:
        scene = Scene.of(self._plugin.recorder.identity, activity.info())
        about |= {"source": self._name, "child_id": child_id, "reason": "narrow"}
        return scene.event(action, outcome, **about)


def _is_kept(before: Message, given: str | None, *, is_token: bool) -> bool:
    """Whether what stands at a child is to stay: nobody else's is replaced (decision 7)."""
    claims = before.claims
    if before.kind == "token":
        return claims.source is None
    # A revocation that came with the parent's ends with it; anybody else's is meant to stay.
    return claims.inherit is False and (not is_token or before.fingerprint != given)


def _claims(place: Place, parent: Claims, minted: Minted, source: str, now: float) -> Claims:
    """The claims of a child's token: as its parent's, and no wider.

    Raises:
        AnswerUnusable: the source says that it may go where the parent's may not.
    """
    origins = parent.origins
    if minted.origins is not None:
        origins = tuple(allowed_origin(one, None) for one in minted.origins)
        if not all(is_allowed(one, parent.origins) for one in origins):
            raise AnswerUnusable("the narrower token is for other origins than its parent's")
    url = parent.api_url if minted.api_url is None else minted.api_url
    ends = [] if parent.expires_at is None else [parent.expires_at]
    ends += [] if minted.expires_at is None else [max(int(minted.expires_at), 1)]
    return replace(
        place.claims(now),
        expires_at=min(ends, default=None),
        origins=origins,
        types=parent.types,
        audiences=parent.audiences,
        api_url=url if is_covered(url, origins) else None,
        source=source,
    )


def _why(error: Exception, secret: Secret | None = None) -> str:
    """For people, without the token; of what a source raised of its own the name alone."""
    if not isinstance(error, StatefulError | RPCError):
        return f"the source raised {type(error).__name__}"
    secrets = () if secret is None else (secret.token, secret.values)
    return said_without(error, *secrets)[:500]
