"""A sink may do what it likes: what it loses is counted, and nobody is kept waiting for it."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
from temporalio.exceptions import CancelledError

from stateful_workflow import AuditFailed
from stateful_workflow.audit import AuditEvent
from stateful_workflow.record import recorder
from stateful_workflow.record.metrics import Metrics
from stateful_workflow.record.recorder import FailureRule, Recorder, SinkWriter, writer_of
from tests.record.test_audit_file import posix, python

EVENT = AuditEvent(time=1.0, action="read", outcome="success", name="apiToken", workflow_id="w")
RULES: list[FailureRule] = ["block", "continue"]


class Sink:
    """Keeps events, and raises what it is told to; one that waits does so until it is let go."""

    def __init__(self, *raised: BaseException, local: bool = False, waits: bool = False) -> None:
        self.is_local = local
        self.kept: list[AuditEvent] = []
        self.reached, self.may_go_on = threading.Event(), threading.Event()
        self._raised = list(raised)
        if not waits:
            self.may_go_on.set()

    def record(self, event: AuditEvent) -> None:
        self.reached.set()
        self.may_go_on.wait(30)
        if self._raised:
            raise self._raised.pop(0)
        self.kept.append(event)

    @property
    def said(self) -> list[tuple[str, int | None]]:
        return [(event.action, event.count) for event in self.kept]


def recording(sink: Sink, rule: FailureRule = "block") -> tuple[Recorder, SinkWriter]:
    writer = SinkWriter(sink, rule)
    return Recorder(writer, Metrics.of(None)), writer


# --- what a sink raises --------------------------------------------------------------------------


@pytest.mark.parametrize("local", [True, False])
@pytest.mark.parametrize("kind", [OSError, SystemExit, asyncio.CancelledError, GeneratorExit])
@pytest.mark.parametrize("rule", RULES)
def test_whatever_a_sink_raises_the_next_event_says_how_many_were_lost(
    local: bool, kind: type[BaseException], rule: FailureRule
) -> None:
    sink = Sink(kind("x"), kind("x"), local=local)
    record, writer = recording(sink, rule)
    for _ in range(3):
        record.record(EVENT)
    writer.flush()

    # The second failure is that of the event that was to say so.
    assert sink.said == [("lost", 2), ("read", None)]


@pytest.mark.parametrize("local", [True, False])
@pytest.mark.parametrize("kind", [OSError, SystemExit, asyncio.CancelledError])
def test_blocking_what_it_raises_is_an_error_of_who_needs_the_record(
    local: bool, kind: type[BaseException]
) -> None:
    sink = Sink(kind("no space"), local=local)
    record, _ = recording(sink)

    with pytest.raises(AuditFailed, match=f"read of apiToken at workflow w .*{kind.__name__}"):
        record.require(EVENT)

    record.require(EVENT)
    assert sink.said == [("lost", 1), ("read", None)]


def test_an_activity_that_is_cancelled_while_a_local_sink_writes_is_cancelled() -> None:
    record, _ = recording(Sink(CancelledError("told to the thread"), local=True))

    with pytest.raises(CancelledError):
        record.require(EVENT)


# --- who waits -----------------------------------------------------------------------------------


async def test_a_loop_goes_on_while_somebody_waits_for_a_sink() -> None:
    sink = Sink(waits=True)
    record, _ = recording(sink)
    waiting = asyncio.create_task(record.require_async(EVENT))
    while not sink.reached.is_set():
        await asyncio.sleep(0.001)
    assert not waiting.done()

    sink.may_go_on.set()
    await waiting
    assert sink.kept == [EVENT]


async def test_what_nobody_waits_for_any_more_is_not_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "LOOP_SECONDS", 0.05)
    sink = Sink(waits=True)
    record, writer = recording(sink)

    for _ in range(2):
        with pytest.raises(AuditFailed, match="did not answer in time"):
            record.require(EVENT)
    sink.may_go_on.set()
    writer.flush()

    assert len(sink.kept) == 1  # which was begun
    record.require(EVENT)
    assert len(sink.kept) == 2


async def test_a_loop_waits_for_a_sink_that_hangs_only_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recorder, "LOOP_SECONDS", 0.2)
    sink = Sink(waits=True)
    record, writer = recording(sink)
    begun = time.monotonic()
    for _ in range(20):
        with pytest.raises(AuditFailed, match="did not answer in time"):
            record.require(EVENT)
    assert time.monotonic() - begun < 2

    sink.may_go_on.set()
    writer.flush()
    record.require(EVENT)


@posix
def test_a_forked_process_has_a_thread_of_its_own_that_writes() -> None:
    python(
        "from stateful_workflow.record.metrics import Metrics\n"
        "from stateful_workflow.record.recorder import Recorder, SinkWriter\n"
        "class Sink:\n"
        "    kept = 0\n"
        "    def record(self, event): self.kept += 1\n"
        "sink = Sink()\n"
        "record = Recorder(SinkWriter(sink), Metrics.of(None))\n"
        "for used in range(2):\n"  # a child of one that has written too
        "    if not (child := os.fork()):\n"
        "        for _ in range(3): record.require(event)\n"
        "        sys.exit(sink.kept != used + 3)\n"
        "    assert os.waitpid(child, 0)[1] == 0\n"
        "    record.require(event)\n"
    )


@pytest.mark.parametrize("wait", ["require", "require_async"])
async def test_nobody_waits_for_ever(monkeypatch: pytest.MonkeyPatch, wait: str) -> None:
    monkeypatch.setattr(recorder, "WAIT_SECONDS", 0.05)
    sink = Sink(waits=True)
    record, _ = recording(sink)

    waiting = asyncio.to_thread(record.require, EVENT)
    if wait == "require_async":
        waiting.close()
        waiting = record.require_async(EVENT)

    with pytest.raises(AuditFailed, match="did not answer in time"):
        await waiting
    sink.may_go_on.set()


@pytest.mark.parametrize("rule", RULES)
def test_what_has_happened_waits_for_no_sink_and_is_lost_beyond_a_limit(
    monkeypatch: pytest.MonkeyPatch, rule: FailureRule
) -> None:
    monkeypatch.setattr(recorder, "MAX_QUEUED", 5)
    sink = Sink(waits=True)
    record, writer = recording(sink, rule)
    record.record(EVENT)
    sink.reached.wait(10)
    for _ in range(8):
        record.record(EVENT)

    sink.may_go_on.set()
    writer.flush()
    assert sink.said == [("read", None), ("lost", 3), *[("read", None)] * 5]


def test_events_arrive_in_their_order_those_that_are_waited_for_too() -> None:
    sink = Sink()
    record, _ = recording(sink)
    for n in range(100):
        event = AuditEvent(time=float(n), action="use", outcome="success")
        (record.require if n % 3 == 0 else record.record)(event)
    record.require(AuditEvent(time=100.0, action="use", outcome="success"))

    assert [event.time for event in sink.kept] == list(range(101))


# --- which sink ----------------------------------------------------------------------------------


def test_the_first_plugin_that_keeps_a_record_is_the_one() -> None:
    class Plugin:
        def __init__(self, sink: Sink | None) -> None:
            self.sink_writer = SinkWriter(sink)

    without, with_one = Plugin(None), Plugin(Sink())

    assert writer_of([object(), without, with_one]) is with_one.sink_writer
    assert writer_of([object(), without]).sink is None
