"""One workflow's live part in a tree.

Runs in workflow code, so everything here follows from the run's history: its header, the signals
and updates it got, and the recorded results of the courier's activities.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from typing import Any, Final, Literal, TypeVar, cast

from temporalio import workflow
from temporalio.api.common.v1 import Payload
from temporalio.common import RawValue, RetryPolicy

from ..errors import (
    AnswerMalformed,
    MessageRefused,
    NotSealed,
    TokenForged,
    TokenKnown,
    TokenMalformed,
    TokenStale,
)
from ..sealed.message import Message, named_issuer
from ..sealed.origins import allowed_origin, is_allowed, is_covered, origin_of
from . import couriers, limits
from .answers import JoinAnswer, Joiner, NodeStatus, RenewalRequest
from .carried import StateUnreadable
from .children import Child, Life, Narrowed, Place, Starting
from .contract import MAX_SIGNALS, NODE_HEADER, RECOVER, PlaceResult, RecoverResult
from .describe import View
from .headers import Start
from .inbox import Inbox, now_ms, read_message
from .joining import Joining
from .ledger import ALL, Ledger, Verdict, is_among
from .living import Living
from .members import read
from .narrowing import Narrowing
from .record import NodeRecord, warn
from .renewal import SourceStatus
from .status import TokenStatus
from .telling import Telling

T = TypeVar("T")

_DRAIN: Final = timedelta(seconds=10)
_RECOVERY_ATTEMPT: Final = timedelta(seconds=10)
_RECOVERY_ATTEMPTS: Final = 5
_HEADER_BYTES_A_TASK: Final = 1_000_000
_CARRIED_WAITING_BYTES: Final = 500_000
_LARGEST_ARGUMENT: Final = 32_768
"""Bytes of a payload: the largest message in any encoding a converter is likely to give it."""


@dataclass(frozen=True)
class Settings:
    """What a workflow class says of its node; acts when a child or a run starts, never after."""

    share: tuple[str, ...] | None = None
    withhold: tuple[str, ...] = ()
    api_url: str | None = None
    open_to: tuple[str, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict[str, str])
    """Of each credential name that a source mints the name of that."""

    def withholds(self, child_type: str) -> bool:
        """Whether a child of this type is started without the tokens."""
        is_shared = self.share is None or child_type in self.share
        return not is_shared or child_type in self.withhold


class Node:
    """The state of one run and what keeps it true.

    Args:
        settings: of the workflow's class.
        headers: the ones the run was started with.

    Raises:
        StateTooNew: where they hold a state that only a newer worker can read.
    """

    def __init__(self, settings: Settings, headers: Mapping[str, Payload]) -> None:
        info = workflow.info()
        self._settings = settings
        header = _read_start(headers)
        start = Start({}) if header is None else header
        if header is None:
            self.ledger = Ledger((info.workflow_id,), info.first_execution_run_id)
        else:
            self.ledger = Ledger.load(header.ledger)
        self.ledger.confirm_children()
        self.own_url = settings.api_url if start.api_url is None else start.api_url
        self._begun_url = start.parent_api_url
        self._since = now_ms() if start.since is None else start.since
        self._written_by = start.run
        self._lost = start.lost
        # Retries and cron runs wake with the first header (docs/decisions/23-retried-runs.md).
        self._recovers = info.continued_run_id not in (None, start.run)
        self._first_held: dict[Place, Message] = {}
        if self._recovers:
            self._first_held, self.ledger.held = self.ledger.held, {}
        self._record = NodeRecord()
        self.narrowing = Narrowing(self.ledger)
        self.telling = Telling(
            self.ledger, self._since, self.narrowing.changed, takes_part=header is not None
        )
        self._inbox = Inbox(
            self.ledger,
            self._record,
            lambda: self._has_accepted(),
            lambda message: self.joining.is_astray(message),
        )
        self._inbox.queue(start.waiting)
        self.joining = Joining(
            self.ledger, self._inbox, self._entered, start.joined, has_place=header is not None
        )
        self._reports: dict[str, dict[str, int]] = {}
        self.living = Living(
            self.ledger,
            self._inbox,
            self._record,
            self._reports,
            self.telling.accepted,
            start.renewing,
        )
        self.signals = 0
        self._updates = 0
        self._header_bytes = 0
        self._header_at = 0
        self._record_start()

    @property
    def recovering(self) -> bool:
        """Whether it is not known yet what this run holds, from one before or by joining."""
        return self._recovers or self.joining.is_under_way

    def _record_start(self) -> None:
        reason = "start" if workflow.info().continued_run_id is None else "continued"
        for name in self.ledger.names():
            message = self.ledger.in_force(name)
            if message is not None:
                self._record.accepted(message, reason)

    # --- messages in ---------------------------------------------------------

    def on_signal(self, args: Sequence[Any]) -> None:
        """Take a message from the `apiToken` signal; whatever it is, nothing is raised."""
        try:
            given = argument(args)
            text = given if isinstance(given, str) else read_message(given).text
        except TokenMalformed as error:
            self._inbox.reject(error)
            return
        if self.recovering:
            self._inbox.queue([text])
        else:
            self._inbox.put(text)

    def validate_update(self, args: Sequence[Any]) -> None:
        """Turn down an update before it enters history.

        Raises:
            MessageRefused: the subclass is the named error of the contract.
        """
        message: Message | None = None
        try:
            message = read_message(argument(args))
            if not self.recovering:
                self._inbox.admit_update(message)
        except NotSealed as error:
            malformed = TokenMalformed(str(error))  # it has not come into the history
            self._record.rejected(malformed, None)
            raise malformed from None
        except MessageRefused as error:
            self._record.rejected(error, message)
            raise

    async def take(self, message: Message) -> TokenStatus:
        """Judge a message, waiting for its issuer to become known, and return the status.

        Raises:
            MessageRefused: the state is unchanged but for the record of the refusal.
        """
        self._updates += 1
        try:
            await self.ready()
            verdict = self._inbox.judge(message)
            if verdict is Verdict.WAITING:
                verdict = await self._inbox.until_known(message)
            if verdict is Verdict.ACCEPTED and message.kind != "grant":
                self.telling.accepted(by_update=True)
            self.living.granted()
        finally:
            self._updates -= 1
        return self.view().status(message.claims.name)

    def on_report(self, args: Sequence[Any]) -> None:
        """Note that an API refused a token this node is the authority of; raises nothing."""
        with suppress(MessageRefused):
            token = self._reported(args)
            seen = self._reports.get(token.claims.name, {}).get(token.fingerprint, 0)
            self._reports[token.claims.name] = {token.fingerprint: seen + 1}

    def validate_report(self, args: Sequence[Any]) -> None:
        """Turn down a report that says nothing new, before it enters history.

        Raises:
            MessageRefused: it is malformed, of what does not stand here, or the second of its kind.
        """
        if self.recovering:
            return  # what stands here is not known yet
        token = self._reported(args)
        if token.fingerprint in self._reports.get(token.claims.name, {}):
            raise TokenKnown(f"that {token.claims.name} was refused is known here")

    def _reported(self, args: Sequence[Any]) -> Message:
        report = argument(args)
        if not isinstance(report, dict):
            raise TokenMalformed("the report is no object")
        members = cast("dict[str, Any]", report)
        name = members.get("name")
        held = self.ledger.held.get((name, self.ledger.path[-1])) if isinstance(name, str) else None
        if held is None or held.kind != "token" or members.get("fingerprint") != held.fingerprint:
            raise TokenStale(f"workflow {self.ledger.path[-1]}: no such token stands here")
        return held

    def validate_renew(self, args: Sequence[Any]) -> None:
        """Turn down what cannot be done before it enters history; raises as `renew`."""
        asked = _renewal(args)
        if not self.recovering:
            self.living.check_renewable(asked.name)

    def renew(self, args: Sequence[Any]) -> SourceStatus:
        """Have the source mint a new token now; what is known of it.

        Raises:
            MessageRefused: no source mints it here, or it needs authorization.
        """
        asked = _renewal(args)
        self.living.renew(asked.name, retire=asked.retire)
        sources = self.living.statuses(now_ms(), self._settings.sources)
        return next(one for one in sources if one.name == asked.name)

    def on_url(self, args: Sequence[Any]) -> None:
        """Take an API address by signal; what is refused is counted."""
        try:
            self.take_url(args)
        except TokenMalformed as error:
            self._inbox.reject(error)

    def validate_url(self, args: Sequence[Any]) -> None:
        """Turn down an address before it enters history; raises as `take_url`."""
        if not self.recovering:  # what is held is not known yet
            self._told_url(argument(args))

    def take_url(self, args: Sequence[Any]) -> str | None:
        """Take an API address for the workflow's own, or null for none; returns what is shown.

        Raises:
            TokenMalformed: it is none, or no token in force is signed for it.
        """
        self.own_url = self._told_url(argument(args))
        return self.view().shown_url

    def _told_url(self, url: object) -> str | None:
        where = f"workflow {self.ledger.path[-1]}: the API address"
        if url is None:
            return None
        if not isinstance(url, str):
            raise TokenMalformed(f"{where} is not a string")
        in_force = filter(None, map(self.ledger.in_force, self.ledger.names()))
        tokens = [message.claims for message in in_force]
        if any(url == one.api_url and is_covered(url, one.origins) for one in tokens):
            return url
        try:
            # From outside not even a path: only where, not what.
            origin = allowed_origin(url, allow_http=None)
            origin_of(url)
        except ValueError as error:
            raise TokenMalformed(f"{where} is refused: {error}") from None
        if not any(is_allowed(origin, one.origins) for one in tokens):
            raise TokenMalformed(f"{where} {origin} is not within the origins of a token in force")
        return origin

    # --- what is shown -------------------------------------------------------

    def view(self) -> View:
        """The node as it stands."""
        return View(
            self.ledger,
            now_ms(),
            self._inbox.waiting,
            self.telling.reasons,
            narrowing=self.narrowing.reasons,
            recovering=self.recovering,
            lost=self._lost,
            own_url=self.own_url,
            begun_url=self._begun_url,
            reports=self._reports,
            sources=self.living.statuses(now_ms(), self._settings.sources),
        )

    def describe(self) -> NodeStatus:
        """The answer of the `apiTokenStatus` query; sealed, only what was set at this node."""
        return self.view().node(
            workflow.info().workflow_type,
            signals=self.signals,
            courier=couriers.courier_queue(),
        )

    # --- children ------------------------------------------------------------

    def start_child(
        self,
        child_id: str,
        child_type: str,
        withheld: frozenset[str],
        narrowed: Mapping[str, Narrowed],
    ) -> tuple[Payload, Starting]:
        """Register a child about to start and return its header."""
        child = replace(self._child(child_id, child_type, withheld), narrowed=narrowed)
        now = workflow.time_ns()
        if now != self._header_at:
            self._header_at, self._header_bytes = now, 0
        self._header_bytes += sum(len(message.text) for message in self.ledger.held.values())
        # The server ends a parent whose one task carries too much (docs/decisions/22-headers.md).
        fits = self._header_bytes <= _HEADER_BYTES_A_TASK
        state, starting = self.ledger.start_child(child, with_messages=fits)
        for name in sorted(child.withheld):
            self._record.kept_from("withhold", child_id, child_type, name, "start")
        return Start(state, parent_api_url=self.view().plain_url).to_payload(), starting

    def _child(self, id: str, type: str, withheld: frozenset[str] = frozenset()) -> Child:
        if self._settings.withholds(type):
            withheld |= {ALL}
        return Child(id, type, withheld=withheld)

    # --- who joins -----------------------------------------------------------

    def open_to(self, types: Sequence[str]) -> None:
        """Admit workflows of these types, whatever the class says."""
        self._settings = replace(self._settings, open_to=tuple(types))

    def answer_join(self, args: Sequence[Any]) -> JoinAnswer:
        """The state of a child that asks for it: one that this node started, or that may join.

        Raises:
            TokenMalformed: the question is not in the wire format.
        """
        joiner = _joiner(args)
        child = self._child(joiner.id, joiner.type)
        is_open = joiner.type in self._settings.open_to
        return self.view().place(child, is_open=is_open, as_child=joiner.as_child)

    def on_join(self, args: Sequence[Any]) -> None:
        """Tell who joined from now on, if it may; nothing is raised."""
        with suppress(TokenMalformed):
            joiner = _joiner(args)
            is_short = len(json.dumps(joiner.id)) <= limits.LIMITS.joiner_bytes
            if joiner.type in self._settings.open_to and is_short:
                child = self._child(joiner.id, joiner.type)
                self.ledger.join(child, limits.LIMITS.joiners)
            self.telling.joined()

    def _entered(self, answer: PlaceResult) -> None:
        """This node has its place, or knows what was set above it since."""
        self._lost = False
        self._begun_url = answer.parent_api_url
        self._has_accepted()

    def _has_accepted(self) -> None:
        """Messages were accepted that had come by signal, or had waited."""
        self.telling.accepted()
        self.living.granted()

    # --- what is withheld ----------------------------------------------------

    def withhold(self, child_id: str, name: str | None) -> None:
        """Pass a name (None: all) to this child no more."""
        self.ledger.withhold(child_id, name)
        self._record_kept("withhold", child_id, name)

    def share(self, child_id: str, name: str | None) -> None:
        """Pass it again, the newest at once."""
        child = self.ledger.children.get(child_id)
        hard = frozenset[str]() if child is None else child.withheld
        if (name is None and hard) or (name is not None and is_among(name, hard)):
            warn(
                f"share() changes nothing for child {child_id}, which was started without "
                f"{'any token' if ALL in hard else ', '.join(sorted(hard))}: only an issuer can "
                "set one at it"
            )
        self.ledger.share(child_id, name)
        self._record_kept("share", child_id, name)
        self.telling.changed()

    def _record_kept(self, what: Literal["withhold", "share"], id: str, name: str | None) -> None:
        child = self.ledger.children.get(id)
        self._record.kept_from(what, id, None if child is None else child.type, name or ALL)

    def count_signal(self) -> None:
        """Count a signal that this run takes, a user's too, and warn when it takes few more."""
        self.signals += 1
        if self.signals == limits.LIMITS.many_signals:
            warn(
                f"Workflow {self.ledger.path[-1]} has taken {self.signals:,} of the "
                f"{MAX_SIGNALS:,} signals that a run may have. Let it continue as new"
            )

    def begin(self) -> None:
        """Judge and tell, now that the run begins or its state is recovered."""
        self._inbox.begin()
        self.telling.begin()
        self.narrowing.begin()
        self.joining.begin()
        self.living.begin()

    # --- the run's ends ------------------------------------------------------

    async def ready(self) -> None:
        """Wait until it is known what this run holds: nothing is used before."""
        if self.recovering:
            await workflow.wait_condition(lambda: not self.recovering)

    async def recover(self) -> None:
        """Ask the closed run before this one for its state; until then nothing is used.

        Raises:
            StateTooNew: only a newer worker can read it.
        """
        info, is_resumed = workflow.info(), False
        try:
            answer = await couriers.ask(
                RECOVER,
                info.workflow_id,
                info.continued_run_id,
                self._written_by,
                answers=RecoverResult,
                start_to_close_timeout=_RECOVERY_ATTEMPT,
                retry_policy=RetryPolicy(maximum_attempts=_RECOVERY_ATTEMPTS),
            )
            if answer.state is not None:
                self._resume(Start.from_json(answer.state))
                is_resumed = True
            elif answer.asked:
                self.ledger.held = self._first_held
            self._lost = self._lost or not answer.asked
        except (couriers.NoAnswer, ValueError) as error:
            warn(f"The state of run {info.continued_run_id}: {error}")
            self._lost = True
        if self._lost:
            warn(
                f"Run {info.continued_run_id} could not be asked for its state; set the token of "
                f"workflow {info.workflow_id} again"
            )
        if self._lost and not is_resumed:
            self.living.distrust(f"run {info.continued_run_id}, which may have spent it, is gone")
        self._first_held = {}
        self.telling.resume(self._since)
        self.narrowing.resume()
        self._recovers = False
        self._record_start()

    def _resume(self, start: Start) -> None:
        path = tuple(start.ledger.get("path", ()))
        # Its first header knows nothing of a place that it was given later.
        may_move = start.joined is not None or path[-2:-1] == _parent()
        is_own = path[-1:] == self.ledger.path[-1:]
        if path != self.ledger.path and not (may_move and is_own):
            raise StateUnreadable("the run before stood at another place in the tree")
        self.ledger.restore(start.ledger)
        if start.joined is not None:
            self.joining.resume(start.joined)
            self._begun_url = start.parent_api_url
        self.ledger.confirm_children()
        self._lost = start.lost
        if start.api_url is not None:
            self.own_url = start.api_url
        if start.since is not None:
            self._since = start.since
        self.living.states = dict(start.renewing)
        self._inbox.queue(start.waiting, first=True)

    def carry(self) -> Payload:
        """The header of the next run; what finds no room in it is counted as refused."""
        carried = set(self._inbox.within(_CARRIED_WAITING_BYTES))
        for text in self._inbox.texts():
            if text not in carried:
                issuer = named_issuer(text)
                error = TokenForged(f"issuer {issuer} is not known, and too many waited")
                self._inbox.reject(error)
        return self.carried(workflow.info().run_id).to_payload()

    def carried(self, run: str | None = None) -> Start:
        """What the next run would be given; without a run the answer to `statefulState`."""
        return Start(
            self.ledger.dump(),
            run,
            self.own_url,
            self._begun_url,
            self._inbox.within(_CARRIED_WAITING_BYTES),
            self._recovers or self.view().needs_set,
            self._since,
            self.joining.joined,
            self.living.states,
        )

    async def drain(self) -> None:
        """Finish judging and telling before the run closes, within 10 s."""
        self._inbox.hurry()
        await self.living.end()
        if not self._is_settled():
            with suppress(asyncio.TimeoutError):
                await workflow.wait_condition(self._is_settled, timeout=_DRAIN)

    def _is_settled(self) -> bool:
        if self._updates or not self._inbox.is_settled:
            return False
        if any(child.life is Life.STARTING for child in self.ledger.children.values()):
            return False
        return self.telling.is_settled and self.narrowing.is_settled


