"""Metrics, through the SDK's own meter, so that Temporal's exporters carry them.

============================  =========  ======================================================
``stateful_messages``         counter    what happened to messages, by action (set, accept,
                                         reject …), outcome, reason and name
``stateful_uses``             counter    requests that carried a token, by name and status
``stateful_refusals``         counter    tokens not opened or not sent, by reason
``stateful_audit_lost``       counter    events that the audit sink did not take
``stateful_not_converged``    counter    rotations that did not reach every node in time, by name
``stateful_convergence``      histogram  from a `rotate` to the last node, by name
``stateful_propagation``      histogram  from a message's issue until a node accepted it, by name
``stateful_token_age``        histogram  since a token was issued, when it was opened, by name
``stateful_token_remaining``  histogram  until a token expires, when it was opened, by name
============================  =========  ======================================================

All times are seconds, whatever unit the runtime takes for durations; `BUCKETS` are what to give
to its exporter. docs/operations.md says how, and what to alert on.

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

NAMES: Final = (
    "stateful_messages",
    "stateful_uses",
    "stateful_refusals",
    "stateful_audit_lost",
    "stateful_not_converged",
    "stateful_convergence",
    "stateful_propagation",
    "stateful_token_age",
    "stateful_token_remaining",
)
"""Every metric."""

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
        self._messages = meter.create_counter(
            "stateful_messages", "What happened to messages: set, accepted, rejected, forwarded …"
        )
        self._uses = meter.create_counter("stateful_uses", "Requests that carried a token")
        self._refusals = meter.create_counter("stateful_refusals", "Tokens not opened or not sent")
        self._lost = meter.create_counter(
            "stateful_audit_lost", "Events that the audit sink did not take"
        )
        self._not_converged = meter.create_counter(
            "stateful_not_converged", "Rotations that did not reach every node in time"
        )
        self._convergence = meter.create_histogram_float(
            "stateful_convergence", "From a rotate to the last node", "s"
        )
        self._propagation = meter.create_histogram_float(
            "stateful_propagation", "From a message's issue until a node accepted it", "s"
        )
        self._age = meter.create_histogram_float(
            "stateful_token_age", "Since a token was issued, when it was opened", "s"
        )
        self._remaining = meter.create_histogram_float(
            "stateful_token_remaining", "Until a token expires, when it was opened", "s"
        )
        self._begin_at_zero()

    def _begin_at_zero(self) -> None:
        # Prometheus sees no increase in a counter whose first sample is 1.
        self._lost.add(0)
        for reason in _names_of(MessageRefused):
            self._messages.add(0, _message_labels("reject", "failure", reason))
        for reason in _names_of(KeyringError, MessageRefused, TokenUnavailable, UseRefused):
            self._refusals.add(0, {"reason": reason})

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
            self._uses.add(1, {"name": name, "status": status})
        elif event.action == "refuse":
            self._refusals.add(1, {"reason": reason})
        else:
            # What a rejected message says of itself is anybody's choice.
            name = "" if event.action == "reject" else name
            self._messages.add(1, _message_labels(event.action, event.outcome, reason, name))
            if event.action == "set":
                self._not_converged.add(0, {"name": name})

    def lost(self) -> None:
        """An event could not be put on record."""
        self._lost.add(1)

    def opened(self, name: str, *, age: float, remaining: float | None) -> None:
        """A token was opened.

        Args:
            name: credential name.
            age: seconds since it was issued.
            remaining: seconds until it expires, or None.
        """
        self._age.record(max(age, 0.0), {"name": name})
        if remaining is not None:
            self._remaining.record(max(remaining, 0.0), {"name": name})

    def accepted(self, name: str, seconds: float) -> None:
        """A node accepted a message so many seconds after its issue."""
        self._propagation.record(max(seconds, 0.0), {"name": name})

    def converged(self, name: str, seconds: float) -> None:
        """A rotation reached every node in so many seconds."""
        self._convergence.record(max(seconds, 0.0), {"name": name})

    def not_converged(self, name: str) -> None:
        """A rotation did not reach every node in the time it was given."""
        self._not_converged.add(1, {"name": name})


def _message_labels(action: str, outcome: str, reason: str, name: str = "") -> dict[str, str]:
    return {"action": action, "outcome": outcome, "reason": reason, "name": name}


def _names_of(*errors: type[Exception]) -> Iterator[str]:
    for error in errors:
        yield error.__name__
        yield from _names_of(*error.__subclasses__())
