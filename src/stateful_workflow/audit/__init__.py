"""The audit trail: events, the sinks they go to, and what a file of them proves."""

from .events import AuditEvent, AuditSink

__all__ = ["AuditEvent", "AuditSink"]
