"""The audit trail: events, the sinks they go to, and what a file of them proves."""

from .record.audit.chain import RecordedEvent
from .record.audit.file import AuditFile
from .record.audit.reviewing import Finding, review
from .record.audit.verification import Verified, read, verify
from .record.event import AuditEvent, AuditSink
from .record.sinks import LoggingSink, OpenTelemetrySink

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
