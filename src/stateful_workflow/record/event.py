"""What stands on record: one event for each thing that happens to a token, never a token.

Events are written with the attribute names of OpenTelemetry's semantic conventions where
one fits (``http.request.method`` …), with ECS's ``event.action``, ``event.outcome`` and
``event.reason``, and with ``temporal.`` and ``stateful.`` names for the rest; docs/audit.md
explains each, and maps them to ECS and OCSF.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final, Literal, Protocol, TypedDict, get_args, runtime_checkable

from temporalio import activity, workflow

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
    "authorize",
    "renew",
    "mint",
    "retire",
    "needs_authorization",
    "lost",
]
"""What was done; docs/audit.md says by whom, and when."""

Outcome = Literal["success", "failure", "unknown"]
"""As ECS's ``event.outcome``."""

ACTIONS: Final[tuple[Action, ...]] = get_args(Action)
OUTCOMES: Final[tuple[Outcome, ...]] = get_args(Outcome)


WITHHELD: Final = "TokenWithheld"
"""The reason of a `refuse` at a workflow that was started without the token, as it was meant."""

MAX_NOTE: Final = 1_000
"""Characters of each part of a `Note`."""


class Note(TypedDict, total=False):
    """Who had something done, for whom and why; see `Deed`."""

    by: str | None
    on_behalf_of: str | None
    reason: str | None


@dataclass(frozen=True)
class Deed:
    """What a client does, and who had it done, as he says; nobody vouches for that.

    Attributes:
        action: what is done.
        by: the person, as your own systems name one.
        on_behalf_of: for whom, such as the customer whose token it is.
        reason: why, such as the number of a ticket.

    Raises:
        ValueError: one of them is no text, or longer than `MAX_NOTE`.
    """

    action: Action
    by: str | None = None
    on_behalf_of: str | None = None
    reason: str | None = None

    def __post_init__(self) -> None:
        for text in self.fields().values():
            if text is not None and (not isinstance(text, str) or len(text) > MAX_NOTE):
                raise ValueError(
                    "by=, on_behalf_of= and reason= each take a text of up to "
                    f"{MAX_NOTE:,} characters"
                )

    def without(self, *secrets: str) -> Deed:
        """This deed, in whose note none of these stands.

        Raises:
            ValueError: it does.
        """
        texts = [text for text in self.fields().values() if text is not None]
        if any(secret and secret in text for secret in secrets for text in texts):
            raise ValueError("by=, on_behalf_of= and reason= go on record: give no token there")
        return self

    def fields(self) -> dict[str, Any]:
        """What an event says of its note."""
        return {"by": self.by, "on_behalf_of": self.on_behalf_of, "said_reason": self.reason}


def _named(attribute: str) -> Any:
    """A field that may be absent, with its attribute name."""
    return field(default=None, metadata={"attribute": attribute})


@dataclass(frozen=True)
class AuditEvent:
    """One event; each field but the time is an attribute, and None where it does not apply.

    Attributes:
        time: Unix seconds.
        reason: why not, or how: mostly the name of an error of this library.
        identity: of who recorded it; nobody vouches for it.
        workflow_id, run_id, workflow_type: of the workflow it happened at.
        kind: of the message: "token", "grant", "revocation", or "inherit".
        authority, issuer: as the message says; of unknown origin, it is just that.
        origins, types, readers: what a token that is set or resealed is limited to, each
            separated by spaces.
        expires_at: Unix seconds, of the same.
        api_url: the address it was set with.
        by, on_behalf_of, said_reason: see `Deed`.
        source: name of the source that minted a token, or is to mint with a grant.
        reader: id of the key that opened it.
        child_id, child_type: whom it was forwarded to, or kept from.
        origin: where a request went, or was to go: scheme, host and port.
        count: events lost.
    """

    time: float
    action: Action = field(metadata={"attribute": "event.action"})
    outcome: Outcome = field(metadata={"attribute": "event.outcome"})
    reason: str | None = _named("event.reason")
    identity: str | None = _named("temporal.identity")
    namespace: str | None = _named("temporal.namespace")
    workflow_id: str | None = _named("temporal.workflow.id")
    run_id: str | None = _named("temporal.workflow.run_id")
    workflow_type: str | None = _named("temporal.workflow.type")
    name: str | None = _named("stateful.token.name")
    kind: str | None = _named("stateful.token.kind")
    version: int | None = _named("stateful.token.version")
    fingerprint: str | None = _named("stateful.token.fingerprint")
    authority: str | None = _named("stateful.token.authority")
    issuer: str | None = _named("stateful.token.issuer")
    origins: str | None = _named("stateful.token.origins")
    types: str | None = _named("stateful.token.types")
    readers: str | None = _named("stateful.token.readers")
    expires_at: int | None = _named("stateful.token.expires_at")
    api_url: str | None = _named("stateful.token.api_url")
    by: str | None = _named("user.name")
    on_behalf_of: str | None = _named("stateful.on_behalf_of")
    said_reason: str | None = _named("stateful.reason")
    source: str | None = _named("stateful.source")
    reader: str | None = _named("stateful.token.reader")
    child_id: str | None = _named("stateful.child.id")
    child_type: str | None = _named("stateful.child.type")
    activity_type: str | None = _named("temporal.activity.type")
    activity_id: str | None = _named("temporal.activity.id")
    attempt: int | None = _named("temporal.activity.attempt")
    origin: str | None = _named("stateful.origin")
    method: str | None = _named("http.request.method")
    status: int | None = _named("http.response.status_code")
    count: int | None = _named("stateful.lost")

    def attributes(self) -> dict[str, str | int]:
        """What is known, by attribute name; the time is no attribute."""
        values = vars(self)
        return {a: values[name] for name, a in ATTRIBUTES.items() if values[name] is not None}

    @classmethod
    def from_attributes(cls, time: float, attributes: Mapping[str, Any]) -> AuditEvent:
        """The event that has these attributes; those not known here are left out.

        Raises:
            ValueError: where the action or the outcome is none that is known, or an attribute
                is of another type.
        """
        values = {name: attributes.get(attribute) for name, attribute in ATTRIBUTES.items()}
        if values["action"] not in ACTIONS or values["outcome"] not in OUTCOMES:
            raise ValueError(f"unknown action {values['action']!r} ({values['outcome']!r})")
        for name, value in values.items():
            wanted = int if name in NUMBERS else str
            if value is not None and type(value) is not wanted:
                raise ValueError(f"{ATTRIBUTES[name]} is no {wanted.__name__}: {value!r}")
        return cls(time=time, **values)  # pyright: ignore[reportArgumentType]


