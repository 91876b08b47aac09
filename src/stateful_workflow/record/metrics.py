"""Metrics, through the SDK's own meter, so that Temporal's exporters carry them.

docs/operations.md has each with its labels, and what to alert on. All times are seconds,
whatever unit the runtime takes for durations; `BUCKETS` are what to give to its exporter.

Labels have few values: credential names, statuses and names of errors, never an id, and nothing
that a message of unknown origin says of itself. A label that does not apply is empty. Ages are
histograms of what was opened, and no gauges: one process opens tokens of many trees under one
name, and a gauge would show the last of them for ever.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from temporalio.client import Client
from temporalio.common import MetricMeter
from temporalio.runtime import Runtime

from ..errors import KeyringError, MessageRefused, TokenUnavailable, UseRefused
from .event import AuditEvent

_COUNTERS: Final = {
    "stateful_messages": "What happened to messages: set, accepted, rejected, forwarded …",
    "stateful_uses": "Requests that carried a token",
    "stateful_refusals": "Tokens not opened or not sent",
    "stateful_audit_lost": "Events that the audit sink did not take",
    "stateful_not_converged": "Rotations that did not reach every node in time",
}
_HISTOGRAMS: Final = {
    "stateful_convergence": "From a rotate to the last node",
    "stateful_propagation": "From a message's issue until a node accepted it",
    "stateful_token_age": "Since a token was issued, when it was opened",
    "stateful_token_remaining": "Until a token expires, when it was opened",
}

NAMES: Final = (*_COUNTERS, *_HISTOGRAMS)
"""Every metric."""

_FAILED: Final = (
    *("refused_grant", "refused_grant_after_lost_reply", "unreachable", "rate_limited"),
    *("malformed", "lost_reply", "not_ready"),
)

OF_SOURCES: Final = (
    *(("mint", "success", reason) for reason in ("minted", "alive", "unchanged")),
    *(("mint", "failure", reason) for reason in _FAILED),
    *(
        ("needs_authorization", outcome, reason)
        for outcome in ("success", "failure")
        for reason in ("out_of_the_blue", "after_lost_reply")
    ),
)
"""Action, outcome and reason of what the workers of sources count."""

_NAMELESS: Final = ("reject", "mint", "needs_authorization")
"""What a rejected message says of itself is anybody's choice; the others are counted from zero,
since the first may be the one that matters."""

_MINUTE, _HOUR, _DAY = 60.0, 3600.0, 86400.0
_DELAYS: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, _MINUTE, 5 * _MINUTE, _HOUR)
_LIVES: Final = (
    *(_MINUTE, 5 * _MINUTE, 15 * _MINUTE, _HOUR, 6 * _HOUR),
    *(_DAY, 7 * _DAY, 30 * _DAY, 90 * _DAY, 365 * _DAY),
)

BUCKETS: Final[Mapping[str, Sequence[float]]] = {
    "stateful_convergence": _DELAYS,
    "stateful_propagation": _DELAYS,
    "stateful_token_age": _LIVES,
    "stateful_token_remaining": _LIVES,
}
"""Upper bounds in seconds for ``histogram_bucket_overrides`` of the SDK's exporters."""


class Metrics:
    """The metrics of one client or worker; those of one runtime count together.

    Args:
        meter: of the runtime.
    """

    def __init__(self, meter: MetricMeter) -> None:
        self._counters = {
            name: meter.create_counter(name, text) for name, text in _COUNTERS.items()
        }
        self._histograms = {
            name: meter.create_histogram_float(name, text, "s")
            for name, text in _HISTOGRAMS.items()
        }
        # Prometheus sees no increase in a counter whose first sample is 1.
        self._add("stateful_audit_lost", 0)
        for reason in _names_of(MessageRefused):
            self._message("reject", "failure", reason, "", 0)
        for action, outcome, reason in OF_SOURCES:
            self._message(action, outcome, reason, "", 0)
        for reason in _names_of(KeyringError, MessageRefused, TokenUnavailable, UseRefused):
            self._add("stateful_refusals", 0, reason=reason)

    @classmethod
    def of(cls, client: Client | None) -> Metrics:
        """Those of a client's runtime; without a client they go nowhere."""
        if client is None:
            return cls(MetricMeter.noop)
        runtime = client.service_client.config.runtime or Runtime.default()
        return cls(runtime.metric_meter)

    def count(self, event: AuditEvent) -> None:
        """Count an event."""
        name, reason = event.name or "", event.reason or ""
        if event.action == "use":
            status = "none" if event.status is None else str(event.status)
            self._add("stateful_uses", 1, name=name, status=status)
        elif event.action == "refuse":
            self._add("stateful_refusals", 1, reason=reason)
        else:
            name = "" if event.action in _NAMELESS else name
            self._message(event.action, event.outcome, reason, name, 1)
            if event.action == "set":
                self._add("stateful_not_converged", 0, name=name)

    def lost(self) -> None:
        """An event could not be put on record."""
        self._add("stateful_audit_lost", 1)

    def opened(self, name: str, *, age: float, remaining: float | None) -> None:
        """A token was opened, so many seconds after its issue and before it expires, if it does."""
        self._measure("stateful_token_age", name, age)
        if remaining is not None:
            self._measure("stateful_token_remaining", name, remaining)

    def accepted(self, name: str, seconds: float) -> None:
        """A node accepted a message so many seconds after its issue."""
        self._measure("stateful_propagation", name, seconds)

    def converged(self, name: str, seconds: float) -> None:
        """A rotation reached every node in so many seconds."""
        self._measure("stateful_convergence", name, seconds)

    def not_converged(self, name: str) -> None:
        """A rotation did not reach every node in the time it was given."""
        self._add("stateful_not_converged", 1, name=name)

    def _message(self, action: str, outcome: str, reason: str, name: str, more: int) -> None:
        labels = {"action": action, "outcome": outcome, "reason": reason, "name": name}
        self._add("stateful_messages", more, **labels)

    def _add(self, metric: str, more: int, **labels: str) -> None:
        self._counters[metric].add(more, labels)

    def _measure(self, metric: str, name: str, seconds: float) -> None:
        self._histograms[metric].record(max(seconds, 0.0), {"name": name})


def _names_of(*errors: type[Exception]) -> Iterator[str]:
    for error in errors:
        yield error.__name__
        yield from _names_of(*error.__subclasses__())