def argument(args: Sequence[Any]) -> object:
    """The one argument of a handler; its size is looked at before it is decoded.

    Raises:
        TokenMalformed: where there is not exactly one, or it is too large, or cannot be decoded.
    """
    if len(args) != 1:
        raise TokenMalformed(f"exactly one argument is expected, not {len(args)}")
    value: object = args[0]
    if not isinstance(value, RawValue):
        return value
    if value.payload.ByteSize() > _LARGEST_ARGUMENT:
        raise TokenMalformed(f"the argument has more than {_LARGEST_ARGUMENT:,} bytes")
    try:
        return cast("object", workflow.payload_converter().from_payload(value.payload))
    except Exception as error:  # noqa: BLE001 - the converter is the user's, and may raise anything
        raise TokenMalformed(f"the argument cannot be decoded: {type(error).__name__}") from None


def _read_start(headers: Mapping[str, Payload]) -> Start | None:
    try:
        start = Start.from_headers(headers)
    except ValueError as error:
        warn(f"{error}; the workflow is taken for a root")
        return None
    if start is None:
        return None
    info = workflow.info()
    path: object = start.ledger.get("path")
    *above, own = cast("list[object]", path) if isinstance(path, list) and path else [None]
    is_next_run = start.run is not None and start.run == info.continued_run_id
    if start.joined is not None and not is_next_run:
        return None  # in a retry the run before says where it has joined
    is_placed = start.joined is not None or tuple(above[-1:]) in ((), _parent())
    if own != info.workflow_id or not is_placed:
        warn(f"The header {NODE_HEADER} was not written for this workflow; it is taken for a root")
        return None
    return start


def _parent() -> tuple[str, ...]:
    """The id of the workflow that the server names as the parent, if it names one."""
    parent = workflow.info().parent
    return () if parent is None else (parent.workflow_id,)


def _read(cls: type[T], args: Sequence[Any], what: str) -> T:
    try:
        return read(cls, argument(args))
    except AnswerMalformed as error:
        raise TokenMalformed(f"that is no {what}: {error}") from None


_renewal: Final = partial(_read, RenewalRequest, what="request for a new token")
_joiner: Final = partial(_read, Joiner, what="question for a place")
