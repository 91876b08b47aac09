"""Tokens inside an activity: open the current one, asked for again where it may be old."""

from __future__ import annotations

import asyncio
import concurrent.futures
import math
import os
import threading
import time
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

from temporalio import activity
from temporalio.client import Client, WorkflowQueryFailedError
from temporalio.common import RawValue
from temporalio.service import RPCError

from ..errors import (
    AnswerMalformed,
    KeyringError,
    MessageRefused,
    NewestUnknown,
    OriginNotAllowed,
    PluginMissing,
    StatefulError,
    TokenForged,
    TokenNotSet,
    TokenRevoked,
)
from ..node import limits
from ..node.answers import token_answer
from ..node.contract import MESSAGE, REPORT
from ..node.headers import Use
from ..node.status import cure
from ..record.event import Action, AuditEvent, Outcome, Scene
from ..record.recorder import Recorder
from ..sealed.keyring import Keyring
from ..sealed.message import DEFAULT_NAME, Message, parse
from ..sealed.token import ApiToken
from ..text.printable import printable
from .asking import read_answer
from .exposure import OpenedSecrets

NEAR_EXPIRY_SECONDS: Final = 60.0

T = TypeVar("T")

_THREAD_SECONDS: Final = 20.0  # far more than asking takes, unless the loop has stopped


