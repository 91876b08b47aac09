"""docs/wire-format.md and its vectors hold for the code."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import pytest
from temporalio.converter import DataConverter

import stateful_workflow
from stateful_workflow import errors
from stateful_workflow.errors import MessageRefused, StatefulError
from stateful_workflow.node.answers import Joiner
from stateful_workflow.node.contract import (
    ACTIVITIES,
    AnnounceRequest,
    MintRequest,
    MintResult,
    NarrowRequest,
    NarrowResult,
    PlaceRequest,
    PlaceResult,
    RecoverResult,
    RetireRequest,
    RetireResult,
    TellRequest,
    TellResult,
    TrustResult,
)
from stateful_workflow.node.describe import View
from stateful_workflow.node.headers import Joined, Start, Use
from stateful_workflow.node.ledger import Child, Ledger, Life, Verdict
from stateful_workflow.node.members import read, to_json
from stateful_workflow.node.renewal import SourceStatus
from stateful_workflow.node.status import state_without
from stateful_workflow.sealed.grants import Granted
from stateful_workflow.sealed.keyring import Keyring
from stateful_workflow.sealed.keys import verify
from stateful_workflow.sealed.message import MAX_MESSAGE_BYTES, Message, parse

Json = dict[str, Any]

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "wire-format.md").read_text(encoding="utf-8")
VECTORS = cast("Json", json.loads((DOCS / "vectors.json").read_text(encoding="utf-8")))
KEYS: dict[str, Json] = VECTORS["keys"]
MESSAGES: dict[str, Json] = {entry["name"]: entry for entry in VECTORS["messages"]}
TOKENS = {name: entry for name, entry in MESSAGES.items() if entry["kind"] == "token"}
GRANTS = {name: entry for name, entry in MESSAGES.items() if entry["kind"] == "grant"}
REFUSED: dict[str, Json] = {entry["name"]: entry for entry in VECTORS["refused"]}
BLOCKS = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", TEXT, re.DOTALL)]

each_message = pytest.mark.parametrize("entry", MESSAGES.values(), ids=MESSAGES)
each_token = pytest.mark.parametrize("entry", TOKENS.values(), ids=TOKENS)
each_refusal = pytest.mark.parametrize("entry", REFUSED.values(), ids=REFUSED)


def message(name: str) -> Message:
    return parse(MESSAGES[name]["message"])


def keyring(
    *names: str, revoked: Sequence[str] = (), limits: dict[str, Json] | None = None
) -> Keyring:
    """A keyring of these keys of the vectors."""
    settings: dict[str, Json] = {name: {"revoked": True} for name in revoked} | (limits or {})
    keys = [{**KEYS[name], "stateful": settings.get(name, {})} for name in names]
    return Keyring.from_json(json.dumps({"keys": keys}))


# --- the vectors against the code ------------------------------------------------


def test_no_name_stands_twice() -> None:
    assert len(MESSAGES) == len(VECTORS["messages"])
    assert len(REFUSED) == len(VECTORS["refused"])


@each_message
def test_a_message_parses_and_verifies(entry: Json) -> None:
    parsed = parse(entry["message"])

    verify(parsed, keyring(entry["issuer"]).trusted())
    assert parsed.kind == entry["kind"]
    assert parsed.issuer == KEYS[entry["issuer"]]["kid"]
    assert list(parsed.readers) == [KEYS[reader]["kid"] for reader in entry["readers"]]
    assert parsed.claims.encode().decode() == entry["claims"]
    assert (parsed.hash, parsed.fingerprint) == (entry["hash"], entry["fingerprint"])
    assert parsed.hash == hashlib.sha256(entry["message"].encode()).hexdigest()
    assert parsed.order == (json.loads(entry["claims"])["ver"], entry["hash"])


@each_token
def test_a_token_opens_for_each_of_its_readers(entry: Json) -> None:
    parsed = parse(entry["message"])
    namespace = json.loads(entry["claims"])["ns"]
    for reader in entry["readers"]:
        keys = keyring(entry["issuer"], reader)
        opened = keys.unseal(parsed, now=0, namespace=namespace, workflow_type=None)
        assert opened.encode().decode() == entry["token"]
        assert opened.content == json.loads(entry["claims"]).get("content")


@pytest.mark.parametrize("entry", GRANTS.values(), ids=GRANTS)
def test_a_grant_opens_for_the_workers_of_sources_at_its_home_alone(entry: Json) -> None:
    parsed, (reader,) = parse(entry["message"]), entry["readers"]
    home: Json = {"namespace": "default", "workflow_id": parsed.claims.authority}
    text = keyring(entry["issuer"], reader).open_grant(parsed, **home)
    assert text == entry["token"]
    assert Granted.from_text(text).to_text() == text
    with pytest.raises(errors.NoReaderKey):
        keyring(entry["issuer"], "reader").open_grant(parsed, **home)
    with pytest.raises(errors.WrongAuthority):
        keyring(entry["issuer"], reader).open_grant(parsed, **{**home, "workflow_id": "other"})


def test_the_order_is_that_of_the_code() -> None:
    assert VECTORS["order"] == sorted(MESSAGES, key=lambda name: message(name).order)


@each_refusal
def test_an_altered_message_is_refused_where_and_as_it_is_said(entry: Json) -> None:
    given: Json = {**entry.get("given", {})}
    if entry["step"] == "parse":
        with pytest.raises(StatefulError) as refusal:
            parse(entry["message"])
    elif entry["step"] == "verify":
        issuers = keyring(*given["trusted"], limits=given.get("limits")).trusted()
        parsed = parse(entry["message"])
        with pytest.raises(StatefulError) as refusal:
            verify(parsed, issuers)
    else:
        parsed = parse(entry["message"])
        verify(parsed, keyring(*given["keyring"]).trusted())
        keys = keyring(*given.pop("keyring"), revoked=given.pop("revoked", ()))
        with pytest.raises(StatefulError) as refusal:
            keys.open(parsed, **given)
    assert type(refusal.value).__name__ == entry["error"]


@pytest.mark.parametrize("case", VECTORS["judged"], ids=lambda case: case["about"])
def test_a_node_judges_as_it_is_said(case: Json) -> None:
    path = tuple(case["path"])
    boundary = dict.fromkeys(case["withheld"], len(path) - 1)
    trusted = keyring(*case["trusted"], limits=case.get("limits")).trusted()
    ledger = Ledger(path, case["tree"], trusted, boundary)
    for step in case["steps"]:
        if "message" not in step:
            revoked = [KEYS[name]["kid"] for name in step.get("revoked", ())]
            known = keyring(*step.get("trust", ()), limits=step.get("limits"))
            ledger.trust(known.trusted(), revoked)
            continue
        try:
            verdict = ledger.accept(message(step["message"]), step["now"]).value
        except MessageRefused as error:
            verdict = type(error).__name__
        in_force = ledger.in_force("apiToken")
        fingerprint = None if in_force is None else in_force.fingerprint
        assert (verdict, fingerprint) == (step["verdict"], step["in_force"]), step


@pytest.mark.parametrize("case", VECTORS["started"], ids=lambda case: case["about"])
def test_a_child_starts_with_the_state_that_is_said(case: Json) -> None:
    node = case["node"]
    trusted = keyring("issuer").trusted()
    ledger = Ledger(tuple(node["path"]), message("token").claims.tree, trusted, node["boundary"])
    for name in node["accepted"]:
        ledger.accept(message(name), 1_800_000_005_000)
    child = Child(case["child"]["id"], "Shop", withheld=frozenset(case["child"]["withheld"]))
    state, _ = ledger.start_child(child)
    given: Json = json.loads(json.dumps(state))

    expected = case["ledger"]
    assert given["held"] == [MESSAGES[name]["message"] for name in expected.pop("held")]
    assert {member: given[member] for member in expected} == expected


@pytest.mark.parametrize("case", VECTORS["joined"], ids=lambda case: case["about"])
def test_who_asks_for_a_place_is_answered_as_is_said(case: Json) -> None:
    node = case["node"]
    trusted = keyring("issuer").trusted()
    ledger = Ledger(tuple(node["path"]), message("token").claims.tree, trusted)
    for child_id, withheld in node["started"].items():
        ledger.start_child(Child(child_id, "Shop", withheld=frozenset(withheld)))
    for name in node["accepted"]:
        ledger.accept(message(name), 1_800_000_005_000)
    asks = read(Joiner, case["asks"])
    answer = View(ledger, 1_800_000_005_000).place(
        Child(asks.id, asks.type), is_open=case["is_open"], as_child=asks.as_child
    )
    given: Json = json.loads(json.dumps(to_json(answer)))

    assert (given["refused"], given["registered"]) == (case["refused"], case["registered"])
    expected = case["ledger"]
    if expected is None:
        assert given["ledger"] is None
    else:
        held = [MESSAGES[name]["message"] for name in expected.pop("held")]
        assert given["ledger"]["held"] == held
        assert {member: given["ledger"][member] for member in expected} == expected


@pytest.mark.parametrize("case", VECTORS["addressed"], ids=lambda case: case["about"])
def test_the_address_in_use_is_the_one_that_is_said(case: Json) -> None:
    node = case["node"]
    tree, trusted = message("token").claims.tree, keyring("issuer").trusted()
    ledger = Ledger(tuple(node["path"]), tree, trusted)
    for name in node["accepted"]:
        ledger.accept(message(name), 1_800_000_005_000)
    view = View(ledger, 1_800_000_005_000, own_url=node["own"], begun_url=node["parent"])

    assert view.api_url("apiToken") == case["used"]


@pytest.mark.parametrize("case", VECTORS["without"])
def test_the_state_without_a_message_in_force_is_the_one_that_is_said(case: Json) -> None:
    assert state_without(**{name: case[name] for name in case.keys() - {"state"}}) == case["state"]


@pytest.mark.parametrize("case", VECTORS["keyrings"], ids=lambda case: case["about"])
def test_a_keyring_is_usable_where_it_is_said(case: Json) -> None:
    text = json.dumps({"keys": case["keys"]})
    if case["kids"] is None:
        with pytest.raises(errors.KeyringError):
            Keyring.from_json(text)
    else:
        assert [key.kid for key in Keyring.from_json(text).keys()] == case["kids"]


def test_the_vectors_show_every_verdict() -> None:
    shown = {entry["error"] for entry in REFUSED.values()}
    shown |= {step.get("verdict") for case in VECTORS["judged"] for step in case["steps"]}
    expected = {error.__name__ for error in MessageRefused.__subclasses__()} - {
        "NotRenewable",  # of updates alone
        "TokenKnown",
        "TooManyWaiting",
    }
    assert expected | {verdict.value for verdict in Verdict} <= shown


def test_making_the_vectors_again_changes_nothing() -> None:
    root = str(Path(stateful_workflow.__file__).parents[1])
    checked = subprocess.run(
        [sys.executable, str(DOCS / "make_vectors.py"), "--check"],
        env={**os.environ, "PYTHONPATH": root},
        check=False,
    )
    assert checked.returncode == 0


# --- the text against the code ---------------------------------------------------


def block(*members: str) -> Json:
    """The one JSON object of the text that has these members."""
    (found,) = [each for each in BLOCKS if set(members) <= each.keys()]
    return found


def shape(value: object) -> object:
    """The members and types of JSON data; an empty list or object has no shape of its own."""
    if isinstance(value, dict):
        members = cast("Json", value)
        return {name: shape(member) for name, member in members.items()}
    if isinstance(value, (list, tuple)):
        return [shape(element) for element in cast("list[object]", value)]
    return type(value).__name__


def test_the_vector_in_the_text_is_the_one_in_the_file() -> None:
    assert block("message", "claims") == MESSAGES["revocation"]


def a_node() -> Ledger:
    """A node with something of everything."""
    token = message("token")
    trusted = keyring("issuer").trusted()
    ledger = Ledger(("tenant-acme", "tenant-acme-eu"), token.claims.tree, trusted, {"billing": 1})
    ledger.trust({}, [KEYS["stranger"]["kid"]])
    now = token.claims.version
    ledger.children["tenant-acme-eu-1"] = Child(
        "tenant-acme-eu-1",
        "Shop",
        Life.RUNNING,
        withheld=frozenset({"billing"}),
        delivered={("apiToken", "tenant-acme"): token.order},
    )
    ledger.share("tenant-acme-eu-1", "apiToken")
    ledger.accept(token, now)
    with pytest.raises(errors.WrongTree) as refusal:
        ledger.check(message("token of an earlier tree"), now)
    ledger.reject(refusal.value, now, message("token of an earlier tree"))
    ledger.rejected = {"TokenStale": 1}
    ledger.last = {"apiToken": token}
    ledger.accept(message("grant at the child"), now)
    return ledger


def test_the_answers_have_the_members_of_the_text() -> None:
    ledger = a_node()
    token = message("token")
    ledger.soft = {}
    ledger.children = {"tenant-acme-eu-1": Child("tenant-acme-eu-1", "Shop", Life.RUNNING)}
    reports = {"apiToken": {token.fingerprint: 1}}
    written = block("undelivered", "rejections")
    sources = [read(SourceStatus, one) for one in written["sources"]]
    view = View(ledger, token.claims.version, [token], reports=reports, sources=sources)
    status = to_json(view.node("Region", courier="q:stateful"))

    assert written.keys() == status.keys()
    # `withheld` is an empty list in the text.
    for name in written.keys() - {"withheld"}:
        assert shape(written[name]) == shape(status[name]), name
    assert shape(block("state", "expires_at")) == shape(view.status("apiToken").to_json())


def test_the_headers_have_the_members_of_the_text() -> None:
    joined = Joined(1, registered=True)
    url = "https://api.example.com"
    start = Start(a_node().dump(), "run", url, None, ("",), since=1, joined=joined)
    written = block("ledger", "since")
    actual = json.loads(json.dumps(start.to_json()))

    assert KEYS["issuer"]["kid"] in written["ledger"]["trusted"]
    assert shape(written) == shape(actual)
    assert Use(**block("own", "last")).to_payload().metadata["encoding"] == b"json/plain"


def test_the_activities_are_those_of_the_text() -> None:
    rows = re.findall(r"^\| `(stateful\w+)` \|(.*)\|(.*)\|$", TEXT, re.MULTILINE)
    assert {name for name, _, _ in rows} == ACTIVITIES
    given = {name: members(result) for name, _, result in rows}
    assert given == {
        "statefulTell": names_of(TellResult),
        "statefulTrust": names_of(TrustResult),
        "statefulRecover": names_of(RecoverResult),
        "statefulJoin": names_of(PlaceResult),
        "statefulMint": names_of(MintResult),
        "statefulRetire": names_of(RetireResult),
        "statefulNeedsAuthorization": set(),
        "statefulNarrow": names_of(NarrowResult),
    }
    taken = {name: members(arguments) for name, arguments, _ in rows}
    assert taken["statefulTell"] == names_of(TellRequest)
    assert taken["statefulJoin"] == names_of(PlaceRequest)
    assert taken["statefulMint"] == names_of(MintRequest)
    assert taken["statefulRetire"] == names_of(RetireRequest)
    assert taken["statefulNeedsAuthorization"] == names_of(AnnounceRequest)
    assert taken["statefulNarrow"] == names_of(NarrowRequest)


def members(cell: str) -> set[str]:
    """What stands in the braces of a table's cell."""
    return set(re.findall(r"\w+", "".join(re.findall(r"`\{(.*?)\}`", cell))))


def names_of(cls: type) -> set[str]:
    return {field.name for field in fields(cls)}


@pytest.mark.parametrize(
    ("written", "cls"),
    [(("targets", "patient"), TellRequest), (("sent", "orphans"), TellResult)],
    ids=["request", "result"],
)
def test_what_is_to_be_told_and_what_came_of_it_is_read_as_the_text_has_it(
    written: tuple[str, ...], cls: type
) -> None:
    converter = DataConverter.default.payload_converter
    [read] = converter.from_payloads(converter.to_payloads([block(*written)]), [cls])

    assert isinstance(read, cls)
    assert json.loads(converter.to_payload(read).data) == block(*written)


def test_every_error_the_text_names_exists() -> None:
    table = TEXT.partition("## Errors")[2].partition("## Test vectors")[0]
    named = re.findall(r"^\| `(\w+)`", table, re.MULTILINE)

    assert {
        error.__name__ for error in (*MessageRefused.__subclasses__(), errors.IssuerLimited)
    } <= set(named)
    for name in named:
        assert issubclass(getattr(errors, name), StatefulError)


def test_the_size_in_the_text_is_the_one_in_the_code() -> None:
    assert f"at most {MAX_MESSAGE_BYTES:,} characters" in TEXT
