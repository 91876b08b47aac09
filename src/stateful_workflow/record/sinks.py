"""Sinks that hand events to what is there already: Python's logging, OpenTelemetry's logs.

Neither says whether an event arrived: a handler or an exporter that fails keeps it to itself.
Where what is not on record must not be done, use an `AuditFile`, or a sink of your own.
"""

from __future__ import annotations

import inspect
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from ..errors import AuditError
from ..text.printable import printable
from ..text.times import rfc3339
from .event import AuditEvent

if TYPE_CHECKING:
    from opentelemetry._logs import LoggerProvider

LOGGER: Final = "stateful_workflow.audit"
"""The logger that `LoggingSink` writes to, where no other is given."""


class LoggingSink:
    """Writes each event to a logger, its attributes as fields of the record (``extra``).

    What does not print is escaped, since a line end in an id would forge a line of the log.

    Args:
        logger: None takes the logger "stateful_workflow.audit".
        level: of every event.
    """

    def __init__(self, logger: logging.Logger | None = None, level: int = logging.INFO) -> None:
        self._logger = logging.getLogger(LOGGER) if logger is None else logger
        self._level = level

    def record(self, event: AuditEvent) -> None:
        """Write an event.

        Raises:
            AuditError: the logger is set to drop it.
        """
        if not self._logger.isEnabledFor(self._level):
            raise AuditError(
                f"the logger {self._logger.name} drops what is of the level "
                f"{logging.getLevelName(self._level)}: call its setLevel, or give the sink another"
            )
        texts = {field: text for field, text in vars(event).items() if isinstance(text, str)}
        event = replace(event, **{field: printable(text) for field, text in texts.items()})
        # No name of these is one of a LogRecord's own: all but the time's have a dot in them.
        fields = {"timestamp": rfc3339(event.time, "microseconds"), **event.attributes()}
        self._logger.log(
            self._level,
            "token %s: %s of %s at %s",
            event.action,
            event.outcome if event.reason is None else f"{event.outcome} ({event.reason})",
            event.name,
            event.workflow_id,
            extra=fields,
        )


class OpenTelemetrySink:
    """Emits each event as a log record with an event name, ``stateful.token.<action>``.

    Args:
        logger_provider: None takes the global one; while none is set, events go nowhere.

    Raises:
        AuditError: opentelemetry-api is missing, or older than 1.38.
    """

    def __init__(self, logger_provider: LoggerProvider | None = None) -> None:
        # Imported here, not for each event: that may be in a workflow's thread.
        try:
            from opentelemetry._logs import Logger, SeverityNumber, get_logger_provider
        except ModuleNotFoundError:
            raise AuditError(_NEEDED) from None
        if "event_name" not in inspect.signature(Logger.emit).parameters:
            raise AuditError(_NEEDED)
        provider = get_logger_provider() if logger_provider is None else logger_provider
        self._logger = provider.get_logger("stateful_workflow")
        self._info, self._warn = SeverityNumber.INFO, SeverityNumber.WARN

    def record(self, event: AuditEvent) -> None:
        """Emit an event; of a failure the severity is WARN, of all others INFO."""
        failed = event.outcome == "failure"
        self._logger.emit(
            timestamp=int(event.time * 1_000_000) * 1_000,
            severity_number=self._warn if failed else self._info,
            severity_text="WARN" if failed else "INFO",
            attributes=event.attributes(),
            event_name=f"stateful.token.{event.action}",
        )


_NEEDED: Final = (
    'OpenTelemetrySink needs opentelemetry-api 1.38 or newer: pip install "opentelemetry-api>=1.38"'
)
