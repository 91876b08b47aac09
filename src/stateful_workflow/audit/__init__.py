"""The audit trail: events, the sinks they go to, and what a file of them proves."""

from .chain import RecordedEvent
from .events import AuditEvent, AuditSink
from .file import AuditFile
from .reviewing import Finding, review
from .sinks import LoggingSink, OpenTelemetrySink
from .verification import Verified, read, verify

__all__ = [
    "AuditEvent",
    "AuditFile",
    "AuditSink",
    "Finding",
    "LoggingSink",
    "OpenTelemetrySink",
    "RecordedEvent",
    "Verified",
    "read",
    "review",
    "verify",
]
