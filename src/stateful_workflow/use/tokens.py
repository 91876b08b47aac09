"""Tokens inside an activity: open the current one, ask for the newest, seal a new one."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Final, Literal

from temporalio import activity
from temporalio.client import Client, WorkflowQueryFailedError
from temporalio.common import RawValue
from temporalio.service import RPCError

from ..errors import (
    AnswerMalformed,
    KeyringError,
    MessageRefused,
    NewestUnknown,
    PluginMissing,
    StatefulError,
    TokenForged,
    TokenNotSet,
    TokenRevoked,
    WrongTree,
)
from ..node.answers import TokenAnswer, token_answer
from ..node.contract import MESSAGE, REPORT
from ..node.headers import Use
from ..node.status import cure
from ..record.event import Action, AuditEvent, Outcome, of_message
from ..record.recorder import Recorder
from ..sealed.issuing import Place, Said, Terms, verified_place
from ..sealed.keyring import Keyring
from ..sealed.message import DEFAULT_NAME, Message, SealedToken, parse
from ..sealed.token import ApiToken
from ..text.printable import printable
from .asking import read_answer
from .exposure import OpenedSecrets
from .parents import ConfirmedRoots

FRESH_SECONDS: Final = 5.0
"""A token carried or asked for longer ago than this is asked for again before use."""

NEAR_EXPIRY_SECONDS: Final = 60.0

_QUERY_TIMEOUT: Final = timedelta(seconds=5)


@dataclass(frozen=True)
class Standing:
    """What is known of one credential: its state and, where it is held, the message."""

    state: str
    message: Message | None = None


class ActivityTokens:
    """The tokens of one running activity.

    Args:
        use: what came with the activity; None where it could not be read, so that the
            workflow is asked.
        keyring: gives this process's keyring, or raises KeyringError.
        recorder: puts on record what is opened, used and refused.
        client: gives the client that asks the workflow; None for local activities.
        fresh_since: `time.monotonic` seconds at which `use` was true.
        must_ask: on an attempt after the first, what came along may be dead: nothing is
            used before the workflow has answered.
    """

    def __init__(
        self,
        use: Use | None,
        keyring: Callable[[], Keyring],
        recorder: Recorder,
        client: Callable[[], Client] | None,
        fresh_since: float,
        *,
        must_ask: bool = False,
    ) -> None:
        self._info = activity.info()
        self.process = os.getpid()
        self.use = use
        self._must_ask = must_ask
        self.keyring = keyring
        self.recorder = recorder
        self.client = client
        self.loop = None if client is None else asyncio.get_running_loop()
        self.unknown: dict[str, NewestUnknown] = {}
        self.secrets = OpenedSecrets()
        """What has been opened here, to be kept out of what the activity gives back."""
        self._root: str | None = None
        self._carried_at = fresh_since
        self._asked_at: dict[str, float] = {}
        self._standing = {} if use is None else _standing(use)

    def open(self, name: str) -> ApiToken:
        """Check the token whole, as it is known now, open it, and put that on record.

        Raises:
            TokenUnavailable, UseRefused, KeyringError, MessageRefused: the subclass says why.
            AuditFailed: it could not be put on record, and is not given out.
        """
        token = self._checked(name)
        self.recorder.require(self._read(token))
        self._measure(token)
        return token

    async def open_async(self, name: str) -> ApiToken:
        """As `open`, in a thread where a KMS or an HSM is asked; the loop waits for no sink."""
        try:
            asks = self.keyring().has_openers
        except KeyringError:
            asks = False  # opening says it
        # No thread otherwise: a user's threads may be waiting for this loop.
        token = await asyncio.to_thread(self._checked, name) if asks else self._checked(name)
        await self.recorder.require_async(self._read(token))
        self._measure(token)
        return token

    def _checked(self, name: str) -> ApiToken:
        standing = self._standing.get(name, Standing("none"))
        try:
            return self._open(name, standing)
        except StatefulError as error:
            self.refused(name, standing.message, error)
            raise

    def _read(self, token: ApiToken) -> AuditEvent:
        reader = self.keyring().reader_of(token.message)
        return self.event("read", "success", token.name, token.message, reader=reader)

    def _measure(self, token: ApiToken) -> None:
        now, expiry = time.time(), token.expires_at
        self.recorder.metrics.opened(
            token.name,
            age=now - token.version / 1000,
            remaining=None if expiry is None else expiry - now,
        )

    def refused(
        self,
        name: str,
        message: Message | None,
        error: StatefulError,
        *,
        origin: str | None = None,
        method: str | None = None,
    ) -> None:
        """Put on record that a token was not opened, or not sent to an origin."""
        why = type(error).__name__
        event = self.event(
            "refuse", "failure", name, message, reason=why, origin=origin, method=method
        )
        self.recorder.record(event)

    def event(
        self,
        action: Action,
        outcome: Outcome,
        name: str,
        message: Message | None,
        *,
        reason: str | None = None,
        reader: str | None = None,
        origin: str | None = None,
        method: str | None = None,
        status: int | None = None,
    ) -> AuditEvent:
        """An event of the running activity; see `AuditEvent`."""
        info = self._info
        return AuditEvent(
            time=time.time(),
            action=action,
            outcome=outcome,
            reason=reason,
            identity=self.recorder.identity,
            namespace=info.namespace,
            workflow_id=info.workflow_id,
            run_id=info.workflow_run_id,
            workflow_type=info.workflow_type,
            reader=reader,
            activity_type=info.activity_type,
            activity_id=info.activity_id,
            attempt=info.attempt,
            origin=origin,
            method=method,
            status=status,
            **of_message(message, name, terms=action == "set"),
        )

    def place(self, name: str, keyring: Keyring) -> Place:
        """Where a token that is sealed here is set, and the verified message that stands there.

        Raises:
            PluginMissing: the activity came without its workflow's place in the tree.
            MessageRefused: what came along is not to be believed; the subclass says why.
        """
        if self.use is None or self._info.workflow_id is None:
            raise PluginMissing("this activity came without its workflow's place in the tree")
        own, above = self.use.own.get(name), None
        known = self._standing.get(name, Standing("none")).message
        if own is None and known is not None:
            is_own = known.claims.authority == self._info.workflow_id
            own, above = (known.text, None) if is_own else (None, known.text)
        place = verified_place(
            Said(self.use.root, self.use.tree, own, self.use.last.get(name), above),
            name=name,
            namespace=self._info.namespace,
            authority=self._info.workflow_id,
            trusted=keyring.trusted(),
        )
        if place.root != self._root:
            raise WrongTree(
                f"the server does not say that workflow {place.authority} stands below "
                f"{place.root}; nothing was signed"
            )
        return place

    async def confirm_root(self, roots: ConfirmedRoots) -> None:
        """Where a token may be sealed here, ask the server for the root of the workflow's tree.

        Only an issuer's worker asks, once for each run of a workflow.
        """
        workflow_id, run_id = self._info.workflow_id, self._info.workflow_run_id
        if self.use is None or workflow_id is None or run_id is None:
            return
        with suppress(StatefulError):
            if self.keyring().can_seal:
                await roots.confirm(workflow_id, run_id, self.use.root)
                self._root = self.use.root

    def _open(self, name: str, standing: Standing) -> ApiToken:
        if name in self.unknown:
            raise self.unknown[name]
        info = self._info
        where = f"workflow {info.workflow_id}"
        if standing.state == "revoked":
            raise TokenRevoked(
                f"{name} is revoked at {where}; an issuer must set it again, or let it inherit"
            )
        if standing.message is None:
            if standing.state == "held":
                raise NewestUnknown(f"{where} has not been asked for its {name} yet")
            raise TokenNotSet(f"{where} has no {name}: {cure(standing.state)}")
        secret = self.keyring().open(
            standing.message,
            now=time.time(),
            namespace=info.namespace,
            workflow_type=info.workflow_type,
        )
        self.secrets.add(name, secret)
        return ApiToken(standing.message, secret)

    def has_other_than(self, token: ApiToken) -> bool:
        """Whether what is known of a name now is another message than a token's, or none."""
        message = self._standing.get(token.name, Standing("none")).message
        return message is None or message.hash != token.message.hash

    def is_stale(self, name: str) -> bool:
        """Whether the workflow should be asked before the next use."""
        if self.client is None:
            return False
        asked_at = self._asked_at.get(name)
        if asked_at is None and (self._must_ask or self.use is None):
            return True
        standing = self._standing.get(name, Standing("none"))
        if standing.message is None and standing.state == "held":
            return True
        known_at = self._carried_at if asked_at is None else asked_at
        if time.monotonic() - known_at > FRESH_SECONDS:
            return True
        expiry = None if standing.message is None else standing.message.claims.expires_at
        return expiry is not None and expiry - time.time() < NEAR_EXPIRY_SECONDS

    async def ask(self, name: str) -> None:
        """Ask this activity's workflow for the newest.

        Raises:
            NewestUnknown: where it does not answer.
        """
        info = self._info
        if self.client is None or info.workflow_id is None:
            raise NewestUnknown("this activity cannot ask its workflow")
        client = self.client()
        handle = client.get_workflow_handle(info.workflow_id, run_id=info.workflow_run_id)
        try:
            raw: object = await handle.query(
                MESSAGE, name, result_type=RawValue, rpc_timeout=_QUERY_TIMEOUT
            )
            read = partial(token_answer, name=name)
            self._learn(name, read_answer(client, info.workflow_id, MESSAGE, raw, read))
        except (RPCError, WorkflowQueryFailedError, AnswerMalformed, MessageRefused) as error:
            raise NewestUnknown(
                f"workflow {info.workflow_id} did not answer for its newest {name} "
                f"({type(error).__name__}: {error}); the activity is to be retried"
            ) from None

    def _learn(self, name: str, answer: TokenAnswer | None) -> None:
        standing = Standing("none")
        if answer is not None:
            message = None if answer.sealed is None else _of_name(parse(answer.sealed), name)
            standing = Standing(answer.status.state, message)
        self._standing[name] = standing
        self._asked_at[name] = time.monotonic()

    async def refresh(self, name: str) -> None:
        """Ask for one name where what is known of it is stale.

        Raises:
            NewestUnknown: where the workflow does not answer, and nothing else may be used.
        """
        if not self.is_stale(name):
            return
        try:
            await self.ask(name)
        except NewestUnknown as error:
            known = self._standing.get(name)
            if self._must_ask or known is None or known.message is None:
                self.unknown[name] = error
                raise
        else:
            self.unknown.pop(name, None)

    async def refresh_all(self) -> None:
        """Refresh every name; a failure is remembered and raised where a token is used."""
        carried = set[str]() if self.use is None else self.use.tokens.keys()
        for name in sorted({DEFAULT_NAME} | carried):
            with suppress(NewestUnknown):
                await self.refresh(name)

    async def report(self, token: ApiToken) -> None:
        """Tell the authority that the API refused its token; nothing is raised if it is gone."""
        if self.client is None:
            return
        handle = self.client().get_workflow_handle(token.authority)
        refused = {
            "name": token.name,
            "authority": token.authority,
            "version": token.version,
            "fingerprint": token.fingerprint,
        }
        try:
            await handle.signal(REPORT, refused, rpc_timeout=_QUERY_TIMEOUT)
        except RPCError as error:
            said = f"Workflow {token.authority} could not be told that its token was refused"
            activity.logger.warning(printable(f"{said}: {error.message}"))


