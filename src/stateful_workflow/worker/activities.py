"""What a courier does for the nodes of its workers: tell, renew trust, recover a state.

The names of these activities stand in histories, so they never change.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any, Final, TypeVar, cast

from temporalio import activity
from temporalio.client import Client, WorkflowQueryFailedError
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory
from temporalio.service import RPCError, RPCStatusCode

from ..errors import AnswerMalformed, KeyringError
from ..node.contract import (
    FORMAT,
    MESSAGE,
    NARROW,
    PLACE,
    RECOVER,
    STATE_QUERY,
    TELL,
    TRUST,
    NarrowRequest,
    NarrowResult,
    PlaceRequest,
    RecoverResult,
    TellRequest,
    TellResult,
    TrustResult,
)
from ..node.members import to_json
from ..record.event import Scene
from ..record.recorder import Recorder
from ..sealed.keyring import Keyring
from ..sealed.message import Message, parse
from ..use.asking import Silence, ask_closed, is_plain
from ..use.server import Execution
from .descent import RPC_TIMEOUT, Descent, NoAnswer
from .pace import SignalPace
from .places import place_of

MAX_CONCURRENT_SIGNALS: Final = 100
"""Signals in flight from one courier, whatever the number of nodes it runs for."""

_SIGNALS_BEGIN_WITHIN: Final = 8.0
_LOOKED_FOR_WITHIN: Final = 30.0
_INDEX_LAG_SECONDS: Final = 2.0
"""After this the server's list holds what there is: a cluster's index lags by about a second."""

_ASKED_WITHIN: Final = timedelta(seconds=2)
"""Whether it takes part; a child without a worker does not answer, and is told all the same."""

_NOT_ASKED_SECONDS: Final = 300.0
_TYPES_REMEMBERED: Final = 1_000

_BEAT_SECONDS: Final = 3.0

_SHOWN: Final = 10
_RESULT_ORPHANS: Final = 5_000
"""In one result, of which the server takes 2 MB; the others are found by the next."""


@dataclass(frozen=True)
class OfPlugin:
    """What a courier needs of the plugin of the workers that it runs beside."""

    keyring: Callable[[], Keyring | None]
    recorder: Recorder
    pace: SignalPace


class CourierActivities:
    """The activities of one courier.

    `takes_part` says of a workflow type whether it takes part in a tree; None where the workers do
    not run it.
    """

    def __init__(
        self,
        plugin: OfPlugin,
        client: Callable[[], Client],
        takes_part: Callable[[str], bool | None],
    ) -> None:
        self._plugin = plugin
        self._client = client
        self._takes_part = takes_part
        self._not_asked: dict[str, float] = {}
        self._slots = asyncio.Semaphore(MAX_CONCURRENT_SIGNALS)

    def all(self) -> list[Callable[..., Any]]:
        """What to register with the courier's worker."""
        return [self.tell, self.trust, self.recover, self.place, self.narrow]

    @activity.defn(name=TELL)
    async def tell(self, request: TellRequest) -> dict[str, Any]:
        """Signal each target its messages, and find whom the workflow lost sight of.

        Raises:
            ApplicationError: nothing came of a patient request, or its format is a later one; the
                server is to repeat it.
        """
        request = known(TellRequest, request)
        beating = asyncio.create_task(beat(_BEAT_SECONDS))
        try:
            result = TellResult(more=request.more)
            messages = [parse(text) for text in request.messages]
            deadline = time.monotonic() + _SIGNALS_BEGIN_WITHIN
            told = [
                self._tell(child_id, child_type, [messages[i] for i in indexes], deadline, result)
                for child_id, child_type, indexes in request.targets
            ]
            not_open = [child_id for child_id in await asyncio.gather(*told) if child_id]
            await self._find(request, not_open, result)
        finally:
            beating.cancel()
        if request.patient and not _came_of_it(request, result):
            reasons = [f"{child_id}: {why}" for child_id, why in result.failed.items()]
            raise ApplicationError(
                "; ".join(reasons[:_SHOWN]) or "not done in time",
                category=ApplicationErrorCategory.BENIGN,  # it is shown and recorded elsewhere
            )
        return _written(result)

    async def _tell(
        self,
        child_id: str,
        child_type: str,
        messages: Sequence[Message],
        deadline: float,
        result: TellResult,
    ) -> str | None:
        """Signal one child what it lacks; its id where the server knows no such open workflow."""
        handle = self._client().get_workflow_handle(child_id)
        sent = 0
        try:
            async with self._slots:
                if await self._is_plain(child_id, child_type):
                    result.plain.append(child_id)
                    sent = len(messages)
                    return None
                for message in messages:
                    at = self._plugin.pace.take(time.monotonic(), deadline)
                    if at is None:
                        result.left.append(child_id)
                        break
                    await asyncio.sleep(at - time.monotonic())
                    await handle.signal(MESSAGE, message.text, rpc_timeout=RPC_TIMEOUT)
                    self._record(child_id, child_type, message)
                    sent += 1
        except Exception as error:  # noqa: BLE001 - a codec may raise anything; others are to be told
            is_rpc = isinstance(error, RPCError)
            why = error.status.name if is_rpc else type(error).__name__
            for message in messages[sent:]:
                self._record(child_id, child_type, message, why)
            if is_rpc and error.status == RPCStatusCode.NOT_FOUND:
                return child_id
            result.failed[child_id] = f"{why}: {error.message}" if is_rpc else why
        finally:
            if sent < len(messages):
                result.sent[child_id] = sent
        return None

    async def _is_plain(self, child_id: str, child_type: str) -> bool:
        """Whether a child takes no part: another team's need not see the tree's messages even once.

        One of a type that these workers do not run is asked before its first. Where one takes part,
        or nobody answers, others of its type are not asked for a while, and are told.
        """
        takes_part = self._takes_part(child_type)
        if takes_part is not None:
            return not takes_part
        if time.monotonic() < self._not_asked.get(child_type, 0.0):
            return False
        if await is_plain(self._client(), child_id, timeout=_ASKED_WITHIN):
            return True
        if len(self._not_asked) >= _TYPES_REMEMBERED:
            self._not_asked.clear()
        self._not_asked[child_type] = time.monotonic() + _NOT_ASKED_SECONDS
        return False

    def _record(
        self, child_id: str, child_type: str, message: Message, why: str | None = None
    ) -> None:
        """A child was told a message, or could not be: the name of what went wrong says why."""
        info, recorder = activity.info(), self._plugin.recorder
        where = info.namespace, info.workflow_id, info.workflow_run_id, info.workflow_type
        told = Scene(recorder.identity, *where).event(
            "forward",
            "success" if why is None else "failure",
            message,
            reason=why,
            child_id=child_id,
            child_type=child_type,
        )
        recorder.record(told)

    async def _find(
        self, request: TellRequest, not_open: Sequence[str], result: TellResult
    ) -> None:
        """Find which of those in doubt are children, and whom the closed ones leave."""
        closed = [*not_open]
        for child_id, child_type in request.closed:
            if self._takes_part(child_type) is False:
                result.orphans[child_id] = []
            else:
                closed.append(child_id)
        info = activity.info()
        descent = Descent(
            self._client(),
            info.workflow_id or "",
            info.workflow_run_id or "",
            datetime.fromtimestamp(request.since / 1000, timezone.utc),
            time.monotonic() + _LOOKED_FOR_WITHIN,
        )
        in_doubt = [(id, descent.child(id)) for id in request.in_doubt]
        in_doubt += [(id, descent.joined(id, type)) for id, type in request.joined]
        await asyncio.gather(*[self._resolve(*one, closed, result) for one in in_doubt])
        closed = list(dict.fromkeys(closed))
        if not request.patient:
            result.left.extend(closed)  # the list may lag: a part is no answer
        if not request.patient or not closed:
            return
        await asyncio.sleep(_INDEX_LAG_SECONDS)
        try:
            listed = await descent.listed(closed)
        except NoAnswer as error:
            result.failed.update(dict.fromkeys(closed, f"closed; {error}"))
            return
        await asyncio.gather(*[self._adopt(descent, id, listed.get(id), result) for id in closed])

    async def _resolve(
        self,
        child_id: str,
        asked: Awaitable[Execution | None],
        closed: list[str],
        result: TellResult,
    ) -> None:
        async with self._asking(child_id, result):
            child = await asked
            if child is not None and child.is_open:
                result.mine.append(child_id)
            else:
                (result.gone if child is None else closed).append(child_id)

    async def _adopt(
        self, descent: Descent, closed_id: str, below: list[Execution] | None, result: TellResult
    ) -> None:
        async with self._asking(closed_id, result):
            orphans = await descent.orphans(closed_id, below) if below else []
            room = _RESULT_ORPHANS - sum(map(len, result.orphans.values()))
            if len(orphans) > room and any(result.orphans.values()):
                result.left.append(closed_id)
            else:
                result.orphans[closed_id] = orphans

    @asynccontextmanager
    async def _asking(self, child_id: str, result: TellResult) -> AsyncGenerator[None, None]:
        """Where nobody answers for one child, the others are looked for all the same."""
        async with self._slots:
            try:
                yield
            except NoAnswer as error:
                result.failed[child_id] = str(error)

    @activity.defn(name=TRUST)
    async def trust(self) -> dict[str, Any]:
        """The issuers of this worker's keyring.

        Raises:
            KeyringError: where it has none; retryable, another worker may be asked.
        """
        keyring = self._plugin.keyring()
        if keyring is None or not keyring.trusted():
            raise KeyringError(
                "this worker has no keyring with issuers, so nodes cannot learn new ones from it; "
                "give it the public keyring"
            )
        trusted = {kid: issuer.to_json() for kid, issuer in keyring.trusted().items()}
        return _written(TrustResult(trusted, list(keyring.revoked())))

    @activity.defn(name=RECOVER)
    async def recover(
        self, workflow_id: str, run_id: str, written_by: str | None
    ) -> dict[str, Any]:
        """Ask a closed run for the state it last had, or the one before it where it never ran.

        Args:
            workflow_id, run_id: of the closed run.
            written_by: the run whose state the first header holds; None for that of the start.

        Raises:
            ApplicationError: no worker answered; the server is to repeat it.
        """
        try:
            run, wait = (self._client(), workflow_id, run_id), lambda: RPC_TIMEOUT
            _, said = await ask_closed(*run, STATE_QUERY, _state, wait, written_by)
        except RPCError as error:
            raise ApplicationError(f"{error.status.name}: {error.message}") from None
        except (WorkflowQueryFailedError, AnswerMalformed) as error:
            # It may not replay on this worker and do so on the next one, as in an upgrade.
            raise ApplicationError(f"it does not say its state: {error}") from None
        if isinstance(said, Silence):
            return _written(RecoverResult(asked=said is not Silence.FORGOTTEN))
        return _written(RecoverResult(asked=True, state=said))

    @activity.defn(name=PLACE)
    async def place(self, request: PlaceRequest) -> dict[str, Any]:
        """Ask a workflow for the state that a child of its would start with; see `place_of`."""
        request, info = known(PlaceRequest, request), activity.info()
        who = info.workflow_id or "", info.workflow_type or ""
        return _written(await place_of(self._client(), request, *who))

    @activity.defn(name=NARROW)
    async def narrow(self, request: NarrowRequest) -> dict[str, Any]:
        """Nothing: a node asks the source's workers where there is something to do."""
        return _written(NarrowResult(more=known(NarrowRequest, request).more))


