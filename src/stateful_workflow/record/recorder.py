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
"""The same on an event loop, which runs nothing else meanwhile; nobody waits there for a sink that
has not answered for so long."""

_FLUSH_SECONDS: Final = 5.0
_LATE: Final = "the sink did not answer in time"

_log = logging.getLogger(__name__)

Lost = Callable[[], None]
"""Is told that an event was lost, perhaps later and in another thread."""

Written = concurrent.futures.Future[None]
"""Done when an event is written, or could not be."""

_Queue = queue.Queue[tuple[AuditEvent, Lost, Written]]


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
        self.blocks = sink is not None and failure == "block"
        """Whether nobody goes on without a record that he needs."""
        self._lock = threading.Lock()
        self._lost = 0
        self._has_thread = sink is not None and getattr(sink, "is_local", False) is not True
        self._thread: threading.Thread | None = None
        self._queue: _Queue = queue.Queue()
        self._busy_since: float | None = None
        if self._has_thread:
            atexit.register(self.flush)

    @property
    def is_stuck(self) -> bool:
        """Whether the sink has not answered for longer than an event loop waits."""
        since = self._busy_since
        return since is not None and time.monotonic() - since > LOOP_SECONDS

    def write(self, event: AuditEvent, lost: Lost) -> Written:
        """Write an event; nothing is raised, and nobody waits for a sink that is not local.

        Returns:
            what to wait for, where that is wanted.
        """
        written = Written()
        if not self._has_thread:
            self._settle(event, lost, written)
            return written
        try:
            self._running().put_nowait((event, lost, written))
        except queue.Full:
            self._lose("too many events wait for the sink", event, lost, written)
        except RuntimeError as error:
            self._lose(f"no thread can be started: {error}", event, lost, written)
        return written

    def flush(self, seconds: float = _FLUSH_SECONDS) -> None:
        """Wait until what is queued is written, for some seconds at most."""
        give_up = time.monotonic() + seconds
        while self._is_running() and self._queue.unfinished_tasks and time.monotonic() < give_up:
            time.sleep(0.005)

    def _is_running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _running(self) -> _Queue:
        """The queue of the thread, which is started where there is none, as after a fork.

        Raises:
            RuntimeError: it cannot be: the process ends.
        """
        with self._lock:
            if not self._is_running():
                # Another one also: what a forked process finds in it is its parent's to write.
                self._queue, self._busy_since = queue.Queue(MAX_QUEUED), None
                thread = threading.Thread(
                    target=self._drain, args=(self._queue,), name="stateful-audit", daemon=True
                )
                thread.start()
                self._thread = thread
            return self._queue

    def _drain(self, events: _Queue) -> None:
        while True:
            event, lost, written = events.get()
            self._busy_since = time.monotonic()
            if written.set_running_or_notify_cancel():  # else nobody waits: it is not done
                with suppress(CancelledError, KeyboardInterrupt):
                    self._settle(event, lost, written)
            self._busy_since = None
            events.task_done()

    def _settle(self, event: AuditEvent, lost: Lost, written: Written) -> None:
        try:
            self._write(event)
        except BaseException as error:
            self._lose(printable(f"{type(error).__name__}: {error}"), event, lost, written)
            if isinstance(error, CancelledError | KeyboardInterrupt):
                raise  # told to this thread, wherever it is
        else:
            written.set_result(None)

    def _write(self, event: AuditEvent) -> None:
        if self.sink is None:
            return
        with self._lock:
            count, self._lost = self._lost, 0
        if count:
            # Not under the lock: whoever loses an event takes it, and must not wait for a sink.
            try:
                self.sink.record(AuditEvent(time.time(), "lost", "failure", count=count))
            except BaseException:
                with self._lock:
                    self._lost += count
                raise
        self.sink.record(event)

    def _lose(self, why: str, event: AuditEvent, lost: Lost, written: Written) -> None:
        lost()
        with self._lock:
            self._lost += 1
            is_first = self._lost == 1
        if is_first:
            # In a thread: a handler of the log may be what the sink waits for.
            said = ("Audit events are lost for a while: %s", why)
            with suppress(RuntimeError):  # no thread can be started any more: the process ends
                threading.Thread(target=_log.error, args=said, daemon=True).start()
        written.set_exception(_failed(event, why))


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

    def record(self, event: AuditEvent) -> None:
        """Record what has happened; nothing is raised."""
        self._writer.write(event, self.metrics.lost)
        self.metrics.count(event)

    def require(self, event: AuditEvent) -> None:
        """Record what may not be done without its record, and wait until that is done.

        Raises:
            AuditFailed: it could not be, and the rule is to block.
        """
        written = self._writer.write(event, self.metrics.lost)
        if self._writer.blocks:
            seconds = WAIT_SECONDS
            if _is_on_loop():
                seconds = 0.0 if self._writer.is_stuck else LOOP_SECONDS
            try:
                written.result(seconds)
            except concurrent.futures.TimeoutError:
                written.cancel()
                raise _failed(event, _LATE) from None
        self.metrics.count(event)

    async def require_async(self, event: AuditEvent) -> None:
        """As `require`, and lets the event loop go on meanwhile."""
        written = self._writer.write(event, self.metrics.lost)
        if self._writer.blocks:
            try:
                await asyncio.wait_for(asyncio.wrap_future(written), WAIT_SECONDS)
            except asyncio.TimeoutError:
                raise _failed(event, _LATE) from None
        self.metrics.count(event)


def writer_of(plugins: Iterable[object]) -> SinkWriter:
    """What the first of these that keeps a record writes with; where none does, nothing is kept."""
    for plugin in plugins:
        writer = getattr(plugin, "sink_writer", None)
        if isinstance(writer, SinkWriter) and writer.sink is not None:
            return writer
    return SinkWriter(None)


def _failed(event: AuditEvent, why: str) -> AuditFailed:
    return AuditFailed(
        f"{event.action} of {event.name} at workflow {event.workflow_id} is not done: it could not "
        f'be recorded ({why}); mend the audit sink, or start with audit_failure="continue"'
    )


def _is_on_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