def _standing(use: Use) -> dict[str, Standing]:
    standing: dict[str, Standing] = {}
    for name, entry in use.tokens.items():
        sealed = entry.get("sealed")
        message = None if sealed is None else _of_name(parse(sealed), name)
        standing[name] = Standing(str(entry.get("state")), message)
    return standing


def _of_name(message: Message, name: str) -> Message:
    if message.claims.name != name:
        raise TokenForged(f"another credential's message was given for {name}")
    return message


_current: ContextVar[ActivityTokens | None] = ContextVar("stateful-activity", default=None)


def activity_tokens() -> ActivityTokens:
    """The running activity's tokens.

    Raises:
        PluginMissing: outside an activity, on a worker without the plugin, for an activity of a
            workflow that is no `StatefulWorkflow`, or in a process pool.
    """
    tokens = _current.get()
    # A process that was forked in an activity would have that one's tokens for ever.
    if tokens is None or tokens.process != os.getpid():
        raise PluginMissing(
            "tokens are at hand only in activities that a StatefulWorkflow started, on a worker "
            "with StatefulPlugin, and not in a process pool, where nothing can renew them: run "
            "the activity in threads (ThreadPoolExecutor), or make it async"
        )
    return tokens


def current_token(name: str = DEFAULT_NAME) -> ApiToken:
    """The token of the running activity's workflow, opened here and checked whole.

    Works in async activities and in threads, not in process pools.

    Raises:
        PluginMissing: see `activity_tokens`.
        TokenNotSet, TokenRevoked, TokenExpired: there is none to use.
        NewestUnknown: a retried activity could not ask its workflow.
        NoReaderKey, KeyringError: this worker cannot open it.
        AuditFailed: it cannot be put on record (see `StatefulPlugin`).
        TokenForged, WrongNamespace, WrongWorkflowType: its issuer did not sign it for this.
    """
    return activity_tokens().open(name)


