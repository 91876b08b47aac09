"""What in a trail of events deserves a look: pure, over any iterable of `AuditEvent`.

Events of several files are to be merged by time. What is kept while they go by grows with the
nodes, origins, types and readers in them, not with the events, and is limited where anybody may
choose a value, as the sender of a rejected message may.

============  ===========================================================================
revoked       opened or sent by a node that had accepted its revocation before
overtaken     an older version was opened or sent, though the node had accepted a newer
              one, or every node known to have had the older one had
behind        a node that still shows signs of life holds a version that so many newer
              ones have followed
reader        opened with a key that is not among the known ones
origin        sent to an origin that is new for this credential
type          opened or sent by a workflow type that is new for this credential
rejected      a node took a message from somebody for none
refused       not opened, or not sent: to an origin that is not allowed, or otherwise
unaccepted    a version that the API has answered with 401, and never with anything better
lost          events that could not be recorded
============  ===========================================================================
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, get_args

from ..event import AuditEvent

FindingKind = Literal[
    "revoked",
    "overtaken",
    "behind",
    "reader",
    "origin",
    "type",
    "rejected",
    "refused",
    "unaccepted",
    "lost",
]
"""What was found, see above."""

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
_OPENING: Final = ("read", "use")
_AT_NODE: Final = ("accept", "reject", "forward", "read", "use", "refuse")
_SETTING: Final = ("set", "reseal", "revoke", "inherit")


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


_Credential = tuple[str | None, str]
"""Namespace and name."""

_Place = tuple[str | None, str, str]
"""Namespace, credential name and the authority at which it is set."""

_NodeId = tuple[str | None, str]
"""Namespace and workflow id."""


@dataclass
class _Node:
    """What a workflow is known to hold.

    Attributes:
        newest: the event that told of the newest message it took, for each name and authority.
        run_id: of its newest run.
        seen: when it was last heard of, and with which event.
        withheld: names that are kept from it.
    """

    newest: dict[tuple[str, str], AuditEvent] = field(
        default_factory=dict[tuple[str, str], AuditEvent]
    )
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
        self._nodes: dict[_NodeId, _Node] = {}
        self._versions: dict[_Place, dict[int, float]] = {}
        self._answers: dict[_Place, dict[int, list[AuditEvent] | None]] = {}
        self._usual: dict[tuple[FindingKind, _Credential], set[str]] = {}
        self._groups: dict[FindingKind, dict[Hashable, _Group]] = {
            kind: {} for kind in FINDING_KINDS
        }

    def take(self, event: AuditEvent) -> None:
        """Look at the next event."""
        if self._usual_until is None:
            self._usual_until = event.time + LEARNING_SECONDS
        if event.action == "lost":
            self._report("lost", None, "events could not be recorded", event, event.count or 0)
        elif event.action == "reject":
            self._rejected(event)
        elif event.action == "refuse":
            self._refused(event)
        elif event.action in _OPENING and _went_out(event):
            self._opened(event)
        elif event.action == "accept":
            self._accepted(event)
        elif event.action in _SETTING and event.outcome == "success":
            self._accepted(event)  # a client is told so by the node
        elif event.action in ("withhold", "share"):
            self._kept(event)
        if event.action in _AT_NODE and event.workflow_id is not None:
            self._node(event).seen = event

    def findings(self) -> list[Finding]:
        """What was found, the gravest kinds first."""
        self._look_who_is_behind()
        for place, answers in self._answers.items():
            for version in sorted(answers):
                self._look_at_answers(place, version)
        return [
            Finding(kind, group.message, group.count, tuple(group.evidence))
            for kind in FINDING_KINDS
            for group in self._groups[kind].values()
        ]

    # --- what is known -------------------------------------------------------

    def _node(self, event: AuditEvent) -> _Node:
        return self._nodes.setdefault((event.namespace, event.workflow_id or ""), _Node())

    def _accepted(self, event: AuditEvent) -> None:
        name, authority, version = event.name, event.authority, event.version
        if name is None or authority is None or version is None:
            return
        node = self._node(event)
        if event.reason == "start" and event.run_id not in (None, node.run_id):
            node.newest.clear()  # the workflow id is used again, for another node
        node.run_id = event.run_id or node.run_id
        known = node.newest.get((name, authority))
        if known is None or (known.version or 0) < version:
            node.newest[name, authority] = event
        if event.kind == "token":
            versions = self._versions.setdefault((event.namespace, name, authority), {})
            versions[version] = min(event.time, versions.get(version, event.time))
            if len(versions) > self._behind:
                del versions[min(versions)]

    def _kept(self, event: AuditEvent) -> None:
        if event.child_id is None or event.name is None:
            return
        child = self._nodes.setdefault((event.namespace, event.child_id), _Node())
        if event.action == "withhold":
            child.withheld.add(event.name)
        elif event.name == "*":
            child.withheld.clear()
        else:
            child.withheld.discard(event.name)

    # --- what is found -------------------------------------------------------

    def _opened(self, event: AuditEvent) -> None:
        self._answered(event)
        name, credential = event.name or "", (event.namespace, event.name or "")
        if not self._ended(event):
            self._older(event)
        origin, workflow_type = event.origin, event.workflow_type
        what = f"{name} was sent to {origin}, which is new for it"
        self._unusual("origin", credential, origin, what, event)
        what = f"{name} was used by the workflow type {workflow_type}, which is new for it"
        self._unusual("type", credential, workflow_type, what, event)
        if (
            self._readers is not None
            and event.action == "read"
            and event.reader is not None
            and event.reader not in self._readers
        ):
            self._report(
                "reader",
                event.reader,
                f"opened with the key {event.reader}, which is not among the known readers",
                event,
            )

    def _answered(self, event: AuditEvent) -> None:
        """Note what the API said of a version; only of the last few of each place."""
        if event.status is None or event.version is None:
            return
        place = (event.namespace, event.name or "", event.authority or "")
        answers = self._answers.setdefault(place, {})
        refused = answers.setdefault(event.version, [])
        if event.status != _UNAUTHORIZED:
            answers[event.version] = None
        elif refused is not None and len(refused) < EVIDENCE:
            refused.append(event)
        if len(answers) > self._behind:
            self._look_at_answers(place, min(answers))

    def _look_at_answers(self, place: _Place, version: int) -> None:
        refused = self._answers[place].pop(version) or []
        for event in refused if len(refused) >= EVIDENCE else ():  # one may cross a rotation
            self._report(
                "unaccepted",
                (place, version),
                f"version {version} of {place[1]}, set at {place[2]}, was only answered with 401",
                event,
            )

    def _ended(self, event: AuditEvent) -> bool:
        """Whether what was opened was ended before, at this node."""
        node = self._node(event)
        for (name, authority), newest in node.newest.items():
            if (
                name != event.name
                or newest.kind != "revocation"
                or not self._is_late(event, newest)
            ):
                continue
            same = authority == event.authority
            if same and (event.version or 0) > (newest.version or 0):
                continue
            if same or self._is_nearer(event, authority):
                self._report(
                    "revoked",
                    (event.namespace, event.workflow_id, name, authority),
                    f"{name} was used at {event.workflow_id} after it had accepted the revocation "
                    f"by {authority}",
                    event,
                    against=newest,
                )
                return True
        return False

    def _is_nearer(self, event: AuditEvent, authority: str) -> bool:
        """Whether an authority stands between a node and the authority of what was opened."""
        if authority == event.workflow_id:
            return True
        # It is below any authority whose messages it took.
        between = self._nodes.get((event.namespace, authority))
        return between is not None and (event.name or "", event.authority or "") in between.newest

    def _older(self, event: AuditEvent) -> None:
        """Report a version that was overtaken before."""
        name, authority, version = event.name or "", event.authority or "", event.version
        if version is None:
            return
        newest = self._node(event).newest.get((name, authority))
        why = f"{event.workflow_id} had accepted a newer one"
        if newest is None:
            newest = self._slowest(event, (name, authority))
            why = "every workflow known to have had it had accepted a newer one"
        if newest is None or (newest.version or 0) <= version or not self._is_late(event, newest):
            return
        self._report(
            "overtaken",
            (event.namespace, event.workflow_id, name, authority),
            f"an older {name} of {authority} was used at {event.workflow_id} after {why}",
            event,
            against=newest,
        )

    def _slowest(self, event: AuditEvent, place: tuple[str, str]) -> AuditEvent | None:
        """The oldest of what the nodes of a place hold."""
        held = [
            node.newest[place]
            for (namespace, _), node in self._nodes.items()
            if namespace == event.namespace and place in node.newest
        ]
        return min(held, key=lambda one: one.version or 0, default=None)

    def _is_late(self, event: AuditEvent, newest: AuditEvent) -> bool:
        return event.time > newest.time + self._grace

    def _unusual(
        self,
        kind: FindingKind,
        credential: _Credential,
        value: str | None,
        what: str,
        event: AuditEvent,
    ) -> None:
        if value is None:
            return
        usual = self._usual.get((kind, credential))
        is_learning = self._usual_until is not None and event.time < self._usual_until
        if is_learning:
            self._usual.setdefault((kind, credential), set()).add(value)
        elif usual is not None and value not in usual:
            self._report(kind, (credential, value), what, event)

    def _rejected(self, event: AuditEvent) -> None:
        self._report(
            "rejected",
            (event.namespace, event.workflow_id, event.issuer, event.reason),
            f"{event.workflow_id} rejected messages that name the issuer {event.issuer}: "
            f"{event.reason}",
            event,
        )

    def _refused(self, event: AuditEvent) -> None:
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
            for (name, authority), newest in node.newest.items():
                versions: Mapping[int, float] = self._versions.get((namespace, name, authority), {})
                seen, oldest = node.seen, min(versions, default=0)
                if (
                    len(versions) < self._behind
                    or (newest.version or 0) >= oldest
                    or newest.kind != "token"
                    or not node.withheld.isdisjoint({name, "*"})
                    or seen is None
                    or seen.time <= max(versions.values()) + self._grace
                ):
                    continue
                self._report(
                    "behind",
                    (namespace, workflow_id, name, authority),
                    f"{workflow_id} has not taken the last {len(versions)} versions of {name} that "
                    f"were set at {authority}",
                    seen,
                    against=newest,
                )

    def _report(
        self,
        kind: FindingKind,
        key: Hashable,
        message: str,
        event: AuditEvent,
        count: int = 1,
        *,
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


def _went_out(event: AuditEvent) -> bool:
    """Whether a token was opened, or sent, whatever the API answered."""
    return event.action == "use" or event.outcome == "success"
