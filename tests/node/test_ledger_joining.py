"""A ledger's part in joining: whom it takes, and what a place in another tree leaves of it."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace

import pytest

from stateful_workflow.errors import MessageRefused, TokenWithheld
from stateful_workflow.node.carried import StateUnreadable
from stateful_workflow.node.ledger import ALL, Child, Ledger, Life, Verdict
from stateful_workflow.sealed.message import DEFAULT_NAME
from tests.support.builders import (
    NOW,
    ROOT,
    issuer,
    life,
    node,
    restarted,
    revocation,
    started,
    token,
    told,
    trusted,
)

MANY = 1_000
GUEST = Child("guest", "Guest")


def alone(id: str = "guest", **settings: object) -> Ledger:
    """A workflow without a place."""
    return replace_of(Ledger((id,), f"tree-of-{id}", trusted()), **settings)


def replace_of(ledger: Ledger, **settings: object) -> Ledger:
    vars(ledger).update(settings)
    return ledger


def placed(host: Ledger, child: Child = GUEST) -> Ledger:
    """What a host gives, as it arrives."""
    return Ledger.load(json.loads(json.dumps(host.state_for(child).dump())))


def entered(ledger: Ledger, state: Ledger) -> Ledger:
    """After it took this place, and judged what stands there."""
    for message in ledger.enter(state):
        with suppress(MessageRefused):
            ledger.accept(message, NOW)
    return ledger


# --- the host ------------------------------------------------------------------------------------


def test_who_joins_is_in_doubt_and_is_told_what_is_set_from_then_on() -> None:
    host = node(holds=[token()])
    host.join(GUEST, MANY)
    assert life(host) == {"guest": Life.IN_DOUBT}

    newer = token(NOW + 1)
    host.accept(newer, NOW)
    assert told(host) == {}, "before the server has said that it runs"
    host.take_back("guest")
    assert told(host) == {"guest": [newer]}


def test_who_joins_is_never_one_that_the_node_started_or_stands_below() -> None:
    host = node(ROOT, "mid")
    started(host, "child", withheld=frozenset({ALL}))
    for id in ("child", ROOT, "mid"):
        host.join(Child(id, "Guest"), MANY)

    assert host.children.keys() == {"child"}
    assert not host.children["child"].joined
    assert host.children["child"].withheld == {ALL}


def test_a_node_has_so_many_joined_and_one_that_joins_again_finds_its_place() -> None:
    host = node(holds=[token()])
    for id in ("a", "b", "a"):
        host.join(Child(id, "Guest"), 1)
    assert host.children.keys() == {"a"}
    started(host, "child")
    assert host.children.keys() == {"a", "child"}


@pytest.mark.parametrize("type", ["Guest", "Other"])
def test_whoever_says_that_one_joins_again_keeps_nothing_from_it(type: str) -> None:
    host = node()
    host.join(GUEST, MANY)
    host.take_back("guest")
    host.accept(token(), NOW)

    host.join(Child("guest", type), MANY)

    assert host.children["guest"].type == "Guest"
    assert told(host) == {"guest": [token()]}


def test_floors_that_nobody_can_have_accepted_do_not_count() -> None:
    state = placed(node())
    far = 2**53 - 1
    state.floors = {(DEFAULT_NAME, ROOT): {issuer(): (far, "f" * 64)}}
    guest = entered(alone(), state)

    assert guest.accept(token(), NOW) is Verdict.ACCEPTED
    assert guest.floors[(DEFAULT_NAME, ROOT)][issuer()] == token().order


@pytest.mark.parametrize("index", [-1, 2, 99])
def test_a_place_with_a_boundary_outside_its_path_is_none(index: int) -> None:
    data = node().state_for(GUEST).dump()
    with pytest.raises(StateUnreadable):
        Ledger.load({**data, "boundary": {"*": index}})


def test_those_that_joined_are_doubted_together_and_others_are_not() -> None:
    host = node()
    started(host, "child")
    for id in ("a", "b"):
        host.join(Child(id, "Guest"), MANY)
        host.take_back(id)
    host.doubt_joined()
    assert life(host) == {"child": Life.RUNNING, "a": Life.IN_DOUBT, "b": Life.IN_DOUBT}


def test_what_joined_is_carried_to_the_next_run() -> None:
    host = node(holds=[token()])
    host.join(GUEST, MANY)
    [guest] = restarted(host).children.values()
    assert (guest.joined, guest.life) == (True, Life.IN_DOUBT)


def test_a_state_for_one_that_asks_registers_nobody() -> None:
    host = node(holds=[token()])
    before = host.dump()
    assert placed(host).path == (ROOT, "guest")
    assert host.dump() == before


# --- the guest -----------------------------------------------------------------------------------


def test_a_place_gives_the_token_and_who_is_trusted() -> None:
    guest = entered(alone(), placed(node(holds=[token()])))

    assert guest.in_force("apiToken") == token()
    assert guest.trusted.keys() == {issuer()}
    assert (guest.path, guest.tree) == ((ROOT, "guest"), token().claims.tree)


def test_a_token_of_before_falls_away_and_children_of_before_lack_all() -> None:
    guest = alone(trusted=trusted("ours"))
    own = token(at="guest", root="guest", tree=guest.tree)
    guest.accept(own, NOW)
    started(guest, "child")
    assert told(guest) == {}

    entered(guest, placed(node(holds=[token()])))

    assert guest.held == {("apiToken", ROOT): token()}
    assert told(guest) == {"child": [token()]}


def test_what_it_was_started_without_stays_so_in_another_tree() -> None:
    child = Ledger(("mid", "guest"), "tree-of-mid", trusted(), {"billing": 1, "*": 0, "own": 0})
    state = placed(node(ROOT, "mid", holds=[token(name="billing"), token()]), GUEST)

    entered(child, state)

    assert child.path == (ROOT, "mid", "guest")
    assert child.boundary == {"billing": 2}
    assert child.in_force("billing") is None
    assert child.in_force("apiToken") == token()


def test_what_one_above_it_was_started_without_stays_so() -> None:
    guest = Ledger(("top", "mid", "guest"), "old", trusted(), {"billing": 1, "other": 1})
    state = placed(node(ROOT, "mid", holds=[token(name="billing")]))
    entered(guest, state)
    assert guest.boundary == {"billing": 1, "other": 1}, "which is mid's place now too"

    elsewhere = Ledger(("top", "mid", "guest"), "old", trusted(), {"billing": 1})
    entered(elsewhere, placed(node(holds=[token(name="billing")])))
    assert elsewhere.boundary == {"billing": 1}
    with pytest.raises(TokenWithheld):
        elsewhere.accept(token(NOW + 1, name="billing"), NOW)


def test_the_place_withholds_too() -> None:
    host = node(holds=[token()])
    guest = entered(alone(), placed(host, replace(GUEST, withheld=frozenset({ALL}))))

    assert guest.in_force("apiToken") is None
    assert guest.withheld() == (ALL,)


def test_asking_again_brings_what_is_newer_and_takes_nothing_back() -> None:
    host = node(holds=[token()])
    older = placed(host)
    host.accept(token(NOW + 1), NOW)
    guest = entered(alone(), placed(host))
    assert guest.in_force("apiToken") == token(NOW + 1)

    entered(guest, older)

    assert guest.in_force("apiToken") == token(NOW + 1)
    host.accept(revocation(NOW + 2), NOW)
    in_force = entered(guest, placed(host)).in_force("apiToken")
    assert in_force is not None
    assert in_force.kind == "revocation"