def current_api_url() -> str | None:
    """The API address of the running activity's workflow, as it was when scheduled.

    Raises:
        PluginMissing: see `activity_tokens`.
    """
    use = activity_tokens().use
    return None if use is None else use.api_url


def seal_token(
    token: str,
    *,
    name: str = DEFAULT_NAME,
    origins: Sequence[str] | None = None,
    expires_in: timedelta | float | None = None,
    types: Sequence[str] | Literal["any"] | None = None,
    readers: Sequence[str] | Literal["any"] | None = None,
) -> SealedToken:
    """Seal a token in an activity of an issuer, for the workflow's `set_api_token`.

    Only the sealed form returns to the workflow, so no clear text enters history.

    Args:
        token: the secret.
        origins: where it may be sent; None keeps those of the token that was set at this
            workflow. At the first one, and where none stands that this keyring verifies, they
            must be given.
        expires_in: seconds or a timedelta; None for no expiry.
        types: workflow types whose activities may open it; None keeps those of the token the
            workflow holds, "any" lifts the limit.
        readers: likewise the audiences of the readers it is sealed for.

    Raises:
        PluginMissing: see `activity_tokens`.
        KeyringError, NoIssuerKey, IssuerLimited, NoReaderKey: this worker may not seal it, or
            for nobody.
        OriginsMissing: no origins are given, and no verified token stands there.
        MessageRefused: what came with the activity is not to be believed.
        ValueError: an origin is refused, or the expiry is not ahead.
        TokenMalformed: the token is empty, no text, or too large.
        AuditFailed: it cannot be put on record (see `StatefulPlugin`).
    """
    tokens = activity_tokens()
    terms = Terms(origins, expires_in, types, readers)
    try:
        keyring = tokens.keyring()
        place = tokens.place(name, keyring)
        sealed = keyring.seal(place.token(terms, time.time()), token)
    except StatefulError as error:
        failed = tokens.event("set", "failure", name, None, reason=type(error).__name__)
        tokens.recorder.record(failed)
        raise
    tokens.recorder.require(tokens.event("set", "unknown", name, parse(sealed)))
    return sealed


@contextmanager
def running(tokens: ActivityTokens) -> Generator[None, None, None]:
    """Make an activity's tokens the current ones inside a block, and only there."""
    reset = _current.set(tokens)
    try:
        yield
    finally:
        _current.reset(reset)
