"""Put events on record: to the user's sink, under his rule for a sink that fails, and counted.

Nothing here makes a node wait. What an activity or a client may not do without its
record goes through `Recorder.require`, everything else through `Recorder.record`.
"""

from __future__ import annotations

import atexit
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable
from typing import Final, Literal, get_args

from .audit.events import AuditEvent, AuditSink
from .errors import AuditFailed
from .metrics import Metrics

FailureRule = Literal["block", "continue"]
"""What happens when the sink fails. block: no activity opens a token, and no client sets or
reads one, without its record. continue: they do. What was lost is counted in the next record.
"""

MAX_QUEUED: Final = 10_000
"""Events that wait for a sink that is not local; more are lost, and counted."""

_FLUSH_SECONDS: Final = 5.0

_log = logging.getLogger(__name__)

Lost = Callable[[], None]
"""Is told that an event was lost."""


class SinkWriter:
    """Writes the events of a plugin, or of a client with a sink of its own.

    Args:
        sink: None records nothing.
        failure: what happens when it fails.

    Raises:
        ValueError: where `failure` is none of its values.
    """

    def __init__(self, sink: AuditSink | None, failure: FailureRule = "block") -> None:
        if failure not in get_args(FailureRule):
            raise ValueError(f'audit_failure is "block" or "continue", not {failure!r}')
        self._sink = sink
        self._blocks = failure == "block"
        self._is_local = getattr(sink, "is_local", False) is True
        self._lock = threading.Lock()
        self._lost = 0
        self._queue: queue.Queue[tuple[AuditEvent, Lost]] = queue.Queue(MAX_QUEUED)
        self._thread: threading.Thread | None = None

    @property
    def is_on(self) -> bool:
        """Whether there is a sink."""
        return self._sink is not None

    @property
    def may_wait(self) -> bool:
        """Whether `require` may wait for the sink."""
        return self.is_on and self._blocks and not self._is_local

    def require(self, event: AuditEvent, lost: Lost) -> None:
        """Write what must be on record before what it tells of is done.

        Args:
            event: to write.
            lost: is told where it could not be written.

        Raises:
            AuditFailed: where it could not be written, and the rule is to block.
        """
        if self._sink is None:
            return
        if not self._blocks:
            self.write(event, lost)
            return
        try:
            self._write(event)
        except Exception as error:  # noqa: BLE001 - the sink is the user's
            self._lose(error, lost)
            raise AuditFailed(
                f"{event.action} of {event.name} at workflow {event.workflow_id} is not done: it "
                f"could not be recorded ({type(error).__name__}: {error}); mend the audit sink, "
                'or start with audit_failure="continue"'
            ) from None

    def write(self, event: AuditEvent, lost: Lost) -> None:
        """Write an event; nothing is raised, and nobody waits for a sink that is not local.

        Args:
            event: to write.
            lost: is told where it could not be written, perhaps later and in another thread.
        """
        if self._sink is None:
            return
        if self._is_local:
            self._try(event, lost)
            return
        self._start_thread()
        try:
            self._queue.put_nowait((event, lost))
        except queue.Full:
            self._lose(None, lost)

    def flush(self, seconds: float = _FLUSH_SECONDS) -> None:
        """Wait until what is queued is written, for some seconds at most."""
        give_up = time.monotonic() + seconds
        while self._queue.unfinished_tasks and time.monotonic() < give_up:
            time.sleep(0.005)

    def _try(self, event: AuditEvent, lost: Lost) -> None:
        try:
            self._write(event)
        except Exception as error:  # noqa: BLE001 - the sink is the user's
            self._lose(error, lost)

    def _write(self, event: AuditEvent) -> None:
        sink = self._sink
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

    def _lose(self, error: Exception | None, lost: Lost) -> None:
        lost()
        with self._lock:
            self._lost += 1
            is_first = self._lost == 1
        if is_first:
            why = "too many wait for it" if error is None else f"{type(error).__name__}: {error}"
            _log.error("Audit events are lost until the sink takes them again: %s", why)

    def _start_thread(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._drain, name="stateful-audit", daemon=True
                )
                self._thread.start()
                atexit.register(self.flush)

    def _drain(self) -> None:
        while True:
            self._try(*self._queue.get())
            self._queue.task_done()


class Recorder:
    """What a client or a worker puts its events on record with, and counts them.

    Args:
        writer: writes them.
        metrics: counts them.
    """

    def __init__(self, writer: SinkWriter, metrics: Metrics) -> None:
        self._writer = writer
        self.metrics = metrics

    @property
    def may_wait(self) -> bool:
        """Whether `require` may wait for a sink."""
        return self._writer.may_wait

    def require(self, event: AuditEvent) -> None:
        """Record what may not be done without its record; `record` it elsewhere.

        Raises:
            AuditFailed: it could not be, and the rule is to block.
        """
        self._writer.require(event, self.metrics.lost)
        self.metrics.count(event)

    def record(self, event: AuditEvent) -> None:
        """Record what has happened; nothing is raised."""
        self._writer.write(event, self.metrics.lost)
        self.metrics.count(event)


def writer_of(plugins: Iterable[object]) -> SinkWriter:
    """What the first of these that keeps a record writes with; where none does, nothing is kept."""
    for plugin in plugins:
        writer = getattr(plugin, "sink_writer", None)
        if isinstance(writer, SinkWriter) and writer.is_on:
            return writer
    return SinkWriter(None)
