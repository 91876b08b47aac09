"""Put events on record: to the user's sink, under his rule for a sink that fails, and counted.

Nothing here makes a node wait. What an activity or a client may not do without its
record goes through `Recorder.require` or `require_async`, everything else through
`Recorder.record`.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Literal, get_args

from temporalio.exceptions import CancelledError

from ..errors import AuditFailed
from ..text.printable import printable
from .event import AuditEvent, AuditSink
from .metrics import Metrics

FailureRule = Literal["block", "continue"]
"""What happens when the sink fails. block: no activity opens a token, and no client sets or
reads one, without its record. continue: they do. What was lost is counted in the next record.
"""

MAX_QUEUED: Final = 10_000
"""Events that wait for a sink that is not local; more are lost, and counted."""

WAIT_SECONDS: Final = 30.0
"""How long somebody waits for a sink to take what must be on record first."""

LOOP_SECONDS: Final = 1.0
"""The same on an event loop, which runs nothing else meanwhile. Once a sink has kept one waiting
for so long, nobody waits for it there until it has answered."""

_FLUSH_SECONDS: Final = 5.0

_log = logging.getLogger(__name__)

Lost = Callable[[], None]
"""Is told that an event was lost."""

Written = concurrent.futures.Future[None]
"""Done when an event is written, or could not be."""


@dataclass(frozen=True)
class _Item:
    """An event for the thread to write, who counts it where it is lost, and who waits for it."""

    event: AuditEvent
    lost: Lost
    written: Written | None = None


class SinkWriter:
    """Writes the events of a plugin, or of a client with a sink of its own.

    A local sink is written to in place; for any other one, one thread writes all events in
    their order.

    Args:
        sink: None records nothing.
        failure: what happens when it fails.

    Raises:
        ValueError: where `failure` is none of its values.
    """

    def __init__(self, sink: AuditSink | None, failure: FailureRule = "block") -> None:
        if failure not in get_args(FailureRule):
            raise ValueError(f'audit_failure is "block" or "continue", not {failure!r}')
        self.sink = sink
        self._is_local = getattr(sink, "is_local", False) is True
        self._blocks = sink is not None and failure == "block"
        self._lock = threading.Lock()
        self._lost = 0
        self._queue: queue.Queue[_Item] = queue.Queue(MAX_QUEUED)
        self._thread: threading.Thread | None = None
        self._busy_since: float | None = None

    def require(self, event: AuditEvent, lost: Lost) -> None:
        """Write what must be on record before what it tells of is done, and wait for it.

        Args:
            event: to write.
            lost: is told where it could not be written.

        Raises:
            AuditFailed: where it could not be written, and the rule is to block.
        """
        waiting = self._require(event, lost)
        if waiting is None:
            return
        on_loop = _is_on_loop()
        if on_loop and self._is_stuck():
            waiting.cancel()
            raise _failed(event, "the sink has not answered for a while")
        try:
            waiting.result(LOOP_SECONDS if on_loop else WAIT_SECONDS)
        except concurrent.futures.TimeoutError:
            waiting.cancel()
            raise _failed(event, "the sink did not answer in time") from None

    async def require_async(self, event: AuditEvent, lost: Lost) -> None:
        """As `require`, and lets the event loop go on meanwhile."""
        waiting = self._require(event, lost)
        if waiting is None:
            return
        try:
            await asyncio.wait_for(asyncio.wrap_future(waiting), WAIT_SECONDS)
        except asyncio.TimeoutError:
            raise _failed(event, "the sink did not answer in time") from None

    def _require(self, event: AuditEvent, lost: Lost) -> Written | None:
        if not self._blocks:
            self.write(event, lost)
            return None
        if not self._is_local:
            written = Written()
            self._put(_Item(event, lost, written))
            return written
        try:
            self._write(event)
        except (CancelledError, KeyboardInterrupt):  # told to this thread, wherever it is
            raise
        except BaseException as error:  # noqa: BLE001 - the sink is the user's
            self._lose(error, lost)
            raise _failed(event, _said(error)) from None
        return None

    def write(self, event: AuditEvent, lost: Lost) -> None:
        """Write an event; nothing is raised, and nobody waits for a sink that is not local.

        Args:
            event: to write.
            lost: is told where it could not be written, perhaps later and in another thread.
        """
        if self.sink is None:
            return
        if self._is_local:
            self._try(event, lost)
        else:
            self._put(_Item(event, lost))

    def flush(self, seconds: float = _FLUSH_SECONDS) -> None:
        """Wait until what is queued is written, for some seconds at most."""
        give_up = time.monotonic() + seconds
        while self._queue.unfinished_tasks and time.monotonic() < give_up:
            time.sleep(0.005)

    # --- in place ------------------------------------------------------------

    def _try(self, event: AuditEvent, lost: Lost) -> None:
        try:
            self._write(event)
        except (CancelledError, KeyboardInterrupt) as error:  # told to this thread, wherever it is
            self._lose(error, lost)
            raise
        except BaseException as error:  # noqa: BLE001 - the sink is the user's
            self._lose(error, lost)

    def _write(self, event: AuditEvent) -> None:
        sink = self.sink
        if sink is None:
            return
        if self._lost:
            # Not under the lock: whoever loses an event takes it, and must not wait for a sink.
            with self._lock:
                lost, self._lost = self._lost, 0
            if lost:
                told = AuditEvent(time=time.time(), action="lost", outcome="failure", count=lost)
                try:
                    sink.record(told)
                except BaseException:
                    with self._lock:
                        self._lost += lost
                    raise
        sink.record(event)

    def _lose(self, error: BaseException, lost: Lost) -> None:
        lost()
        with self._lock:
            self._lost += 1
            is_first = self._lost == 1
        if is_first:
            # In a thread: a handler of the log may be what the sink waits for.
            _start(lambda: _log.error("Audit events are lost for a while: %s", _said(error)))

    # --- by the thread -------------------------------------------------------

    def _put(self, item: _Item) -> None:
        try:
            if not self._is_running():
                raise RuntimeError("no thread can be started")
            self._queue.put_nowait(item)
        except (queue.Full, RuntimeError) as error:
            self._lose(error, item.lost)
            if item.written is not None:
                item.written.set_exception(_failed(item.event, _said(error)))

    def _is_running(self) -> bool:
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = _start(self._drain)
                if self._thread is not None:
                    atexit.register(self.flush)
            return self._thread is not None

    def _is_stuck(self) -> bool:
        since = self._busy_since
        return since is not None and time.monotonic() - since > LOOP_SECONDS

    def _drain(self) -> None:
        while True:
            item = self._queue.get()
            self._busy_since = time.monotonic()
            if item.written is None:
                with suppress(CancelledError, KeyboardInterrupt):
                    self._try(item.event, item.lost)
            elif item.written.set_running_or_notify_cancel():  # else nobody waits: it is not done
                self._settle(item, item.written)
            self._busy_since = None
            self._queue.task_done()

    def _settle(self, item: _Item, written: Written) -> None:
        try:
            self._write(item.event)
        except BaseException as error:  # noqa: BLE001 - the sink is the user's
            self._lose(error, item.lost)
            written.set_exception(_failed(item.event, _said(error)))
        else:
            written.set_result(None)


class Recorder:
    """What a client or a worker puts its events on record with, and counts them.

    Args:
        writer: writes them.
        metrics: counts them.
        identity: of this client or worker; see `AuditEvent`.
    """

    def __init__(self, writer: SinkWriter, metrics: Metrics, identity: str | None = None) -> None:
        self._writer = writer
        self.metrics = metrics
        self.identity = identity

    def require(self, event: AuditEvent) -> None:
        """Record what may not be done without its record.

        Raises:
            AuditFailed: it could not be, and the rule is to block.
        """
        self._writer.require(event, self.metrics.lost)
        self.metrics.count(event)

    async def require_async(self, event: AuditEvent) -> None:
        """As `require`, and lets the event loop go on meanwhile."""
        await self._writer.require_async(event, self.metrics.lost)
        self.metrics.count(event)

    def record(self, event: AuditEvent) -> None:
        """Record what has happened; nothing is raised."""
        self._writer.write(event, self.metrics.lost)
        self.metrics.count(event)


def writer_of(plugins: Iterable[object]) -> SinkWriter:
    """What the first of these that keeps a record writes with; where none does, nothing is kept."""
    for plugin in plugins:
        writer = getattr(plugin, "sink_writer", None)
        if isinstance(writer, SinkWriter) and writer.sink is not None:
            return writer
    return SinkWriter(None)


def _start(work: Callable[[], None]) -> threading.Thread | None:
    """A thread that does this, or None where none can be started: the process ends, or is full."""
    thread = threading.Thread(target=work, name="stateful-audit", daemon=True)
    try:
        thread.start()
    except RuntimeError:
        return None
    return thread


def _failed(event: AuditEvent, why: str) -> AuditFailed:
    return AuditFailed(
        f"{event.action} of {event.name} at workflow {event.workflow_id} is not done: it could not "
        f'be recorded ({why}); mend the audit sink, or start with audit_failure="continue"'
    )


def _said(error: BaseException) -> str:
    return printable(f"{type(error).__name__}: {error}")


def _is_on_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
