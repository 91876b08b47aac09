"""The audit trail: events, the sinks they go to, and what a file of them proves."""

from .events import AuditEvent, AuditSink
from .file import AuditFile
from .sinks import LoggingSink, OpenTelemetrySink

__all__ = ["AuditEvent", "AuditFile", "AuditSink", "LoggingSink", "OpenTelemetrySink"]