@dataclass(frozen=True)
class Standing:
    """What is known of one credential: its state and, where it is held, the message."""

    state: str = "none"
    message: Message | None = None
    never: bool = False
    """The workflow has answered that it never held, lost or was kept from one of this name."""

    @classmethod
    def of(cls, name: str, state: str, sealed: str | None) -> Standing:
        """As a workflow says it.

        Raises:
            MessageRefused: what it says is no message of this name.
        """
        message = None if sealed is None else parse(sealed)
        if message is not None and message.claims.name != name:
            raise TokenForged(f"another credential's message was given for {name}")
        return cls(state, message)


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
        self.info = activity.info()
        self.workflow_id = self.info.workflow_id or ""
        self.process = os.getpid()
        self.use = use
        self.keyring = keyring
        self.recorder = recorder
        self.secrets = OpenedSecrets()
        """What has been opened here, to be kept out of what the activity gives back."""
        self.confirmed_root: str | None = None
        """The root that the server says this activity's workflow stands below; see `seal_token`."""
        self._client = client
        self._loop = None if client is None else asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._must_ask = must_ask
        self._known: dict[str, Standing] = {}
        for name, entry in () if use is None else use.tokens.items():
            self._known[name] = Standing.of(name, str(entry.get("state")), entry.get("sealed"))
        self._carried_at = -math.inf if must_ask or use is None else fresh_since
        self._asked_at: dict[str, float] = {}
        self._unknown: dict[str, NewestUnknown] = {}

    # --- the current one ---------------------------------------------------------------------

    def current(
        self, name: str, refused: ApiToken | None = None, wait: float = 0.0
    ) -> ApiToken | None:
        """As `current_async`, in a thread. On the worker's own loop nobody can be asked."""
        is_there = refused is None
        if self._is_in_thread:
            is_there = self._in_loop(self._renew(name, refused, wait), name, wait)
        return self.open(name) if is_there else None

    async def current_async(
        self, name: str, refused: ApiToken | None = None, wait: float = 0.0
    ) -> ApiToken | None:
        """The token to use now, asked for again where it may be old, and opened.

        Args:
            name: credential name.
            refused: one that the API did not take; its authority is told where it is the newest.
                None comes back where there is no other.
            wait: seconds to wait for another one, where the one held is refused or cannot be used
                (there is none, it is revoked, or past its expiry).

        Raises:
            StatefulError: as `open`; NewestUnknown where the workflow does not answer.
        """
        return await self._open_async(name) if await self._renew(name, refused, wait) else None

    def report_refused(self, token: ApiToken, wait: float = 0.0) -> bool:
        """As `report_refused_async`, in a thread."""
        with suppress(NewestUnknown):
            if self._is_in_thread:
                return self._in_loop(self._renew(token.name, token, wait), token.name, wait)
        return False

    async def report_refused_async(self, token: ApiToken, wait: float = 0.0) -> bool:
        """Ask for another one than the API refused, and tell its authority where there is none.

        As `current_async` with `refused`, for who does not send the same request again: nothing is
        opened, and nothing raised.

        Returns:
            Whether the workflow has something else by now: the next use has that.
        """
        with suppress(NewestUnknown):
            return await self._renew(token.name, token, wait)
        return False

    @property
    def _is_in_thread(self) -> bool:
        return self._loop is not None and threading.get_ident() != self._thread

    def _in_loop(self, asking: Coroutine[Any, Any, T], name: str, wait: float) -> T:
        """What comes of asking in the worker's loop, waited for in a thread.

        Raises:
            NewestUnknown: nothing in time.
        """
        assert self._loop is not None  # noqa: S101 - there is one in a thread
        within = _THREAD_SECONDS + wait
        asked = asyncio.run_coroutine_threadsafe(asking, self._loop)
        try:
            return asked.result(within)
        except concurrent.futures.TimeoutError:
            asked.cancel()
            raise NewestUnknown(
                f"workflow {self.workflow_id} was not heard of within {within:g} s "
                f"for its newest {name}; the activity is to be retried"
            ) from None

    async def renew_all(self) -> None:
        """Ask for each name that may be old; a failure is raised where its token is used."""
        for name in sorted({DEFAULT_NAME, *self._known}):
            with suppress(NewestUnknown):
                await self._renew(name)

    def never_held(self, name: str) -> bool:
        """As `never_held_async`, in a thread."""
        if self._is_in_thread:
            return self._in_loop(self.never_held_async(name), name, 0.0)
        return self.standing(name).never

    async def never_held_async(self, name: str) -> bool:
        """Whether the workflow answers that nothing of this name ever reached it.

        What came along with the activity does not say so, and neither does a question that fails.
        """
        if self._client is not None and name not in self._asked_at:
            with suppress(NewestUnknown):
                await self._ask(self._client(), name)
        return self.standing(name).never

    def standing(self, name: str) -> Standing:
        """What is known of a name."""
        return self._known.get(name, Standing())

    async def _renew(self, name: str, refused: ApiToken | None = None, wait: float = 0.0) -> bool:
        """Ask where the rule says so, and whether there is a token to use then.

        Raises:
            NewestUnknown: the workflow does not answer, and nothing else may be used.
        """
        if self._client is None:
            return refused is None
        client = self._client()
        if refused is not None:
            wait = max(wait, limits.LIMITS.newer_seconds)
            await self._ask(client, name)
            if self._is_newest(refused):
                await self._report(client, refused)
        elif self._is_stale(name):
            try:
                await self._ask(client, name)
            except NewestUnknown as error:
                if self._must_ask or self.standing(name).message is None:
                    self._unknown[name] = error
                    raise
        give_up = time.monotonic() + wait
        while not self._is_usable(name, refused) and time.monotonic() < give_up:
            await asyncio.sleep(min(wait / 4, 1.0))
            with suppress(NewestUnknown):
                await self._ask(client, name)
        return refused is None or not self._is_newest(refused)

    def _is_usable(self, name: str, refused: ApiToken | None) -> bool:
        """Whether a token is held that is neither the refused one nor past its expiry."""
        message = self.standing(name).message
        if message is None or (refused is not None and self._is_newest(refused)):
            return False
        expiry = message.claims.expires_at
        return expiry is None or time.time() < expiry

    def _is_stale(self, name: str) -> bool:
        """Whether the workflow is asked before the next use: the one rule of freshness."""
        known = self.standing(name)
        known_at = self._asked_at.get(name, self._carried_at)
        if time.monotonic() - known_at > limits.LIMITS.fresh_seconds:
            return True
        if known.message is None:
            return known.state == "held"  # too large for the header
        expiry = known.message.claims.expires_at
        return expiry is not None and expiry - time.time() < NEAR_EXPIRY_SECONDS

    def _is_newest(self, token: ApiToken) -> bool:
        message = self.standing(token.name).message
        return message is not None and message.hash == token.message.hash

    async def _ask(self, client: Client, name: str) -> None:
        """Ask this activity's workflow for the newest.

        Raises:
            NewestUnknown: where it does not answer.
        """
        handle = client.get_workflow_handle(self.workflow_id, run_id=self.info.workflow_run_id)
        read = partial(token_answer, name=name)
        known = Standing(never=True)
        try:
            raw: object = await handle.query(
                MESSAGE, name, result_type=RawValue, rpc_timeout=limits.LIMITS.activity_question
            )
            answer = read_answer(client, self.workflow_id, MESSAGE, raw, read)
            if answer is not None:
                known = Standing.of(name, answer.status.state, answer.sealed)
        except (RPCError, WorkflowQueryFailedError, AnswerMalformed, MessageRefused) as error:
            raise NewestUnknown(
                f"workflow {self.workflow_id} did not answer for its newest {name} "
                f"({type(error).__name__}: {error}); the activity is to be retried"
            ) from None
        self._known[name] = known
        self._asked_at[name] = time.monotonic()
        self._unknown.pop(name, None)

    async def _report(self, client: Client, token: ApiToken) -> None:
        """Tell the authority that the API refused its token; nothing is raised if it is gone."""
        refused = {
            "name": token.name,
            "authority": token.authority,
            "version": token.version,
            "fingerprint": token.fingerprint,
        }
        try:
            handle = client.get_workflow_handle(token.authority)
            await handle.signal(REPORT, refused, rpc_timeout=limits.LIMITS.activity_question)
        except RPCError as error:
            said = f"Workflow {token.authority} could not be told that its token was refused"
            activity.logger.warning(printable(f"{said}: {error.message}"))

    # --- opening -----------------------------------------------------------------------------

    def open(self, name: str) -> ApiToken:
        """Check the token whole, as it is known now, open it, and put that on record.

        Raises:
            TokenUnavailable, UseRefused, KeyringError, MessageRefused: the subclass says why.
            AuditFailed: it could not be put on record, and is not given out.
        """
        token, read = self._opened(name)
        self.recorder.require(read)
        return token

    async def _open_async(self, name: str) -> ApiToken:
        """As `open`, in a thread where a KMS or an HSM is asked; the loop waits for no sink."""
        try:
            asks = self.keyring().has_openers
        except KeyringError:
            asks = False  # opening says it
        # No thread otherwise: a user's threads may be waiting for this loop.
        opened = await asyncio.to_thread(self._opened, name) if asks else self._opened(name)
        token, read = opened
        await self.recorder.require_async(read)
        return token

    def _opened(self, name: str) -> tuple[ApiToken, AuditEvent]:
        """The token, and the event that says so."""
        known, now = self.standing(name), time.time()
        try:
            message, keyring = self._usable(name, known), self.keyring()
            secret = keyring.open(
                message,
                now=now,
                namespace=self.info.namespace,
                workflow_type=self.info.workflow_type,
            )
        except StatefulError as error:
            self.refused(name, known.message, error)
            raise
        self.secrets.add(name, secret)
        expiry = message.claims.expires_at
        self.recorder.metrics.opened(
            name,
            age=now - message.claims.version / 1000,
            remaining=None if expiry is None else expiry - now,
        )
        reader = keyring.reader_of(message)
        read = self.event("read", "success", name, message, reader=reader)
        return ApiToken(message, secret, self._handed_out), read

    def _usable(self, name: str, known: Standing) -> Message:
        if name in self._unknown:
            raise self._unknown[name]
        where = f"workflow {self.workflow_id}"
        if known.state == "revoked":
            raise TokenRevoked(
                f"{name} is revoked at {where}; an issuer must set it again, or let it inherit"
            )
        if known.message is None:
            if known.state == "held":
                raise NewestUnknown(f"{where} has not been asked for its {name} yet")
            raise TokenNotSet(f"{where} has no {name}: {cure(known.state)}")
        return known.message

    # --- on record ---------------------------------------------------------------------------

    def used(
        self,
        name: str,
        message: Message | None,
        origin: str | None,
        method: str | None = None,
        status: int | None = None,
    ) -> None:
        """Put a request that carried a token on record, with the status of its answer.

        Args:
            name: credential name.
            message: the token's; None for a fallback of it.
            origin, method: of the request; no method where a client of another library sends it.
            status: None where no answer came, or nobody sees it.
        """
        outcome = "unknown" if status is None else "success" if status < 400 else "failure"
        about = {"origin": origin, "method": method, "status": status}
        reason = "fallback" if message is None else None
        self.recorder.record(self.event("use", outcome, name, message, reason=reason, **about))

    def _handed_out(
        self, token: ApiToken, origin: str | None, error: OriginNotAllowed | None
    ) -> None:
        """Put on record that a token was given, or not, for a URL."""
        if error is None:
            self.used(token.name, token.message, origin)
        else:
            self.refused(token.name, token.message, error, origin=origin)

    def refused(
        self, name: str, message: Message | None, error: StatefulError, **about: str | None
    ) -> None:
        """Put on record that a token was not opened, or not sent to an origin."""
        why = type(error).__name__
        event = self.event("refuse", "failure", name, message, reason=why, **about)
        self.recorder.record(event)

    def event(
        self, action: Action, outcome: Outcome, name: str, message: Message | None, **about: Any
    ) -> AuditEvent:
        """An event of the running activity; `about` are other fields of `AuditEvent`."""
        scene = Scene.of(self.recorder.identity, self.info)
        return scene.event(action, outcome, message, name, **about)


_current: ContextVar[ActivityTokens | None] = ContextVar("stateful-activity", default=None)


@contextmanager
def running(tokens: ActivityTokens) -> Generator[None, None, None]:
    """Make an activity's tokens the current ones inside a block, and only there."""
    reset = _current.set(tokens)
    try:
        yield
    finally:
        _current.reset(reset)


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


def current_api_url(name: str = DEFAULT_NAME) -> str | None:
    """The API's address that goes with a token of the running activity's workflow.

    Raises:
        PluginMissing: see `activity_tokens`.
    """
    use = activity_tokens().use
    if use is None:
        return None
    entry = use.tokens.get(name)
    return use.api_url if entry is None else entry.get("api_url")
