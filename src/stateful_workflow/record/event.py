"""What stands on record: one event for each thing that happens to a token, never a token.

Events are written with the attribute names of OpenTelemetry's semantic conventions where
one fits (``http.request.method`` …), with ECS's ``event.action``, ``event.outcome`` and
``event.reason``, and with ``temporal.`` and ``stateful.`` names for
the rest; docs/audit.md maps them to ECS and OCSF.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol, TypedDict, get_args, runtime_checkable

from ..sealed.message import Message

Action = Literal[
    "set",
    "reseal",
    "revoke",
    "inherit",
    "accept",
    "reject",
    "forward",
    "withhold",
    "share",
    "read",
    "use",
    "refuse",
    "lost",
]
"""What was done.

By a client, or an activity that seals: set, reseal, revoke, inherit; first with the outcome
unknown, before anything is sent, then with what came of it. By a node: accept (reason
"start" or "continued" where its run began with the message), reject, withhold, share. By the worker
of a node: forward. By whoever opens a token: read; with a request that carries it: use (one
each request that left, with the answer's status); refuse: it was not opened or not sent.
lost: events before this one could not be recorded, `count` of them.
"""

Outcome = Literal["success", "failure", "unknown"]
"""As ECS's ``event.outcome``."""

ACTIONS: Final[tuple[Action, ...]] = get_args(Action)
OUTCOMES: Final[tuple[Outcome, ...]] = get_args(Outcome)


@dataclass(frozen=True)
class AuditEvent:
    """One event.

    Attributes:
        time: Unix seconds.
        action: see `Action`.
        outcome: see `Outcome`.
        reason: why not, or how: mostly the name of an error of this library.
        identity: of who recorded it, as Temporal's clients and workers name themselves (by
            default process id and host); nobody vouches for it.
        namespace: Temporal namespace.
        workflow_id, run_id, workflow_type: of the workflow it happened at.
        name: credential name.
        kind: of the message: "token", "revocation", or "inherit" for one that lets a workflow
            take its ancestors' again.
        version, fingerprint, authority, issuer: of the message; an issuer is named by its
            key id, and what a message of unknown origin says of itself is just that.
        origins, types, readers: of a token that is set or resealed, what is signed with it: where
            it may be sent, the workflow types whose activities may open it, the audiences it is
            sealed for; each separated by spaces, absent where there is no limit.
        reader: id of the key that opened it.
        child_id, child_type: whom it was forwarded to, or kept from.
        activity_type, activity_id, attempt: of the activity that used it.
        origin: where a request went, or was to go: scheme, host and port.
        method, status: HTTP request method and response status code.
        count: events lost.
    """

    time: float
    action: Action
    outcome: Outcome
    reason: str | None = None
    identity: str | None = None
    namespace: str | None = None
    workflow_id: str | None = None
    run_id: str | None = None
    workflow_type: str | None = None
    name: str | None = None
    kind: str | None = None
    version: int | None = None
    fingerprint: str | None = None
    authority: str | None = None
    issuer: str | None = None
    origins: str | None = None
    types: str | None = None
    readers: str | None = None
    reader: str | None = None
    child_id: str | None = None
    child_type: str | None = None
    activity_type: str | None = None
    activity_id: str | None = None
    attempt: int | None = None
    origin: str | None = None
    method: str | None = None
    status: int | None = None
    count: int | None = None

    def attributes(self) -> dict[str, str | int]:
        """What is known, by attribute name; the time is no attribute."""
        return {
            attribute: value
            for field, attribute in ATTRIBUTES.items()
            if (value := getattr(self, field)) is not None
        }

    @classmethod
    def from_attributes(cls, time: float, attributes: Mapping[str, Any]) -> AuditEvent:
        """The event that has these attributes; those not known here are left out.

        Raises:
            ValueError: where the action or the outcome is none that is known, or an attribute
                is of another type.
        """
        if attributes.get("event.action") not in ACTIONS:
            raise ValueError(f"unknown action {attributes.get('event.action')!r}")
        if attributes.get("event.outcome") not in OUTCOMES:
            raise ValueError(f"unknown outcome {attributes.get('event.outcome')!r}")
        values = {field: attributes.get(attribute) for field, attribute in ATTRIBUTES.items()}
        for field, value in values.items():
            wanted = int if field in _NUMBERS else str
            if value is not None and type(value) is not wanted:
                raise ValueError(f"{ATTRIBUTES[field]} is no {wanted.__name__}: {value!r}")
        return cls(time=time, **values)  # pyright: ignore[reportArgumentType]


ATTRIBUTES: Final[Mapping[str, str]] = {
    "action": "event.action",
    "outcome": "event.outcome",
    "reason": "event.reason",
    "identity": "temporal.identity",
    "namespace": "temporal.namespace",
    "workflow_id": "temporal.workflow.id",
    "run_id": "temporal.workflow.run_id",
    "workflow_type": "temporal.workflow.type",
    "name": "stateful.token.name",
    "kind": "stateful.token.kind",
    "version": "stateful.token.version",
    "fingerprint": "stateful.token.fingerprint",
    "authority": "stateful.token.authority",
    "issuer": "stateful.token.issuer",
    "origins": "stateful.token.origins",
    "types": "stateful.token.types",
    "readers": "stateful.token.readers",
    "reader": "stateful.token.reader",
    "child_id": "stateful.child.id",
    "child_type": "stateful.child.type",
    "activity_type": "temporal.activity.type",
    "activity_id": "temporal.activity.id",
    "attempt": "temporal.activity.attempt",
    "origin": "stateful.origin",
    "method": "http.request.method",
    "status": "http.response.status_code",
    "count": "stateful.lost",
}
"""The attribute name of each field of `AuditEvent` but its time."""

_NUMBERS: Final = frozenset({"version", "attempt", "status", "count"})


class OfMessage(TypedDict, total=False):
    """The fields of an event that tell of a message."""

    name: str
    kind: str
    version: int
    fingerprint: str
    authority: str
    issuer: str
    origins: str
    types: str
    readers: str


def of_message(
    message: Message | None, name: str | None = None, *, terms: bool = False
) -> OfMessage:
    """What an event says of a message.

    Args:
        message: None where there is none, or what was sent is none.
        name: credential name that is known all the same.
        terms: say of a token what was signed with it, too.
    """
    if message is None:
        return {} if name is None else {"name": name}
    claims = message.claims
    said: OfMessage = {
        "name": claims.name,
        "kind": "inherit" if claims.inherit is True else message.kind,
        "version": claims.version,
        "fingerprint": message.fingerprint,
        "authority": claims.authority,
        "issuer": message.issuer,
    }
    if terms and message.kind == "token":
        said["origins"] = " ".join(claims.origins)
        if claims.types is not None:
            said["types"] = " ".join(claims.types)
        if claims.audiences is not None:
            said["readers"] = " ".join(claims.audiences)
    return said


@runtime_checkable
class AuditSink(Protocol):
    """Where events go. A sink of your own has this one method.

    A sink that answers within microseconds and waits for nobody, such as a local file, says so
    with a class attribute ``is_local = True``: its events are written in place, so that not
    even a killed process loses one. To any other one a thread hands them, but for those that
    must be on record first (set, reseal, inherit and read, where a failure blocks): these come
    from the thread that would go on, and may overtake others.
    """

    def record(self, event: AuditEvent) -> None:
        """Keep an event; called by several threads at once. Whatever it raises, it has failed."""
        ...
