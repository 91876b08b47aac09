"""Events in Python's logging and in OpenTelemetry's logs, under their own names."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import replace

import pytest
from opentelemetry._logs import Logger, SeverityNumber
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor

from stateful_workflow.errors import AuditError
from stateful_workflow.record.event import ATTRIBUTES, AuditSink
from stateful_workflow.record.sinks import LOGGER, LoggingSink, OpenTelemetrySink
from tests.record.test_audit_file import USE
from tests.support.terminal import HOSTILE, VISIBLE, unprintable

REFUSED = replace(USE, action="refuse", outcome="failure", reason="OriginNotAllowed", status=None)


def test_both_are_sinks_that_somebody_may_have_to_wait_for() -> None:
    for sink in (LoggingSink(), OpenTelemetrySink(LoggerProvider())):
        assert isinstance(sink, AuditSink)
        assert not hasattr(sink, "is_local")


# --- logging -----------------------------------------------------------------


def test_an_event_is_a_record_with_its_attributes_as_fields(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    LoggingSink().record(REFUSED)
    (record,) = caplog.records
    assert (record.name, record.levelno) == (LOGGER, logging.INFO)
    assert record.getMessage() == (
        "token refuse: failure (OriginNotAllowed) of apiToken at orders/1"
    )
    fields = vars(record)
    assert {name: fields[name] for name in REFUSED.attributes()} == REFUSED.attributes()
    assert fields["timestamp"] == "2027-01-15T08:00:00.250000Z"


def test_an_id_forges_no_line_of_a_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    texts = [name for name, value in vars(REFUSED).items() if value is None or name == "reason"]
    hostile = dict.fromkeys(set(texts) - {"version", "attempt", "status", "count"}, HOSTILE)
    LoggingSink().record(replace(REFUSED, **hostile, name=HOSTILE, workflow_id=HOSTILE))
    (record,) = caplog.records
    assert unprintable(record.getMessage()) == set()
    assert "\n" not in record.getMessage()
    assert record.getMessage().endswith(f"of {VISIBLE} at {VISIBLE}")
    fields = vars(record)
    for name in REFUSED.attributes():
        assert unprintable(str(fields[name])) == set()
        assert "\n" not in str(fields[name])


def test_the_logger_and_the_level_are_a_choice(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("mine")
    LoggingSink(logger, logging.WARNING).record(USE)
    assert [(record.name, record.levelname) for record in caplog.records] == [("mine", "WARNING")]


def test_a_logger_that_would_drop_the_event_has_failed() -> None:
    logger = logging.getLogger("quiet")
    logger.setLevel(logging.ERROR)
    with pytest.raises(AuditError, match="the logger quiet drops what is of the level INFO"):
        LoggingSink(logger).record(USE)


def test_no_attribute_has_a_name_that_a_log_record_has() -> None:
    assert all("." in attribute for attribute in ATTRIBUTES.values())


# --- OpenTelemetry -----------------------------------------------------------


@pytest.fixture
def exported() -> tuple[LoggerProvider, InMemoryLogRecordExporter]:
    exporter = InMemoryLogRecordExporter()
    provider = LoggerProvider()
    provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    return provider, exporter


def test_an_event_is_a_log_record_with_an_event_name(
    exported: tuple[LoggerProvider, InMemoryLogRecordExporter],
) -> None:
    provider, exporter = exported
    OpenTelemetrySink(provider).record(USE)
    (log,) = exporter.get_finished_logs()
    record = log.log_record
    assert record.event_name == "stateful.token.use"
    assert record.timestamp == 1_800_000_000_250_000_000
    assert dict(record.attributes or {}) == USE.attributes()
    assert record.severity_number == SeverityNumber.INFO
    assert record.body is None
    assert log.instrumentation_scope is not None
    assert log.instrumentation_scope.name == "stateful_workflow"
    json.loads(log.to_json())


def test_a_failure_is_a_warning(
    exported: tuple[LoggerProvider, InMemoryLogRecordExporter],
) -> None:
    provider, exporter = exported
    OpenTelemetrySink(provider).record(REFUSED)
    (log,) = exporter.get_finished_logs()
    assert log.log_record.severity_number == SeverityNumber.WARN


def test_the_global_provider_is_taken_where_no_other_is_given() -> None:
    OpenTelemetrySink().record(USE)  # none is set: it goes nowhere


@pytest.mark.parametrize("is_there", [True, False])
def test_without_the_package_or_with_an_old_one_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, is_there: bool
) -> None:
    def old(self: Logger, record: object) -> None:
        raise NotImplementedError

    if is_there:
        monkeypatch.setattr(Logger, "emit", old)
    else:
        monkeypatch.setitem(sys.modules, "opentelemetry._logs", None)
    with pytest.raises(AuditError, match=r'pip install "opentelemetry-api>=1.38"'):
        OpenTelemetrySink()