def _state(answer: object) -> dict[str, Any] | None:
    return cast("dict[str, Any]", answer) if isinstance(answer, dict) else None


T = TypeVar("T")


def known(cls: type[T], request: T | dict[str, Any]) -> T:
    """A request of a known format; the user's converter may give a dictionary for a dataclass."""
    asked = cast("dict[str, Any]", request if isinstance(request, dict) else vars(request))
    if asked["format"] > FORMAT:
        raise ApplicationError(
            f"format {asked['format']} is known to later versions of stateful-workflow only; "
            "upgrade this worker"
        )
    return cls(**asked)


def _written(result: object) -> dict[str, Any]:
    """A result as plain JSON, whatever the user's converter makes of a dataclass."""
    written: dict[str, Any] = to_json(result)
    return written


def _came_of_it(request: TellRequest, result: TellResult) -> bool:
    """Whether anybody was told, found, or found to be gone."""
    untold = {*result.left, *result.failed, *result.orphans}
    told = any(target[0] not in untold for target in request.targets)
    return told or bool(result.plain or result.mine or result.gone or result.orphans)


async def beat(every: float) -> None:
    """Let the server know that this worker lives, and be told when a newer state takes over.

    Args:
        every: seconds from one heartbeat to the next.
    """
    while True:
        await asyncio.sleep(every)
        with suppress(RuntimeError):
            activity.heartbeat()
