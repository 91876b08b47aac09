"""Tokens inside an activity: open the current one, asked for again where it may be old."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from typing import Any

from temporalio import activity

from ..errors import (
    NewestUnknown,
    OriginNotAllowed,
    PluginMissing,
    StatefulError,
    TokenExpired,
    TokenNotSet,
)
from ..node.headers import Use
from ..record.event import WITHHELD, Action, AuditEvent, Outcome, Scene
from ..record.recorder import Recorder
from ..sealed.keyring import Keyring
from ..sealed.message import DEFAULT_NAME, Message
from ..sealed.origins import is_covered
from ..sealed.secret import Secret
from ..sealed.token import ApiToken
from .exposure import OpenedSecrets
from .newest import Newest, at_once


class ActivityTokens:
    """The tokens of one running activity."""

    def __init__(self, newest: Newest, keyring: Callable[[], Keyring], recorder: Recorder) -> None:
        self.info = activity.info()
        self.workflow_id = self.info.workflow_id or ""
        self.process = os.getpid()
        self.has_ended = False
        self.newest = newest
        newest.prepare = self._prepare
        self.use = newest.use
        self.keyring = keyring
        self.recorder = recorder
        self.secrets = OpenedSecrets()
        """What has been opened here, to be kept out of what the activity gives back."""
        self.confirmed_root: str | None = None
        """The root that the server says this activity's workflow stands below; see `seal_token`."""

    async def current(self, name: str, wait: float = 0.0, *, blocks: bool) -> ApiToken:
        """The token to use now, asked for again where it may be old, and opened.

        As in `Newest.renew`, `wait` is seconds, and `blocks` says that the caller cannot await.

        Raises:
            StatefulError: as `open`; NewestUnknown where the workflow does not answer.
        """
        give_up = time.monotonic() + (wait if self.newest.may_wait(blocks=blocks) else 0.0)
        while True:
            left = give_up - time.monotonic()
            await self.newest.renew(name, wait=max(left, 0.0), blocks=blocks)
            try:
                token = await self.open(name, blocks=blocks)
            except TokenExpired:
                if left <= 0:
                    raise
            else:
                # It may have expired while it was opened, and put on record.
                expiry = token.message.claims.expires_at
                if left <= 0 or expiry is None or self.newest.clock() < expiry:
                    return token

    async def report_refused(self, token: ApiToken, wait: float = 0.0, *, blocks: bool) -> bool:
        """Ask for another one than the API refused, and tell its authority where there is none.

        Whether the workflow has something else by now, for the next use. Nothing is opened.
        """
        with suppress(NewestUnknown):
            return await self.newest.renew(token.name, token, wait, blocks=blocks)
        return False

    @property
    def place(self) -> Use:
        """What came with the activity: where its workflow stands; PluginMissing: nothing did."""
        if self.use is None:
            raise PluginMissing(
                f"workflow {self.workflow_id} was no StatefulWorkflow when it scheduled this "
                "activity, or its header cannot be read here, so that its place and its address "
                "are not known: let it schedule the activity anew"
            )
        return self.use

    async def open(self, name: str, *, blocks: bool) -> ApiToken:
        """Check the token whole, as it is known now, open it, and put that on record.

        The event loop waits neither for a KMS or an HSM nor for an audit sink.

        Raises:
            TokenUnavailable, UseRefused, KeyringError, MessageRefused: the subclass says why.
            AuditFailed: it could not be put on record, and is not given out.
        """
        known, now = self.newest.standing(name), self.newest.clock()
        try:
            message = self.newest.message(name)
            secret = await self._unsealed(message, blocks=blocks)
            if secret.is_reference:
                secret = await self.newest.resolved(message, secret, blocks=blocks)
        except StatefulError as error:
            self.refused(name, known.message, error)
            raise
        for text in (secret.token, *secret.values.values()):
            self.secrets.add(name, text)
        expiry = message.claims.expires_at
        self.recorder.metrics.opened(
            name,
            age=now - message.claims.version / 1000,
            remaining=None if expiry is None else expiry - now,
        )
        reader = self.keyring().reader_of(message)
        read = self.event("read", "success", name, message, reader=reader)
        if blocks:
            self.recorder.require(read)
        else:
            await self.recorder.require_async(read)
        return ApiToken(message, secret, self._handed_out)

    async def _unsealed(self, message: Message, *, blocks: bool) -> Secret:
        """What is sealed in a message, checked whole."""
        keyring, info = self.keyring(), self.info
        unseal = partial(
            keyring.unseal,
            message,
            now=self.newest.clock(),
            namespace=info.namespace,
            workflow_type=info.workflow_type,
        )
        # No thread otherwise: a user's threads may be waiting for this loop.
        return unseal() if blocks or not keyring.has_openers else await asyncio.to_thread(unseal)

    async def _prepare(self, message: Message) -> None:
        if message.claims.content == "reference":
            with suppress(StatefulError):  # opening says it
                reference = await self._unsealed(message, blocks=False)
                await self.newest.resolved(message, reference, blocks=False)

    def used(
        self,
        name: str,
        message: Message | None,
        origin: str | None,
        method: str | None = None,
        status: int | None = None,
    ) -> None:
        """Put a request that carried a token, or without a message a fallback of it, on record.

        There is no method where a client of another library sends it, and no status where no
        answer came, or nobody sees it.
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
        is_meant = isinstance(error, TokenNotSet) and error.withheld
        why = WITHHELD if is_meant else type(error).__name__
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
        tokens.has_ended = True
        _current.reset(reset)


def activity_tokens() -> ActivityTokens:
    """The running activity's tokens.

    Raises:
        PluginMissing: outside an activity, on a worker without the plugin, in a local activity of
            a workflow that is no `StatefulWorkflow`, in a process pool, or in a thread that an
            activity started without its context.
    """
    tokens = _current.get()
    # A process that was forked in an activity would have that one's tokens for ever.
    if tokens is None or tokens.process != os.getpid():
        raise PluginMissing(
            "tokens are at hand only in activities that a StatefulWorkflow started, on a worker "
            "with StatefulPlugin, and not in a process pool, where nothing can renew them: run "
            "the activity in threads (ThreadPoolExecutor), or make it async. A thread that the "
            "activity itself starts needs its context: asyncio.to_thread takes it along, and "
            "others run contextvars.copy_context().run(function)"
        )
    return tokens


def current_token(name: str = DEFAULT_NAME) -> ApiToken:
    """The token of the running activity's workflow, opened here and checked whole.

    In a thread the workflow is asked first where what is known is older than 5 s, near its
    expiry, or came with a retry. On the event loop of an async activity nobody can wait for that:
    what is known is given, and from the first call on the workflow is asked in the background
    every 5 s until the activity ends. Where the first call comes late, use `current_token_async`.

    Raises:
        PluginMissing: see `activity_tokens`; the workflow is no `StatefulWorkflow`.
        TokenNotSet, TokenRevoked, TokenExpired: there is none to use.
        NewestUnknown: the workflow could not be asked, and nothing else may be used.
        NoReaderKey, KeyringError: this worker cannot open it.
        AuditFailed: it cannot be put on record (see `StatefulPlugin`).
        TokenForged, WrongNamespace, WrongWorkflowType: its issuer did not sign it for this.
    """
    return at_once(activity_tokens().current(name, blocks=True))


async def current_token_async(name: str = DEFAULT_NAME) -> ApiToken:
    """`current_token` in an async activity: it asks first, like one in a thread.

    Raises:
        StatefulError: as `current_token`.
    """
    return await activity_tokens().current(name, blocks=False)


def report_refused(token: ApiToken) -> bool:
    """Say that the API refused a token, where no client of this library saw that.

    The workflow is asked for another one, and where it has none the workflow at which the token
    was set is told, once a version: its code sees that in `TokenStatus.refused`.

    Args:
        token: what `current_token` gave, and the API did not take.

    Returns:
        Whether there is something else by now, which the next `current_token` gives. On the event
        loop of an async activity that is not known yet: use `report_refused_async`.

    Raises:
        PluginMissing: see `activity_tokens`.
    """
    return at_once(activity_tokens().report_refused(token, blocks=True))


async def report_refused_async(token: ApiToken) -> bool:
    """`report_refused` in an async activity: what it returns is what the workflow answered."""
    return await activity_tokens().report_refused(token, blocks=False)


def current_api_url(name: str = DEFAULT_NAME) -> str | None:
    """The API's address that goes with a token of the running activity's workflow.

    It is as current as `current_token(name)`: the workflow's own, or else the one that was signed
    with the token; None where there is neither.

    Raises:
        PluginMissing: see `activity_tokens`; nothing came along with the activity.
        NewestUnknown: the workflow could not be asked, and nothing else may be used.
        OriginNotAllowed: there is only one that the token is not signed for.
    """
    tokens = activity_tokens()
    at_once(tokens.newest.renew(name, blocks=True))
    known = tokens.newest.standing(name)
    if known.message is None:
        return tokens.place.api_url if known.state == "none" else known.api_url
    carried = None if tokens.use is None else tokens.use.api_url
    url = carried if known.api_url is None else known.api_url
    origins = known.message.claims.origins
    if url is not None and not is_covered(url, origins):
        raise OriginNotAllowed(
            f"workflow {tokens.workflow_id} has the API address {url}, for which its {name} is not "
            f"signed (but for {', '.join(origins) or 'no origin'}): set or rotate it with api_url="
        )
    return known.api_url