ATTRIBUTES: Final[Mapping[str, str]] = {
    one.name: one.metadata["attribute"] for one in fields(AuditEvent) if one.metadata
}
"""The attribute name of each field of `AuditEvent` but its time."""

NUMBERS: Final = frozenset(one.name for one in fields(AuditEvent) if "int" in str(one.type))
"""The fields that are numbers; all others are texts."""


def _of_message(message: Message | None, name: str | None, *, terms: bool) -> dict[str, Any]:
    """The fields that tell of a message or of a name; `terms` are what a token is limited to."""
    if message is None:
        return {} if name is None else {"name": name}
    claims = message.claims
    said: dict[str, Any] = {
        "name": claims.name,
        "kind": "inherit" if claims.inherit is True else message.kind,
        "version": claims.version,
        "fingerprint": message.fingerprint,
        "authority": claims.authority,
        "issuer": message.issuer,
        "source": claims.source,
    }
    if terms and message.kind == "token":
        said["origins"] = " ".join(claims.origins)
        if claims.types is not None:
            said["types"] = " ".join(claims.types)
        if claims.audiences is not None:
            said["readers"] = " ".join(claims.audiences)
        said["expires_at"], said["api_url"] = claims.expires_at, claims.api_url
    return said


@dataclass(frozen=True)
class Scene:
    """Who records, and where: what all events of one node, one activity or one client share."""

    identity: str | None = None
    namespace: str | None = None
    workflow_id: str | None = None
    run_id: str | None = None
    workflow_type: str | None = None
    activity_type: str | None = None
    activity_id: str | None = None
    attempt: int | None = None

    @classmethod
    def of(cls, identity: str | None, info: workflow.Info | activity.Info) -> Scene:
        """That of a workflow or an activity."""
        where = (identity, info.namespace, info.workflow_id)
        if isinstance(info, workflow.Info):
            return cls(*where, info.run_id, info.workflow_type)
        run = (info.workflow_run_id, info.workflow_type)
        return cls(*where, *run, info.activity_type, info.activity_id, info.attempt)

    def event(
        self,
        action: Action,
        outcome: Outcome,
        message: Message | None = None,
        name: str | None = None,
        *,
        at: float | None = None,
        **detail: Any,
    ) -> AuditEvent:
        """An event that happened here.

        Args:
            action, outcome: what came of what.
            message: with which, if any.
            name: credential name, where there is no message.
            at: Unix seconds; None takes the clock's.
            detail: more fields, such as `reason`.
        """
        which = _of_message(message, name, terms=action in ("set", "reseal"))
        now = time.time() if at is None else at
        return AuditEvent(now, action, outcome, **vars(self), **{**which, **detail})


@runtime_checkable
class AuditSink(Protocol):
    """Where events go. A sink of your own has this one method.

    A sink that answers within microseconds and waits for nobody, such as a local file, says so
    with a class attribute ``is_local = True``: its events are written in place, so that not
    even a killed process loses one. To any other one a thread hands them, in their order.
    """

    def record(self, event: AuditEvent) -> None:
        """Keep an event; called by several threads at once. Whatever it raises, it has failed."""
        ...
