"""What an activity knows of its tokens, and when it asks its workflow for the newest.

The rule, in every kind of activity: what is older than 5 s, near its expiry, refused by the API, or
carried by a retry is asked for again before it is used (docs/decisions/26-current-where-used.md).
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import math
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from temporalio import activity
from temporalio.client import WorkflowQueryFailedError

from ..errors import (
    NewestUnknown,
    PluginMissing,
    ReferenceUnresolved,
    StatefulError,
    TokenForged,
    TokenNotSet,
    TokenRevoked,
)
from ..node import limits
from ..node.headers import Use
from ..node.ledger import ALL
from ..node.status import cure
from ..sealed.message import DEFAULT_NAME, Message, parse
from ..sealed.secret import Secret
from ..sealed.token import ApiToken
from ..text.printable import printable
from .asking import ask_token, is_plain
from .clock import server_clock
from .references import References
from .telling import Asking

T = TypeVar("T")

NEAR_EXPIRY_SECONDS: Final = 60.0

_THREAD_SECONDS: Final = 20.0  # far more than asking takes, unless the loop has stopped


@dataclass(frozen=True)
class Standing:
    """What is known of one credential: its state and, where it is held, the message.

    Attributes:
        api_url: the API's address that goes with it.
        is_refused: its authority knows that an API refused it.
        never: the workflow has answered that it never held, lost or was kept from one of this name.
    """

    state: str = "none"
    message: Message | None = None
    api_url: str | None = None
    is_refused: bool = False
    never: bool = False


@dataclass
class _Name:
    """What is known of one name, and who asks for it; times are of `time.monotonic`."""

    standing: Standing
    true_at: float
    is_answered: bool = False
    error: StatefulError | None = None
    asked_at: float = -math.inf
    question: asyncio.Task[None] | None = None
    keeper: asyncio.Task[None] | None = None


class Newest:
    """What one running activity knows of its tokens.

    Args:
        use: what came with the activity; None where nothing did, or it could not be read, so that
            the workflow is asked.
        asking: asks the workflow; None for local activities.
        fresh_since: `time.monotonic` seconds at which `use` was true.
        must_ask: on an attempt after the first, what came along may be dead: nothing is
            used before the workflow has answered.
        references: what the worker's activities have resolved.
    """

    def __init__(
        self,
        use: Use | None,
        asking: Asking | None,
        fresh_since: float,
        *,
        must_ask: bool = False,
        references: References | None = None,
    ) -> None:
        self.use = use
        self.references = References() if references is None else references
        self.prepare: Callable[[Message], Awaitable[None]] | None = None
        """Makes a message ready for uses on the event loop, before it is known there."""
        self.clock = server_clock()
        self._info = activity.info()
        self._where = f"workflow {self._info.workflow_id}"
        self._asking = asking
        self._loop: asyncio.AbstractEventLoop | None = None
        with suppress(RuntimeError):
            self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._must_ask = must_ask
        self._carried_at = -math.inf if must_ask or use is None else fresh_since
        self._names: dict[str, _Name] = {}
        for name, entry in () if use is None else use.tokens.items():
            message = _message(name, entry.get("sealed"))
            known = Standing(str(entry.get("state")), message, entry.get("api_url"))
            self._names[name] = _Name(known, self._carried_at)
        # Where the workflow was started without any token.
        others = self._names.pop(ALL, None)
        self._others = Standing() if others is None else others.standing
        self._refused: set[str] = set()

    def _of(self, name: str) -> _Name:
        return self._names.setdefault(name, _Name(self._others, self._carried_at))

    def standing(self, name: str) -> Standing:
        """What is known of a name."""
        return self._of(name).standing

    def message(self, name: str) -> Message:
        """The token that is held, as it is known now.

        Raises:
            TokenNotSet, TokenRevoked: there is none.
            NewestUnknown, PluginMissing: the workflow did not answer, or takes no part.
        """
        of, known = self._of(name), self.standing(name)
        if of.error is not None:
            raise of.error
        if known.state == "revoked":
            raise TokenRevoked(
                f"{name} is revoked at {self._where}; an issuer must set it again, or let it "
                "inherit; where a source mints it, `stateful token status` says what ends it"
            )
        if known.message is not None:
            return known.message
        if known.state == "held":
            raise NewestUnknown(f"{self._where} has not been asked for its {name} yet")
        if self.use is None and not of.is_answered:
            raise NewestUnknown(
                f"nothing came along with this activity, and {self._where} cannot be asked for its "
                f"{name} on the event loop: use `await current_token_async()`, or let the "
                "activity be retried: its next attempt asks before it begins"
            )
        is_withheld = known.state == "withheld"
        raise TokenNotSet(f"{self._where} has no {name}: {cure(known.state)}", withheld=is_withheld)

    def is_newest(self, token: ApiToken) -> bool:
        """Whether nothing else is known to have come in the place of a token."""
        message = self.standing(token.name).message
        is_same = message is not None and message.hash == token.message.hash
        return is_same and not self.references.has_another(token)

    def _is_usable(self, name: str, refused: ApiToken | None = None) -> bool:
        """Whether a token is held that is neither the refused one nor past its expiry."""
        message = self.standing(name).message
        if message is None or (refused is not None and self.is_newest(refused)):
            return False
        expiry = message.claims.expires_at
        return expiry is None or self.clock() < expiry

    def _is_stale(self, name: str) -> bool:
        """Whether the workflow is asked before the next use."""
        known = self.standing(name)
        if self._is_old(name):
            return True
        if known.message is None:
            return known.state in ("held", "waiting")  # too large for the header, or on its way
        expiry = known.message.claims.expires_at
        return expiry is not None and expiry - self.clock() < NEAR_EXPIRY_SECONDS

    def _is_old(self, name: str) -> bool:
        return time.monotonic() - self._of(name).true_at >= limits.LIMITS.fresh_seconds

    async def begin(self, *, takes_part: bool) -> None:
        """Ask before the activity begins, where it could not later; `message` raises the errors.

        What came along is asked for where it may be old, and so is what activities of this type
        take on the event loop. That alone where nothing came along: a plain workflow is not asked.
        `takes_part`: something came along, readable or not.
        """
        if self._asking is None:
            return
        on_loop = self._asking.on_loop.get(self._info.activity_type, set[str]())
        carried = {DEFAULT_NAME, *self._names} if takes_part else set[str]()
        asked = [self._renew(name) for name in sorted(carried | on_loop)]
        for failed in await asyncio.gather(*asked, return_exceptions=True):
            if isinstance(failed, BaseException) and not isinstance(failed, StatefulError):
                raise failed
        for name in sorted(on_loop):
            await self._prepared(self.standing(name))
            self._keep_fresh(name)

    def end(self) -> None:
        """Ask no more."""
        for of in tuple(self._names.values()):  # a thread may add to them
            for task in (of.keeper, of.question):
                if task is not None:
                    task.cancel()

    @property
    def _loop_elsewhere(self) -> asyncio.AbstractEventLoop | None:
        """The worker's loop, in a thread that may wait for it."""
        return None if threading.get_ident() == self._thread else self._loop

    def may_wait(self, *, blocks: bool) -> bool:
        """Whether a caller can wait for an answer: not one that blocks, on the event loop."""
        return self._asking is not None and not (blocks and self._loop_elsewhere is None)

    async def never_held(self, name: str, *, blocks: bool) -> bool:
        """Whether the workflow answers, by the rule, that nothing of this name ever reached it.

        What came along with the activity does not say so, and neither does a question that fails.
        On the event loop, where the caller blocks, it is what is known.
        """
        if blocks and self._loop_elsewhere is None:
            return self.standing(name).never
        asking = self._never_held(name)
        return self._in_loop(asking, name) if blocks else await asking

    async def _never_held(self, name: str) -> bool:
        if self._asking is None:
            return False
        with suppress(StatefulError):
            await self._ask(self._asking, name, limits.LIMITS.fresh_seconds)
            return self.standing(name).never
        return False

    async def renew(
        self, name: str, refused: ApiToken | None = None, wait: float = 0.0, *, blocks: bool
    ) -> bool:
        """Ask where the rule says so, and whether there is something else than the refused then.

        Args:
            refused: one that the API did not take; its authority is told where it is the newest.
            wait: seconds to wait for a token that can be used, and is not the refused one.
            blocks: the caller cannot await: a thread waits for the answer. On the event loop nobody
                can; there nothing is raised, and from the first call on the workflow is asked in
                the background, whenever what is known is old.

        Raises:
            NewestUnknown: the workflow does not answer, and nothing else may be used.
            PluginMissing: it takes no part in a tree.
        """
        if not blocks:
            return await self._renew(name, refused, wait)
        if self._loop_elsewhere is None:
            if self._asking is not None:
                self._keep_fresh(name, refused)
        elif refused is not None or not self._is_usable(name) or self._is_stale(name):
            return self._in_loop(self._renew(name, refused, wait), name, wait)
        return refused is None or not self.is_newest(refused)

    async def _renew(self, name: str, refused: ApiToken | None = None, wait: float = 0.0) -> bool:
        if refused is not None:
            await self.references.look_again(refused)
        if self._asking is None:
            return refused is None or not self.is_newest(refused)
        if refused is not None and self.is_newest(refused):
            await self._look_for_another(self._asking, refused)
        elif self._is_stale(name):
            fresh = limits.LIMITS.fresh_seconds
            within = fresh if self._is_usable(name) else limits.LIMITS.wait_seconds
            try:
                await self._ask(self._asking, name, within)
            except StatefulError as error:
                if self._must_ask or self.standing(name).message is None:
                    self._of(name).error = error
                    raise
        give_up = time.monotonic() + wait
        while not self._is_usable(name, refused) and time.monotonic() < give_up:
            await asyncio.sleep(min(wait, limits.LIMITS.wait_seconds))
            with suppress(NewestUnknown):
                await self._ask(self._asking, name, limits.LIMITS.wait_seconds)
        return refused is None or not self.is_newest(refused)

    async def resolved(self, message: Message, reference: Secret, *, blocks: bool) -> Secret:
        """What a reference leads to; on the event loop, where the caller blocks, if it is known.

        Raises:
            ReferenceUnresolved: no resolver may be asked, or it gives none, or not yet.
        """
        known = self.references.known(message)
        if known is not None:
            return known
        resolving = self.references.resolve(message, reference)
        if not blocks:
            return await resolving
        if self._loop_elsewhere is not None:
            return self._in_loop(resolving, message.claims.name)
        asyncio.create_task(resolving).add_done_callback(_retrieve)
        raise ReferenceUnresolved(
            f"the {message.claims.name} of {self._where} is a reference, which cannot be resolved "
            "on the event loop while its caller waits: use `await current_token_async()`, or let "
            "the activity be retried: by then it is resolved",
            reference.token,
        )

    async def _prepared(self, known: Standing) -> None:
        if known.message is not None and self.prepare is not None:
            await self.prepare(known.message)

    def _in_loop(self, asking: Coroutine[Any, Any, T], name: str, wait: float = 0.0) -> T:
        """What comes of asking in the worker's loop, in a thread that waits for it."""
        within = _THREAD_SECONDS + wait
        give_up = time.monotonic() + within
        loop = self._loop_elsewhere
        assert loop is not None  # noqa: S101 - who calls has looked
        asked = asyncio.run_coroutine_threadsafe(asking, loop)
        try:
            while time.monotonic() < give_up:
                # Not in one go: a thread hears of the activity's cancellation in between.
                with suppress(concurrent.futures.TimeoutError):
                    return asked.result(min(1.0, within))
        finally:
            asked.cancel()
        raise NewestUnknown(
            f"{self._where} was not heard of within {within:g} s for its newest {name}; the "
            "activity is to be retried"
        )

    def _keep_fresh(self, name: str, refused: ApiToken | None = None) -> None:
        """On the loop: ask in the background from now on, and now for another than the refused."""
        assert self._asking is not None  # noqa: S101 - who calls has looked
        self._asking.on_loop.setdefault(self._info.activity_type, set()).add(name)
        of = self._of(name)
        if of.keeper is None and self._is_usable(name) and self._is_old(name):
            activity.logger.warning(
                printable(
                    f"What this activity knows of its {name} is old, and on the event loop it "
                    "cannot ask its workflow first: use `await current_token_async()`"
                )
            )
        elif of.keeper is not None and refused is not None and self.is_newest(refused):
            of.keeper.cancel()  # another one looks at once
            of.keeper = None
        if of.keeper is None:
            of.keeper = asyncio.create_task(self._keep(name, refused))

    async def _keep(self, name: str, refused: ApiToken | None) -> None:
        while True:
            with suppress(StatefulError):
                await self._renew(name, refused)
            refused = None
            left = self._of(name).true_at + limits.LIMITS.fresh_seconds - time.monotonic()
            await asyncio.sleep(left if left > 0 else limits.LIMITS.wait_seconds)

    async def _look_for_another(self, asking: Asking, refused: ApiToken) -> None:
        """Ask whether there is another than the one that was refused, and report where not.

        The first refusal of a version asks, and the others no sooner than what they learned is old:
        a dead token is not to make a storm.
        """
        is_first = refused.message.hash not in self._refused
        self._refused.add(refused.message.hash)
        await self._ask(asking, refused.name, 0.0 if is_first else limits.LIMITS.fresh_seconds)
        if self.is_newest(refused) and not self.standing(refused.name).is_refused:
            asking.report(refused)

    async def _ask(self, asking: Asking, name: str, within: float) -> None:
        """Know what the workflow says, or said within these seconds; raises as `renew`.

        There is one question for all who ask.
        """
        of, now = self._of(name), time.monotonic()
        question = of.question
        is_over = question is None or question.cancelled() or now - of.asked_at >= within
        if question is None or (is_over and question.done()):
            of.asked_at, of.question = now, asyncio.create_task(self._learn(asking, name))
            question = of.question
            question.add_done_callback(_retrieve)
        await asyncio.shield(question)

    async def _learn(self, asking: Asking, name: str) -> None:
        sent, info, wait = time.monotonic(), self._info, limits.LIMITS.activity_question
        client, own = asking.client(), info.workflow_id or ""
        known = Standing(never=True)
        try:
            answer = await ask_token(client, own, name, wait, info.workflow_run_id)
            if answer is not None:
                status = answer.status
                message = _message(name, answer.sealed)
                known = Standing(status.state, message, status.api_url, status.refused)
        except Exception as error:  # noqa: BLE001 - a codec may raise anything
            if self.use is None and isinstance(error, WorkflowQueryFailedError):
                run = info.workflow_run_id
                if await is_plain(client, own, error, run_id=run, timeout=wait):
                    raise PluginMissing(
                        f"{self._where} is no StatefulWorkflow: its activities have no {name}"
                    ) from None
            raise NewestUnknown(
                f"{self._where} did not answer for its newest {name} "
                f"({type(error).__name__}: {error}); the activity is to be retried"
            ) from None
        of = self._of(name)
        if of.keeper is not None:
            await self._prepared(known)
        of.standing, of.true_at, of.is_answered, of.error = known, sent, True, None


def at_once(coroutine: Coroutine[Any, Any, T]) -> T:
    """What a coroutine comes to that was told that its caller `blocks`, so that it never suspends.

    So what threads and event loops share is written once.
    """
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    raise RuntimeError("a coroutine that was to block has suspended")


def _message(name: str, sealed: str | None) -> Message | None:
    """The message that a workflow says it holds; MessageRefused: it is none of this name."""
    message = None if sealed is None else parse(sealed)
    if message is not None and message.claims.name != name:
        raise TokenForged(f"another credential's message was given for {name}")
    return message


def _retrieve(answer: asyncio.Task[Any]) -> None:
    """Look at what came of a question, which nobody may be waiting for by now."""
    if not answer.cancelled():
        answer.exception()
