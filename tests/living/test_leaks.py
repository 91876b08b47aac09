"""No grant, and no token that a source minted, stands in clear where others read."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import httpx
import pytest
from temporalio.client import Client

from stateful_workflow import GrantRefused, NotRenewed, StatefulPlugin, TokenClient, TokenRefused
from stateful_workflow.audit import AuditFile
from stateful_workflow.engine import start_engine
from stateful_workflow.sealed.message import parse
from stateful_workflow.source import Grant, Minted
from tests.record.test_metrics import Exporter
from tests.support.asking import eventually, lower
from tests.support.living import living_keyring, source_is
from tests.support.trees import Tree
from tests.support.workflows import Plan
from tests.use.test_leaks import files_of, found, new_secret, private_keys

QUERIES = ("apiToken", "apiTokenStatus", "apiUrl", "__temporal_workflow_metadata", "__stack_trace")


class Canaries:
    """A source whose every grant, token and value is a canary."""

    def __init__(self) -> None:
        self.grant = new_secret("grant")
        self.secrets = {self.grant}
        self.dead: set[str] = set()
        self.odd = False

    def made(self, kind: str) -> str:
        secret = new_secret(kind)
        self.secrets.add(secret)
        return secret

    async def mint(self, grant: Grant) -> Minted:
        if self.odd:
            self.odd = False
            raise LookupError(f"{grant['refresh']}: a source of one's own may say anything")
        if grant["refresh"] != self.grant:
            raise GrantRefused("invalid_grant")
        self.grant, token, user = self.made("grant"), self.made("token"), self.made("user")
        return Minted(token, values={"user": user}, grant={"refresh": self.grant})

    async def retire(self, token: str, values: Mapping[str, str]) -> None:
        self.dead.add(token)

    async def probe(self, token: str, values: Mapping[str, str]) -> None:
        if token in self.dead:
            raise TokenRefused("it is not active")


async def lives(home: Tree, source: Canaries) -> None:
    """Let the home of a grant do everything."""
    await home.start(
        Plan({"a": Plan()}),
        api_token=None,
        api_url=None,
        source="own",
        grant={"refresh": source.grant},
        origins=["https://api.example.com"],
    )
    await source_is(home.tokens, home.root, lambda status: status.state == "fresh")
    await home.opened("", "a")
    await home.tokens.renew(home.root, retire=True)

    source.odd = True
    await home.tokens.renew(home.root)
    await home.rotate(source.made("by-hand"))
    await home.goes_on()

    source.grant = source.made("grant")  # which nobody knows
    with pytest.raises(NotRenewed):
        await home.tokens.renew(home.root)
    await source_is(home.tokens, home.root, lambda status: status.needs_authorization)
    grant = {"refresh": source.grant}
    await home.tokens.authorize(home.root, source="own", grant=grant, retire=True)
    await source_is(home.tokens, home.root, lambda status: status.state == "fresh")


async def histories(client: Client) -> dict[str, bytes]:
    """All events, results and descriptions of all runs, by workflow id."""
    found: dict[str, bytes] = {}
    async for run in client.list_workflows():
        handle = client.get_workflow_handle(run.id, run_id=run.run_id)
        history, described = await handle.fetch_history(), await handle.describe()
        events = b"".join(event.SerializeToString() for event in history.events)
        raw = described.raw_description.SerializeToString()
        found[run.id] = found.get(run.id, b"") + events + history.to_json().encode() + raw
    return found


async def test_nothing_that_a_source_gives_or_is_given_stands_in_clear_anywhere(
    tmp_path: Path,
    queue: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    lower(monkeypatch, fresh_seconds=0.5)
    source, keyring, marker = Canaries(), living_keyring(), new_secret("marker")
    told: list[object] = []
    exporter = Exporter()
    record = AuditFile(tmp_path / "audit.jsonl")
    plugin = StatefulPlugin(
        keyring, sources={"own": source}, on_dead_grant=told.append, audit=record
    )
    async with start_engine(db=tmp_path / "temporal.db", ui=False) as engine:
        client = await Client.connect(engine.address, plugins=[plugin], runtime=exporter.runtime)
        home = Tree(client, TokenClient(client, keyring), queue, queue)
        async with home.worker():
            await lives(home, source)
            await home.signal("", "note", marker)

            async def is_announced() -> None:
                assert told

            await eventually(is_announced)
            asked = [await home[at].query(query) for at in ("", "a") for query in QUERIES]
            child = {"id": home.id("a"), "type": "Node", "as_child": True}
            asked.append(await home[""].query("apiTokenJoin", child))
            assert asked[-1]["ledger"]["held"]
            carried = [await home[at].query("statefulState") for at in ("", "a")]
            kept = await histories(client)
            async with httpx.AsyncClient(trust_env=False) as http:
                metrics = (await http.get(f"http://{exporter.address}/metrics")).text
        record.close()
        stored = files_of(tmp_path / "temporal.db")

    logging.getLogger("tests.leaks").debug("Planted: %s", marker)
    print(marker)
    audit = (tmp_path / "audit.jsonl").read_bytes()
    places = {
        "engine": stored,
        "audit": audit + marker.encode(),
        "metrics": f"{metrics}{marker}".encode(),
        "logs": (caplog.text + repr([vars(one) for one in caplog.records])).encode(),
        "printed": "".join(capfd.readouterr()).encode(),
        "answers": repr([marker, *asked, *carried, *told]).encode(),
        "histories": b"".join(kept.values()),
    }
    assert [place for place, data in places.items() if not found(marker, data)] == []
    secrets = {**dict.fromkeys(source.secrets), **private_keys(keyring)}
    assert {
        (place, name, form)
        for place, data in places.items()
        for name, value in secrets.items()
        for form in found(value or name, data)
    } == set()
    # It lived through all of that.
    assert len(source.secrets) == 15
    for action in ("authorize", "renew", "mint", "retire", "needs_authorization"):
        assert f'"event.action":"{action}"'.encode() in audit
    assert b'action="mint"' in places["metrics"]
    assert b"which is no SourceError" in places["logs"]

    # Sealed, a grant stands at its home, in its histories and in what the next run is given: not in
    # an answer that people ask for, and nowhere below.
    grants: list[str] = carried[0]["ledger"]["grants"]
    assert [parse(text).kind for text in grants] == ["grant"]
    assert carried[1]["ledger"]["grants"] == []
    kind = parse(grants[0]).text.partition(".")[0]  # as every grant's begins
    assert kind not in repr(asked)
    assert kind.encode() in kept[home.root]
    assert kind.encode() not in kept[home.id("a")]
    assert kind.encode() not in audit + metrics.encode()
