"""Metrics, through the SDK's own meter, so that Temporal's exporters carry them.

============================  =========  ==================================================
``stateful_messages``         counter    by action (set, accept, reject …), outcome, reason
``stateful_uses``             counter    requests that carried a token, by name and status
``stateful_refusals``         counter    tokens not opened or not sent, by reason
``stateful_audit_lost``       counter    events that the audit sink did not take
``stateful_propagation``      histogram  from a message's issue until a node accepted it
``stateful_convergence``      histogram  from a `rotate` to the last node, by name
``stateful_nodes_behind``     gauge      children this worker has yet to tell
``stateful_token_age``        gauge      seconds since the token opened last was issued
``stateful_token_remaining``  gauge      seconds until the token opened last expires
============================  =========  ==================================================

Labels have few values: credential names, workflow types and reasons, never an id. The
histograms are durations, in the unit that the runtime is configured for.
"""

from __future__ import annotations

import threading
import weakref
from datetime import timedelta
from typing import Final

from temporalio.client import Client
from temporalio.common import MetricMeter
from temporalio.runtime import Runtime

from .audit.events import AuditEvent

NAMES: Final = (
    "stateful_messages",
    "stateful_uses",
    "stateful_refusals",
    "stateful_audit_lost",
    "stateful_propagation",
    "stateful_convergence",
    "stateful_nodes_behind",
    "stateful_token_age",
    "stateful_token_remaining",
)
"""Every metric."""


class Metrics:
    """The metrics of one worker or client.

    Args:
        meter: of the runtime.
    """

    def __init__(self, meter: MetricMeter) -> None:
        self._messages = meter.create_counter(
            "stateful_messages", "Messages set, accepted, rejected, forwarded and withheld"
        )
        self._uses = meter.create_counter("stateful_uses", "Requests that carried a token")
        self._refusals = meter.create_counter("stateful_refusals", "Tokens not opened or not sent")
        self._lost = meter.create_counter(
            "stateful_audit_lost", "Events that the audit sink did not take"
        )
        self._propagation = meter.create_histogram_timedelta(
            "stateful_propagation", "From a message's issue until a node accepted it", "duration"
        )
        self._convergence = meter.create_histogram_timedelta(
            "stateful_convergence", "From a rotate to the last node", "duration"
        )
        self._behind = meter.create_gauge(
            "stateful_nodes_behind", "Children that this worker has yet to tell"
        )
        self._age = meter.create_gauge_float(
            "stateful_token_age", "Since the token opened last was issued", "s"
        )
        self._remaining = meter.create_gauge_float(
            "stateful_token_remaining", "Until the token opened last expires", "s"
        )
        self._owed: dict[int, int] = {}
        self._lock = threading.RLock()  # a finalizer may run while it is held

    @classmethod
    def of(cls, client: Client | None) -> Metrics:
        """Those of a client's runtime; without a client they go nowhere."""
        if client is None:
            return cls(MetricMeter.noop)
        runtime = client.service_client.config.runtime or Runtime.default()
        return cls(runtime.metric_meter)

    def count(self, event: AuditEvent) -> None:
        """Count an event."""
        name = event.name or ""
        if event.action == "use":
            status = "none" if event.status is None else str(event.status)
            self._uses.add(1, {"name": name, "status": status})
        elif event.action == "refuse":
            self._refusals.add(1, {"reason": event.reason or ""})
        elif event.action == "lost":
            self._lost.add(event.count or 0)
        else:
            labels = {"action": event.action, "outcome": event.outcome}
            # What a rejected message says of itself is anybody's choice.
            labels |= {"reason": event.reason or ""} if event.outcome == "failure" else {}
            labels |= {} if event.action == "reject" else {"name": name}
            self._messages.add(1, labels)

    def opened(self, name: str, *, age: float, remaining: float | None) -> None:
        """A token was opened.

        Args:
            name: credential name.
            age: seconds since it was issued.
            remaining: seconds until it expires, or None.
        """
        self._age.set(max(age, 0.0), {"name": name})
        if remaining is not None:
            self._remaining.set(remaining, {"name": name})

    def accepted(self, name: str, seconds: float) -> None:
        """A node accepted a message so many seconds after its issue."""
        self._propagation.record(timedelta(seconds=max(seconds, 0.0)), {"name": name})

    def converged(self, name: str, seconds: float) -> None:
        """A rotation reached every node in so many seconds."""
        self._convergence.record(timedelta(seconds=seconds), {"name": name})

    def owes(self, node: object, children: int) -> None:
        """A node has so many children to tell; forgotten with the node itself."""
        key = id(node)
        with self._lock:
            before = self._owed.get(key)
            if before is None:
                if not children:
                    return
                weakref.finalize(node, self._forget, key)
            self._owed[key] = children
            if before != children:
                self._behind.set(sum(self._owed.values()))

    def _forget(self, key: int) -> None:
        with self._lock:
            if self._owed.pop(key, 0):
                self._behind.set(sum(self._owed.values()))
