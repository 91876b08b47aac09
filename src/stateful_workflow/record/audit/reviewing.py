"""What in a trail of events deserves a look: pure, over any iterable of `AuditEvent`.

Events of several files are to be merged by time. What is kept while they go by grows with the
nodes, versions, origins, types and readers in them, not with the events, and is limited where
anybody may choose a value, as the sender of a rejected message may.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Final, Literal, get_args

from ...errors import NotSealed, TokenNotSet
from ...sealed.origins import is_allowed
from ..event import WITHHELD, AuditEvent

FindingKind = Literal[
    "revoked",  # opened or sent by a node that had accepted its revocation before
    "retired",  # opened or sent after it was revoked at its provider, with a newer one in use
    "overtaken",  # an older version, opened or sent though the node had accepted a newer one
    "behind",  # a node that shows signs of life holds a version that many newer ones followed
    "reader",  # opened with a key that is not among the known ones
    "widened",  # a token was set that may go further than the one before it
    "origin",  # sent to an origin that is new for this credential
    "type",  # opened or sent by a workflow type that is new for this credential
    "rejected",  # a node took a message from somebody for none
    "refused",  # not opened, or not sent: to an origin that is not allowed, or otherwise
    "unaccepted",  # a version that the API has answered with 401, and never with anything better
    "lost",  # events that could not be recorded
]
"""What was found, the gravest first."""

FINDING_KINDS: Final[tuple[FindingKind, ...]] = get_args(FindingKind)

BEHIND: Final = 3
"""Versions after which a node that has none of them is behind."""

GRACE_SECONDS: Final = 10.0
"""How long an activity may go on with what it had: it asks again after 5 s, and is answered."""

LEARNING_SECONDS: Final = 24 * 60 * 60.0
"""How much of a trail shows what is usual, where no other time is given."""

EVIDENCE: Final = 3
"""Events that a finding shows."""

_UNAUTHORIZED: Final = 401
_MOST: Final = 1_000  # findings of a kind; one more for all the others
_AT_NODE: Final = ("accept", "reject", "forward", "read", "use", "refuse")


@dataclass(frozen=True)
class Finding:
    """Something to look at.

    Attributes:
        kind: what it is.
        message: the same in a sentence.
        count: events like it.
        evidence: the first few of them, with what contradicts them.
    """

    kind: FindingKind
    message: str
    count: int
    evidence: tuple[AuditEvent, ...]


def review(
    events: Iterable[AuditEvent],
    *,
    known_readers: Iterable[str] | None = None,
    behind: int = BEHIND,
    since: float | None = None,
    grace: float = GRACE_SECONDS,
) -> list[Finding]:
    """Go through a trail.

    Args:
        events: in the order of time.
        known_readers: key ids of the readers there should be; None does not look at readers.
        behind: versions after which a node that has none of them is reported.
        since: Unix seconds. What is before is taken for usual, and nothing in it is reported.
            None reports everything, and takes the first 24 hours for usual: an origin or a type
            that is first seen after them is new. A credential that was not used in that time
            has no usual ones, and none that are new.
        grace: seconds that an activity may go on with what it had when a node accepts another
            message.

    Raises:
        ValueError: `behind` is not positive.
    """
    if behind < 1:
        raise ValueError("behind is a number of versions above 0")
    readers = None if known_readers is None else frozenset(known_readers)
    reviewing = _Review(readers, behind, since, grace)
    for event in events:
        reviewing.take(event)
    return reviewing.findings()


_Place = tuple[str, str]
"""Credential name and the authority at which it is set."""


@dataclass
class _Node:
    """What a workflow is known to hold.

    Attributes:
        newest: by place, the event that told of the newest message it took.
        run_id: of its newest run.
        seen: the last event of it.
        withheld: names that are kept from it.
    """

    newest: dict[_Place, AuditEvent] = field(default_factory=dict[_Place, AuditEvent])
    run_id: str | None = None
    seen: AuditEvent | None = None
    withheld: set[str] = field(default_factory=set[str])


@dataclass
class _Group:
    """Events that are one finding."""

    message: str
    count: int = 0
    evidence: list[AuditEvent] = field(default_factory=list[AuditEvent])


class _Review:
    def __init__(
        self, readers: frozenset[str] | None, behind: int, since: float | None, grace: float
    ) -> None:
        self._readers = readers
        self._behind = behind
        self._since = since
        self._grace = grace
        self._usual_until = since
        self._nodes: dict[tuple[str | None, str | None], _Node] = {}
        self._versions: dict[tuple[str | None, _Place], dict[int, float]] = {}
        self._terms: dict[tuple[str | None, _Place], AuditEvent] = {}
        self._retired: dict[tuple[str | None, _Place, int | None], AuditEvent] = {}
        self._usual: dict[Hashable, set[str]] = {}
        self._welcome: set[Hashable] = set()
        self._groups: dict[FindingKind, dict[Hashable, _Group]] = {
            kind: {} for kind in FINDING_KINDS
        }

    def take(self, event: AuditEvent) -> None:
        """Look at the next event."""
        if self._usual_until is None:
            self._usual_until = event.time + LEARNING_SECONDS
        node = self._node(event, event.workflow_id)
        match event.action:
            case "lost":
                lost = event.count or 0
                self._report("lost", None, "events could not be recorded", event, count=lost)
            case "reject":
                self._rejected(event)
            case "refuse":
                self._refused(event, node)
            case "use":
                self._answered(event)
                self._opened(event, node)
            case "read" if event.outcome == "success":
                self._opened(event, node)
            case "accept":
                self._accepted(event, node)
            case "set" | "reseal" | "revoke" | "inherit" if event.outcome == "success":
                self._accepted(event, node)  # the node has told the client so
                self._reaching(event)
            case "set" if event.activity_id is not None:
                self._reaching(event)  # sealed for a workflow, which sets it by itself
            case "withhold" | "share":
                self._kept(event)
            case "retire" if event.outcome == "success":
                self._retired[_version(event)] = event
            case _:
                pass
        if event.action in _AT_NODE:
            node.seen = event

    def findings(self) -> list[Finding]:
        """What was found, the gravest kinds first."""
        self._look_who_is_behind()
        return [
            Finding(kind, group.message, group.count, tuple(group.evidence))
            for kind in FINDING_KINDS
            for group in self._groups[kind].values()
            # One 401 may cross a rotation.
            if kind != "unaccepted" or group.count >= EVIDENCE
        ]

    # --- what is known -------------------------------------------------------

    def _node(self, event: AuditEvent, workflow_id: str | None) -> _Node:
        return self._nodes.setdefault((event.namespace, workflow_id), _Node())

    def _accepted(self, event: AuditEvent, node: _Node) -> None:
        if event.version is None or event.kind == "grant":
            return
        if event.reason == "start" and event.run_id not in (None, node.run_id):
            node.newest.clear()  # the workflow id is used again, for another node
        node.run_id = event.run_id or node.run_id
        place = _place(event)
        if place not in node.newest or (node.newest[place].version or 0) < event.version:
            node.newest[place] = event
        if event.kind == "token":
            versions = self._versions.setdefault((event.namespace, place), {})
            versions[event.version] = min(event.time, versions.get(event.version, event.time))

    def _kept(self, event: AuditEvent) -> None:
        child, name = self._node(event, event.child_id), event.name or ""
        if event.action == "withhold":
            child.withheld.add(name)
        elif name == "*":
            child.withheld.clear()
        else:
            child.withheld.discard(name)

    # --- what is found -------------------------------------------------------

    def _opened(self, event: AuditEvent, node: _Node) -> None:
        if (retired := self._retired.get(_version(event))) is not None:
            what = f"{event.name} was used at {event.workflow_id} after it was retired"
            self._report("retired", _version(event), what, event, against=retired)
        elif not self._ended(event, node):
            self._older(event, node)
        name, kind = event.name, event.workflow_type
        what = f"{name} was sent to {event.origin}, which is new for it"
        self._unusual("origin", event.origin, what, event)
        what = f"{name} was used by the workflow type {kind}, which is new for it"
        self._unusual("type", kind, what, event)
        reader = event.reader
        if self._readers is not None and reader is not None and reader not in self._readers:
            what = f"opened with the key {reader}, which is not among the known readers"
            self._report("reader", reader, what, event)

    def _ended(self, event: AuditEvent, node: _Node) -> bool:
        """Report a token that was ended before, at this node."""
        for (name, authority), newest in node.newest.items():
            is_of_name = name == event.name and newest.kind == "revocation"
            if not is_of_name or not self._is_late(event, newest):
                continue
            if authority == event.authority:
                is_ended = (event.version or 0) <= (newest.version or 0)
            else:
                is_ended = self._is_nearer(event, authority)
            if is_ended:
                what = (
                    f"{name} was used at {event.workflow_id} after it had accepted the revocation "
                    f"by {authority}"
                )
                key = (event.namespace, event.workflow_id, name, authority)
                self._report("revoked", key, what, event, against=newest)
                return True
        return False

    def _is_nearer(self, event: AuditEvent, authority: str) -> bool:
        """Whether an authority stands between a node and the authority of what was opened."""
        # It is below any authority whose messages it took.
        between = self._node(event, authority)
        return authority == event.workflow_id or _place(event) in between.newest

    def _older(self, event: AuditEvent, node: _Node) -> None:
        """Report a version that was overtaken before."""
        newest, version = node.newest.get(_place(event)), event.version
        if newest is None or version is None or version >= (newest.version or 0):
            return
        if self._is_late(event, newest):
            self._report(
                "overtaken",
                (event.namespace, event.workflow_id, _place(event)),
                f"an older {event.name} of {event.authority} was used at {event.workflow_id} after "
                "it had accepted a newer one",
                event,
                against=newest,
            )

    def _is_late(self, event: AuditEvent, newest: AuditEvent) -> bool:
        return event.time > newest.time + self._grace

    def _unusual(self, kind: FindingKind, value: str | None, what: str, event: AuditEvent) -> None:
        credential = (kind, event.namespace, event.name)
        if value is None:
            return
        if self._usual_until is not None and event.time < self._usual_until:
            self._usual.setdefault(credential, set()).add(value)
        elif value not in self._usual.get(credential, {value}):
            self._report(kind, (credential, value), what, event)

    def _answered(self, event: AuditEvent) -> None:
        """Note what the API said of a version; a fallback has none."""
        if event.version is None:
            return
        version = _version(event)
        if event.status not in (None, _UNAUTHORIZED):
            self._welcome.add(version)
            self._groups["unaccepted"].pop(version, None)
        elif event.status is not None and version not in self._welcome:
            what = (
                f"version {event.version} of {event.name}, set at {event.authority}, was only "
                "answered with 401"
            )
            self._report("unaccepted", version, what, event)

    def _reaching(self, event: AuditEvent) -> None:
        """Report a token that may go further than the one before it at its place."""
        place, before = (event.namespace, _place(event)), None
        if event.origins is not None and event.outcome != "failure":
            before, self._terms[place] = self._terms.get(place), event
        if before is not None and (more := _wider(before, event)):
            what = f"{event.name} that was set at {event.authority} reaches further: {more}"
            self._report("widened", (*place, more), what, event, against=before)

    def _rejected(self, event: AuditEvent) -> None:
        about = f"messages that name the issuer {event.issuer}"
        if event.reason == NotSealed.__name__:
            about = "what may be a token in clear text, to be rotated then"
        elif event.issuer is None:
            about = "what is no message"
        self._report(
            "rejected",
            (event.namespace, event.workflow_id, event.issuer, event.reason),
            f"{event.workflow_id} rejected {about}: {event.reason}",
            event,
        )

    def _refused(self, event: AuditEvent, node: _Node) -> None:
        is_kept = not node.withheld.isdisjoint({event.name, "*"})
        if event.reason == WITHHELD or (is_kept and event.reason == TokenNotSet.__name__):
            return  # as it is meant to be
        to = "" if event.origin is None else f" for {event.origin}"
        self._report(
            "refused",
            (event.namespace, event.name, event.workflow_type, event.reason, event.origin),
            f"{event.name} was refused{to} in workflows of the type {event.workflow_type}: "
            f"{event.reason}",
            event,
        )

    def _look_who_is_behind(self) -> None:
        for (namespace, workflow_id), node in self._nodes.items():
            for place, newest in node.newest.items():
                versions = self._versions.get((namespace, place), {})
                last = sorted(versions)[-self._behind :]
                name, authority = place
                if (
                    len(last) == self._behind
                    and newest.kind == "token"
                    and (newest.version or 0) < last[0]
                    and node.withheld.isdisjoint({name, "*"})
                    and node.seen is not None
                    and node.seen.time > max(versions[one] for one in last) + self._grace
                ):
                    what = (
                        f"{workflow_id} has not taken the last {len(last)} versions of {name} that "
                        f"were set at {authority}"
                    )
                    key = (namespace, workflow_id, place)
                    self._report("behind", key, what, node.seen, against=newest)

    def _report(
        self,
        kind: FindingKind,
        key: Hashable,
        message: str,
        event: AuditEvent,
        *,
        count: int = 1,
        against: AuditEvent | None = None,
    ) -> None:
        if self._since is not None and event.time < self._since:
            return
        groups = self._groups[kind]
        if key not in groups and len(groups) >= _MOST:
            key, message = "others", f"more of the same kind; only {_MOST} are listed"
        group = groups.setdefault(key, _Group(message))
        group.count += count
        if against is not None and not group.evidence:
            group.evidence.append(against)
        if len(group.evidence) < EVIDENCE:
            group.evidence.append(event)


def _wider(before: AuditEvent, event: AuditEvent) -> str:
    """Where a token may go, and who may open it, that could not have the one before; else empty."""
    found: list[str] = []
    old = (before.origins or "").split()
    new = [one for one in (event.origins or "").split() if not is_allowed(one, old)]
    if new:
        found.append(f"to {' '.join(new)}")
    for what, was, is_now in (
        ("workflow types", before.types, event.types),
        ("readers", before.readers, event.readers),
    ):
        if was is not None and is_now is None:
            found.append(f"to all {what}")
        elif was is not None and is_now is not None:
            more = [one for one in is_now.split() if one not in was.split()]
            found += [f"to the {what} {' '.join(more)}"] if more else []
    return ", ".join(found)


def _place(event: AuditEvent) -> _Place:
    return event.name or "", event.authority or ""


def _version(event: AuditEvent) -> tuple[str | None, _Place, int | None]:
    return event.namespace, _place(event), event.version
