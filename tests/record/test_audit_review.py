"""What deserves a look is found in a trail, and nothing in a clean one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from stateful_workflow.record.audit.chain import RecordedEvent
from stateful_workflow.record.audit.reviewing import (
    FINDING_KINDS,
    GRACE_SECONDS,
    LEARNING_SECONDS,
    Finding,
    FindingKind,
    review,
)
from stateful_workflow.record.event import Action, AuditEvent, Outcome

START = 1_800_000_000.0
HOUR, DAY = 3600.0, 86400.0
ROOT, CHILD = "orders", "orders/1"


def event(
    at: float,
    action: Action,
    outcome: Outcome = "success",
    *,
    workflow: str = CHILD,
    version: int | None = 1,
    authority: str | None = ROOT,
    kind: str | None = "token",
    **more: Any,
) -> AuditEvent:
    """An event so many seconds after the start of the trail."""
    return AuditEvent(
        time=START + at,
        action=action,
        outcome=outcome,
        namespace="default",
        workflow_id=workflow,
        workflow_type=more.pop("workflow_type", "Order"),
        name=more.pop("name", "apiToken"),
        kind=kind,
        version=version,
        authority=authority,
        **more,
    )


def accept(at: float, version: int, **more: Any) -> AuditEvent:
    return event(at, "accept", version=version, **more)


def revoked(at: float, version: int, **more: Any) -> AuditEvent:
    return event(at, "accept", version=version, kind="revocation", **more)


def use(at: float, version: int = 1, **more: Any) -> AuditEvent:
    return event(
        at,
        "use",
        version=version,
        origin=more.pop("origin", "https://api.example.com"),
        method="GET",
        status=more.pop("status", 200),
        **more,
    )


def read(at: float, version: int = 1, **more: Any) -> AuditEvent:
    return event(at, "read", version=version, reader=more.pop("reader", "reader-1"), **more)


def kinds(trail: list[AuditEvent], **options: Any) -> list[FindingKind]:
    return [finding.kind for finding in review(trail, **options)]


def only(trail: list[AuditEvent], **options: Any) -> Finding:
    (finding,) = review(trail, **options)
    return finding


def clean() -> list[AuditEvent]:
    """A root and a child, a rotation, a revocation, and a token that is set again."""
    return [
        event(0, "set", "unknown", workflow=ROOT),
        event(1, "set", workflow=ROOT),
        accept(1, 1, workflow=ROOT, reason="start", run_id="r0"),
        event(2, "forward", workflow=ROOT, child_id=CHILD),
        accept(2, 1, reason="start", run_id="r1"),
        read(3),
        use(3),
        use(4, status=401),
        accept(HOUR, 2, workflow=ROOT),
        accept(HOUR + 1, 2),
        use(HOUR + 2, 1),  # was under way
        read(HOUR + 30, 2),
        use(HOUR + 30, 2),
        revoked(2 * HOUR, 3, workflow=ROOT),
        revoked(2 * HOUR, 3),
        use(2 * HOUR + 1, 2),
        accept(3 * HOUR, 4, workflow=ROOT),
        accept(3 * HOUR, 4),
        use(3 * HOUR + 20, 4),
        event(3 * HOUR + 30, "withhold", workflow=ROOT, child_id="other", name="*", version=None),
    ]


def test_in_a_clean_trail_nothing_is_found() -> None:
    assert review(clean(), known_readers=["reader-1"]) == []
    assert review(clean(), known_readers=["reader-1"], since=START + HOUR) == []
    assert review([]) == []


def test_a_trail_is_any_iterable_and_gone_through_once() -> None:
    def going_by() -> Iterator[AuditEvent]:
        yield from clean()

    assert review(going_by()) == []


# --- after a revocation ------------------------------------------------------


@pytest.mark.parametrize("opened", [read, use])
def test_a_token_that_is_used_after_its_revocation_is_found(opened: Any) -> None:
    revocation, late = revoked(10, 2), opened(60, 1)
    finding = only([accept(1, 1), opened(5, 1), revocation, late])
    assert finding.kind == "revoked"
    assert finding.message == (
        "apiToken was used at orders/1 after it had accepted the revocation by orders"
    )
    assert finding.evidence == (revocation, late)
    assert finding.count == 1


def test_what_was_under_way_when_it_was_revoked_is_not_found() -> None:
    assert review([accept(1, 1), revoked(10, 2), use(10 + GRACE_SECONDS, 1)]) == []
    assert kinds([accept(1, 1), revoked(10, 2), use(11, 1)], grace=0) == ["revoked"]


def test_an_answer_that_says_no_is_a_use_and_a_refusal_is_none() -> None:
    trail = [accept(1, 1), revoked(10, 2)]
    assert kinds([*trail, use(60, 1, status=401)]) == ["revoked"]
    refused = event(60, "refuse", "failure", reason="TokenRevoked")
    assert kinds([*trail, refused]) == ["refused"]


def test_a_revocation_elsewhere_does_not_concern_a_workflow_that_has_a_token_of_its_own() -> None:
    own = accept(2, 2, authority=CHILD)
    assert review([accept(1, 1), own, revoked(10, 3), use(60, 2, authority=CHILD)]) == []


def test_a_workflow_that_revoked_its_own_does_not_fall_back_on_its_ancestors() -> None:
    ended = revoked(10, 3, authority=CHILD)
    trail = [accept(1, 1), accept(2, 2, authority=CHILD), ended]
    assert kinds([*trail, use(60, 1, authority=ROOT)]) == ["revoked"]
    inherits = accept(20, 4, authority=CHILD, kind="inherit")
    assert review([*trail, inherits, use(60, 1, authority=ROOT)]) == []


def test_a_revocation_between_a_workflow_and_the_authority_of_its_token_counts() -> None:
    between = "orders/group"
    trail = [
        accept(1, 1, workflow=between),
        accept(1, 1),
        revoked(10, 2, workflow=between, authority=between),
        revoked(10, 2, authority=between),
    ]
    assert kinds([*trail, use(60, 1)]) == ["revoked"]
    # Where that is not known to be in between, nothing is said.
    assert review([*trail[1:2], *trail[3:], use(60, 1)]) == []


def test_another_name_or_namespace_is_another_credential() -> None:
    trail = [accept(1, 1), revoked(10, 2)]
    assert review([*trail, use(60, 1, name="other")]) == []
    assert review([*trail, replace(use(60, 1), namespace="other")]) == []


def test_a_workflow_id_that_is_used_again_is_another_workflow() -> None:
    trail = [
        accept(1, 1, reason="start", run_id="r1"),
        revoked(10, 5, authority=CHILD, run_id="r1"),
        accept(100, 1, reason="start", run_id="r2"),
    ]
    assert review([*trail, use(200, 1, run_id="r2")]) == []
    carried = accept(100, 1, reason="continued", run_id="r2")
    assert kinds([*trail[:2], carried, use(200, 1, run_id="r2")]) == ["revoked"]


# --- an older version --------------------------------------------------------


def test_an_older_version_after_the_workflow_took_a_newer_one_is_found() -> None:
    newer, late = accept(10, 2), use(60, 1)
    finding = only([accept(1, 1), newer, late])
    assert finding.kind == "overtaken"
    assert "was used at orders/1 after it had accepted a newer one" in finding.message
    assert finding.evidence == (newer, late)


def test_what_a_client_was_told_counts_as_taken_by_the_workflow() -> None:
    told = event(10, "set", workflow=ROOT, version=2)
    assert kinds([told, use(60, 1, workflow=ROOT)]) == ["overtaken"]
    unknown = event(10, "set", "unknown", workflow=ROOT, version=2)
    assert review([unknown, use(60, 1, workflow=ROOT)]) == []


def test_versions_of_different_authorities_are_not_compared() -> None:
    assert review([accept(1, 1), accept(10, 2, authority=CHILD), use(60, 1)]) == []


# --- behind ------------------------------------------------------------------


def rotations(count: int) -> list[AuditEvent]:
    return [accept(100.0 * n, n, workflow=ROOT) for n in range(2, 2 + count)]


def test_a_workflow_that_has_none_of_the_last_versions_is_found_where_it_is_alive() -> None:
    held, late = accept(1, 1), use(1000, 1)
    finding = only([accept(1, 1, workflow=ROOT), held, *rotations(3), late])
    assert finding.kind == "behind"
    assert finding.message == (
        "orders/1 has not taken the last 3 versions of apiToken that were set at orders"
    )
    assert finding.evidence == (held, late)
    assert review([accept(1, 1, workflow=ROOT), held, *rotations(3)]) == []


def test_how_many_versions_is_an_option() -> None:
    trail = [accept(1, 1), *rotations(2), use(1000, 1)]
    assert review(trail) == []
    assert kinds(trail, behind=2) == ["behind"]
    assert kinds(trail, behind=1) == ["behind"]
    with pytest.raises(ValueError, match="above 0"):
        review([], behind=0)


def test_one_from_whom_it_is_withheld_is_not_behind() -> None:
    trail = [accept(1, 1), event(2, "withhold", workflow=ROOT, child_id=CHILD), *rotations(3)]
    assert review([*trail, use(1000, 1)]) == []
    shared = event(500, "share", workflow=ROOT, child_id=CHILD, name="*")
    assert kinds([*trail, shared, use(1000, 1)]) == ["behind"]


# --- readers, origins, types -------------------------------------------------


def test_a_reader_who_is_not_known_is_found() -> None:
    trail = [read(1), read(2, reader="reader-2"), read(3, reader="reader-2")]
    finding = only(trail, known_readers=["reader-1"])
    assert (finding.kind, finding.count, finding.evidence) == ("reader", 2, tuple(trail[1:]))
    assert "opened with the key reader-2" in finding.message
    assert review(trail) == []


@pytest.mark.parametrize(
    ("kind", "changes"),
    [("origin", {"origin": "https://evil.example"}), ("type", {"workflow_type": "Evil"})],
)
def test_what_is_new_for_a_credential_is_found(kind: str, changes: dict[str, Any]) -> None:
    usual = [use(1), use(HOUR)]
    late = LEARNING_SECONDS + 2
    assert kinds([*usual, use(late, **changes)]) == [kind]
    assert review([*usual, use(DAY / 2, **changes), use(late, **changes)]) == []
    assert kinds([*usual, use(2 * HOUR, **changes)], since=START + HOUR + 1) == [kind]
    # A credential of which nothing is known yet has nothing that is usual.
    assert review([*usual, use(late, name="another", **changes)]) == []


# --- rejected, refused, lost -------------------------------------------------


def test_rejected_messages_are_found_by_workflow_issuer_and_reason() -> None:
    def reject(issuer: str, reason: str, **more: Any) -> AuditEvent:
        return event(1, "reject", "failure", issuer=issuer, reason=reason, **more)

    trail = [
        reject("mallory", "TokenForged"),
        reject("mallory", "TokenForged"),
        reject("mallory", "TokenForged", workflow=ROOT),
        reject("issuer", "TokenStale"),
    ]
    found = review(trail)
    assert [(one.kind, one.count) for one in found] == [("rejected", n) for n in (2, 1, 1)]
    assert found[0].message == (
        "orders/1 rejected messages that name the issuer mallory: TokenForged"
    )


@pytest.mark.parametrize(
    ("reason", "said"), [("NotSealed", "in clear text"), ("TokenMalformed", "no message")]
)
def test_of_what_is_no_message_no_issuer_is_named(reason: str, said: str) -> None:
    finding = only([event(1, "reject", "failure", reason=reason, kind=None, version=None)])
    assert said in finding.message
    assert "None" not in finding.message


def test_that_a_token_is_withheld_is_no_refusal() -> None:
    def refused(at: float, reason: str = "TokenNotSet", **more: Any) -> AuditEvent:
        return event(at, "refuse", "failure", reason=reason, **more)

    withheld = event(2, "withhold", workflow=ROOT, child_id=CHILD, name="*")
    assert review([withheld, refused(3), refused(4, "TokenWithheld", workflow="elsewhere")]) == []
    shared = event(5, "share", workflow=ROOT, child_id=CHILD, name="*")
    assert kinds([withheld, shared, refused(6)]) == ["refused"]
    assert kinds([withheld, refused(7, "TokenForged")]) == ["refused"]


def set_with(at: float, action: Action = "set", **terms: Any) -> AuditEvent:
    given: dict[str, Any] = {"origins": "https://*.example.com", "types": "Order", "readers": "eu"}
    return event(at, action, workflow=ROOT, version=int(at), **{**given, **terms})


@pytest.mark.parametrize(
    ("terms", "said"),
    [
        ({"origins": "https://api.example.com https://evil.example"}, "to https://evil.example"),
        ({"types": "Order Bill"}, "to the workflow types Bill"),
        ({"types": None}, "to all workflow types"),
        ({"readers": "us"}, "to the readers us"),
        ({"readers": None, "types": None}, "to all workflow types, to all readers"),
    ],
)
def test_a_token_that_reaches_further_than_the_one_before_it_is_found(
    terms: dict[str, Any], said: str
) -> None:
    before, revoked_then = set_with(1), event(2, "revoke", workflow=ROOT, kind="revocation")
    again: tuple[Action, ...] = ("set", "reseal")
    for action in again:
        wider = set_with(3, action, **terms)
        finding = only([before, revoked_then, wider, set_with(4, **terms)])
        assert (finding.kind, finding.count) == ("widened", 1)
        assert finding.message == f"apiToken that was set at orders reaches further: {said}"
        assert finding.evidence == (before, wider)
    sealed = replace(set_with(3, **terms), outcome="unknown", activity_id="1")
    assert kinds([before, sealed]) == ["widened"]


def test_one_that_reaches_less_far_or_was_never_set_is_not() -> None:
    narrow: dict[str, Any] = {"origins": "https://api.example.com", "types": ""}
    failed = replace(set_with(3, types=None), outcome="failure")
    assert review([set_with(1), set_with(2, **narrow), failed]) == []
    assert review([set_with(1, types=None, readers=None), set_with(2)]) == []
    assert review([set_with(1), set_with(2, types=None, name="other")]) == []


def test_refusals_are_found_by_reason_and_origin() -> None:
    trail = [
        event(1, "refuse", "failure", reason="OriginNotAllowed", origin="https://evil.example"),
        event(2, "refuse", "failure", reason="TokenExpired"),
        event(3, "refuse", "failure", reason="TokenExpired"),
    ]
    found = review(trail)
    assert [(one.kind, one.count) for one in found] == [("refused", 1), ("refused", 2)]
    assert "refused for https://evil.example" in found[0].message


def test_lost_events_are_found_and_added_up() -> None:
    lost = [AuditEvent(time=START + n, action="lost", outcome="failure", count=n) for n in (3, 4)]
    finding = only(list(lost))
    assert (finding.kind, finding.count, finding.evidence) == ("lost", 7, tuple(lost))


# --- in general --------------------------------------------------------------


def test_what_was_before_the_time_asked_for_is_known_but_not_reported() -> None:
    trail = [accept(1, 1), revoked(10, 2), use(60, 1), use(HOUR, 1)]
    assert only(trail).count == 2
    assert only(trail, since=START + 100).count == 1
    assert review(trail, since=START + DAY) == []


def test_the_gravest_comes_first() -> None:
    trail = [
        AuditEvent(time=START, action="lost", outcome="failure", count=1),
        event(1, "refuse", "failure", reason="TokenExpired"),
        accept(1, 1),
        revoked(10, 2),
        use(60, 1),
    ]
    found = kinds(trail)
    assert found == sorted(found, key=list(FINDING_KINDS).index) == ["revoked", "refused", "lost"]


def test_what_a_sender_may_choose_fills_no_memory() -> None:
    def flood() -> Iterator[AuditEvent]:
        for number in range(5_000):
            yield event(1, "reject", "failure", issuer=f"kid-{number}", reason="TokenForged")

    found = review(flood())
    assert len(found) == 1_001
    assert sum(one.count for one in found) == 5_000
    assert all(len(one.evidence) <= 3 for one in found)
    assert "more of the same kind" in found[-1].message


def test_evidence_says_where_it_was_read() -> None:
    late = RecordedEvent(**vars(use(60, 1)), file="audit.jsonl", sequence=7)
    shown = only([accept(1, 1), revoked(10, 2), late]).evidence[1]
    assert isinstance(shown, RecordedEvent)
    assert (shown.file, shown.sequence) == ("audit.jsonl", 7)


def test_a_version_that_the_api_has_only_refused_is_found() -> None:
    mixed = [use(1, 1, status=401), use(2, 1), *(use(n, 1, status=401) for n in (3, 4, 5))]
    refused = [use(n, 2, status=401) for n in (6, 7, 8)]
    assert review([*mixed, *refused[:2]]) == []
    found = only([*mixed, *refused, use(9, 3)])
    assert (found.kind, found.count, found.evidence) == ("unaccepted", 3, tuple(refused))
    assert review([*mixed, *refused, use(9, 2)]) == []


def test_a_fallback_is_no_version_that_could_be_refused() -> None:
    none: Any = None
    refused = [
        replace(use(n, status=401, reason="fallback"), version=none, authority=none)
        for n in range(1, 9)
    ]
    assert review(refused) == []


# --- tokens of sources ----------------------------------------------------------------------------


def test_a_token_that_is_used_after_it_was_retired_is_found() -> None:
    trail = [
        accept(0, 1),
        event(1, "retire", "unknown", workflow=ROOT),
        use(2),
        event(3, "retire", workflow=ROOT),
        use(4),
        read(5),
    ]
    (found,) = review(trail)
    assert (found.kind, found.count) == ("retired", 2)
    assert found.evidence == (trail[3], trail[4], trail[5])


def test_a_grant_overtakes_no_token_and_reaches_no_further() -> None:
    assert (
        review(
            [
                event(0, "set", origins="https://api.example.com"),
                event(1, "authorize", version=9, kind="grant", workflow=ROOT),
                accept(1, 9, kind="grant"),
                event(2, "mint", "failure", reason="unreachable", version=None),
                use(3600),
            ]
        )
        == []
    )
