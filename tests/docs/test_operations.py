"""The procedures of docs/operations.md are followed, each with its trouble made first.

A section's shell blocks run in their order, as a reader would run them; between them stands what
he would do by hand, such as starting a worker.
"""

from __future__ import annotations

import asyncio
import errno
import shutil
import socket
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
from temporalio.client import Client, WorkflowHandle, WorkflowUpdateStage
from temporalio.common import RetryPolicy

from stateful_workflow import (
    Keyring,
    NotConverged,
    NotRenewed,
    ProviderUnreachable,
    StatefulPlugin,
    TokenClient,
)
from stateful_workflow.audit import AuditEvent, AuditFile
from stateful_workflow.engine import EmbeddedEngine, start_engine
from stateful_workflow.errors import MessageRefused, TokenForged, TokenMalformed
from stateful_workflow.record.metrics import OF_SOURCES
from stateful_workflow.sealed.message import parse
from tests.conftest import DELETE_SOON
from tests.docs.reader import BLOCKS, PROJECT, Block, Reader
from tests.record.test_metrics import EVERYTHING, scrape
from tests.support.api import Api, start_api
from tests.support.asking import (
    WITHIN,
    delete_run,
    eventually,
    next_run,
    nodes_run,
    run_id,
    sealed_at,
    start_worker,
    status_of,
)
from tests.support.living import Provider, source_is
from tests.support.tools import needs
from tests.support.use_workflows import Caller, Distant, Job
from tests.support.workflows import Flaky, Node, Plan, shown
from tests.worker.test_unreachable import FEW_SIGNALS, SIGNALS

DOCUMENT: Final = "docs/operations.md"
ROOT, CHILD = "tenant-acme", "tenant-acme-sync-0"
FIRST, SECOND, STOLEN = "operations-token-1", "operations-token-2", "operations-stolen"
ELSEWHERE: Final = "https://api.example.com"
FAILED = ("mint", "failure")
BEHIND, FOUND = 3, 1
"""Exit statuses of `stateful tree` and of `stateful audit review`."""


def blocks(heading: str, kind: str = "sh") -> list[Block]:
    """The blocks of a section, in order."""
    found = [b for b in BLOCKS if (b.document, b.heading, b.kind) == (DOCUMENT, heading, kind)]
    assert found, f"{DOCUMENT} has no {kind} block under {heading!r}"
    return found


class Volume:
    """An audit file on a volume that may be full."""

    is_local = True

    def __init__(self, path: Path) -> None:
        self.is_full = False
        self._file = AuditFile(path)

    def record(self, event: AuditEvent) -> None:
        if self.is_full:
            raise OSError(errno.ENOSPC, "No space left on device")
        self._file.record(event)

    def close(self) -> None:
        self._file.close()


class Site(Reader):
    """A server, an API, and a worker with its keyring and its record.

    Attributes:
        client, tokens: of the worker's process, with its part of the keyring.
        issuer: as a program that sets tokens has it.
        audit: the worker's record.
    """

    def __init__(self, home: Path, engine: EmbeddedEngine, api: Api) -> None:
        super().__init__(home, engine, api)
        (home / "record").mkdir()
        whole = Keyring.generate()
        whole.save(home / "keyring.json")
        whole.only(readers=["default"]).save(home / "worker.json")
        self.secrets = {FIRST, SECOND}
        self.audit_path = home / "record" / "worker.jsonl"
        self.environment.update(
            AUDIT=str(self.audit_path),
            STATEFUL_AUDIT=str(self.home / "operator.jsonl"),
            NEW_TOKEN=SECOND,
        )
        self.audit = Volume(self.audit_path)
        self.client: Client
        self.issuer: TokenClient

    async def connect(self) -> None:
        worker_keyring = Keyring.load(self.home / "worker.json")
        plugin = StatefulPlugin(worker_keyring, audit=self.audit)
        self.client = await Client.connect(self.engine.address, plugins=[plugin])
        program = await Client.connect(self.engine.address)
        self.issuer = TokenClient(program, self.keyring)

    async def start(self, run: Any, *args: Any, **options: Any) -> WorkflowHandle[Any, Any]:
        """Start the root with the first token, for the API unless the options say otherwise."""
        settings: dict[str, Any] = {"api_token": FIRST, "origins": [self.api.origin], **options}
        return await self.issuer.start_workflow(
            run, args=args, id=ROOT, task_queue="tenants", **settings
        )

    async def start_tree(self, **options: Any) -> None:
        """A root with one child, both holding the first token."""
        await self.start(Node.run, Plan({"sync-0": Plan()}), **options)
        await nodes_run(self.issuer, ROOT, 2)

    async def insist(self, caller: WorkflowHandle[Any, Any]) -> Any:
        """Have it call the API until that is answered 200."""
        job = Job([self.api.url("items")], insist=True, attempts=0)
        return await caller.start_update("do", job, wait_for_stage=WorkflowUpdateStage.ACCEPTED)

    async def start_distant_child(self) -> None:
        """A root with one child whose task queue nobody polls."""
        await self.start(Distant.run, {"sync-0": "syncs"})
        await self.comes_to_say(
            ROOT, lambda said: [child["life"] for child in said["children"]] == ["running"]
        )

    async def comes_to_say(self, workflow_id: str, holds: Callable[[Any], bool]) -> None:
        """Wait until this holds of a workflow's status."""

        async def does_say() -> bool:
            return holds(await status_of(self.client, workflow_id))

        await eventually(does_say)

    async def use_up_signals(self, workflow_id: str) -> None:
        handle = self.client.get_workflow_handle(workflow_id)
        await asyncio.gather(*[handle.signal("note", str(n)) for n in range(SIGNALS)])

    async def opened(self, workflow_id: str) -> str:
        """What an activity of a workflow opens, as `shown`."""
        handle = self.client.get_workflow_handle(workflow_id)
        return await handle.execute_update("use_token", "apiToken")

    async def all_open(self, token: str) -> None:
        for node in (ROOT, CHILD):
            assert await self.opened(node) == shown(token)

    def kid(self, kind: str) -> str:
        return next(key.kid for key in self.keyring.keys() if key.kind == kind and key.is_active)


@pytest.fixture
async def idle_site(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Site]:
    """A site whose worker does not run; its parameter are options of the server."""
    extra_args: Sequence[str] = getattr(request, "param", ())
    async with start_engine(ui=False, extra_args=extra_args) as engine:
        with start_api() as api:
            api.valid = {FIRST, SECOND}
            site = Site(tmp_path, engine, api)
            await site.connect()
            yield site
            site.audit.close()


@pytest.fixture
async def site(idle_site: Site) -> AsyncIterator[Site]:
    async with start_worker(idle_site.client, "tenants", **EVERYTHING):
        yield idle_site


on_server = partial(pytest.mark.parametrize, "idle_site", indirect=True, ids=[""])


# --- set up --------------------------------------------------------------------------------------


async def test_a_runtime_made_as_it_is_written_can_be_scraped(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    monkeypatch.setenv("METRICS_ADDRESS", address)
    for name in ("TEMPORAL_ADDRESS", "TEMPORAL_CONFIG_FILE", "STATEFUL_KEYRING"):
        monkeypatch.setenv(name, site.environment[name])
    (block,) = blocks("Export metrics", "python")
    await site.python(block)
    await site.start_tree()
    async with start_worker(site.names["client"], "measured"):
        await TokenClient(site.names["client"], site.keyring).rotate(ROOT, SECOND, timeout=WITHIN)

    seen = await scrape(address)
    assert seen.total("stateful_convergence_bucket", le="3600") == 1
    assert seen.total("stateful_messages", action="set", outcome="success") == 1


@needs("promtool", package="prometheus")
def test_prometheus_takes_the_configuration(tmp_path: Path) -> None:
    (block,) = blocks("Scrape them", "text")
    (tmp_path / "prometheus.yml").write_text(block.text, "utf-8")
    shutil.copy(PROJECT / "monitoring" / "alerts.yml", tmp_path)
    checked = subprocess.run(
        ["promtool", "check", "config", "prometheus.yml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


# --- who is behind -------------------------------------------------------------------------------


async def test_a_node_is_behind(site: Site) -> None:
    await site.start_distant_child()
    with pytest.raises(NotConverged):
        await site.issuer.rotate(ROOT, SECOND, timeout=1)

    look, over = blocks("A node is behind")
    printed = await site.run(look, BEHIND)
    assert "1 unreachable" in printed, printed
    async with start_worker(site.client, "syncs", **EVERYTHING):
        await site.run(over)
        assert (await TokenClient(site.client, site.keyring).get(CHILD)).reveal() == SECOND


@on_server([FEW_SIGNALS])
@pytest.mark.parametrize("ending", ["a worker comes", "the child is ended"])
async def test_a_child_cannot_be_reached(site: Site, ending: str) -> None:
    await site.start_distant_child()
    await site.use_up_signals(CHILD)
    await site.issuer.set(ROOT, SECOND)
    await site.comes_to_say(
        ROOT,
        lambda said: ["limit for signal" in it["reason"] for it in said["undelivered"]] == [True],
    )
    look, end, over = blocks("A child cannot be reached")
    printed = await site.run(look, BEHIND)
    assert f"undelivered: {CHILD}" in printed
    if ending == "a worker comes":
        async with start_worker(site.client, "syncs", **EVERYTHING):
            await site.run(over)
            assert (await site.issuer.get(CHILD)).reveal() == SECOND
    else:
        await site.run(end)
        await site.run(over)


@on_server([FEW_SIGNALS])
async def test_a_run_takes_no_more_signals(site: Site) -> None:
    await site.start_tree()
    await site.use_up_signals(CHILD)
    await site.issuer.rotate(ROOT, SECOND, timeout=WITHIN)

    look, end, over = blocks("A run takes no more signals")
    printed = await site.run(look)
    assert f"{site.client.identity}" in printed
    await site.run(end)
    assert "converged" in await site.run(over)
    await site.all_open(SECOND)


# --- what is sent, held and used -----------------------------------------------------------------


async def test_messages_are_rejected(site: Site) -> None:
    def both_are_counted(said: Any) -> bool:
        return said["rejections"]["counts"] == {"NotSealed": 1, "TokenForged": 1}

    await site.start_tree()
    held = parse(await sealed_at(site.client, ROOT))
    newer = replace(held.claims, version=held.claims.version + 1)
    forged = Keyring.generate().seal(newer, STOLEN)
    as_trusted = ".".join([held.text.split(".")[0], *forged.split(".")[1:]])
    intruder = await Client.connect(site.engine.address, identity="intruder@elsewhere")
    for text in ("garbage", as_trusted):
        await intruder.get_workflow_handle(ROOT).signal("apiToken", text)
    await site.comes_to_say(ROOT, both_are_counted)

    look, rotate = blocks("Messages are rejected")
    printed = await site.run(look, FOUND)
    assert "intruder@elsewhere" in printed
    for reason in ("NotSealed", "TokenForged"):
        assert reason in printed
    await site.run(rotate)
    await site.all_open(SECOND)
    await site.comes_to_say(ROOT, both_are_counted)


def test_every_reason_for_a_rejection_is_explained() -> None:
    text = (PROJECT / DOCUMENT).read_text("utf-8")
    section = text.partition("\n## Messages are rejected\n")[2].partition("\n## ")[0]
    kinds = (MessageRefused, TokenForged, TokenMalformed)
    for error in (error for kind in kinds for error in kind.__subclasses__()):
        assert f"`{error.__name__}`" in section


async def test_a_token_is_about_to_expire(site: Site) -> None:
    async def expiry() -> int:
        (token,) = (await status_of(site.client, CHILD))["tokens"]
        return token["expires_at"]

    await site.start_tree(expires_in=1800)
    soon = await expiry()

    renew, over = blocks("A token is about to expire")
    await site.run(renew)
    assert "expires" in await site.run(over)
    assert await expiry() > soon
    await site.all_open(SECOND)


async def test_calls_are_answered_401(site: Site) -> None:
    site.api.valid = {SECOND}
    root = await site.start(Caller.run)
    update = await site.insist(root)
    await site.comes_to_say(ROOT, lambda said: bool(said["reports"]))
    look, renew, over = blocks("Calls are answered 401")
    printed = await site.run(look)
    assert "401" in printed
    assert '"reports":{"apiToken"' in printed
    await site.run(renew)
    assert await update.result() == ["200"]
    *_, last = (await site.run(over)).splitlines()
    assert last.endswith(" 200")


@pytest.fixture
async def minted(idle_site: Site) -> AsyncIterator[Provider]:
    """The tree of a site whose workers have a source; its provider."""
    provider, site = Provider(), idle_site
    keyring = site.keyring.add_reader("sources")
    plugin = StatefulPlugin(keyring, sources={"tenants": provider}, audit=site.audit)
    site.client = await Client.connect(site.engine.address, plugins=[plugin])
    site.issuer = TokenClient(site.client, keyring)
    async with start_worker(site.client, "tenants", **EVERYTHING):
        grant = {"source": "tenants", "grant": provider.first}
        await site.start(Node.run, Plan({"sync-0": Plan()}), api_token=None, **grant)
        await source_is(site.issuer, ROOT, lambda status: status.state == "fresh")
        yield provider


async def test_a_grant_is_dead(idle_site: Site, minted: Provider) -> None:
    look, over = blocks("A grant is dead")
    minted.grant = "given-anew"
    with pytest.raises(NotRenewed):
        await idle_site.issuer.renew(ROOT)

    async def is_told() -> None:
        printed = await idle_site.run(look)
        assert "needs_authorization" in printed
        assert '"state":"needs_authorization"' in printed

    await eventually(is_told)
    await idle_site.issuer.authorize(ROOT, source="tenants", grant=minted.first)
    await source_is(idle_site.issuer, ROOT, lambda status: status.state == "fresh")
    assert "held" in await idle_site.run(over)


async def test_a_source_gets_no_tokens(idle_site: Site, minted: Provider) -> None:
    look, over = blocks("A source gets no tokens")
    minted.failures = [ProviderUnreachable("no route to it")]
    renewing = asyncio.create_task(idle_site.issuer.renew(ROOT))
    await source_is(idle_site.issuer, ROOT, lambda status: "unreachable" in status.counts)
    printed = await idle_site.run(look)
    assert "unreachable" in printed
    assert (await renewing).counts["minted"] == 2
    assert "held" in await idle_site.run(over)


def test_every_reason_for_a_failed_exchange_is_explained() -> None:
    text = (PROJECT / DOCUMENT).read_text("utf-8")
    section = text.partition("\n## A source gets no tokens\n")[2].partition("\n## ")[0]
    failed = {reason for action, outcome, reason in OF_SOURCES if (action, outcome) == FAILED}
    for reason in failed - {"refused_grant", "refused_grant_after_lost_reply"}:
        assert f"`{reason}`" in section


async def test_a_request_to_another_origin_is_refused(site: Site) -> None:
    root = await site.start(Caller.run, origins=[ELSEWHERE])
    (refused,) = await root.execute_update("do", Job([site.api.url("items")]))
    assert refused.startswith("OriginNotAllowed")

    look, allow, over = blocks("A request to another origin is refused")
    printed = await site.run(look, FOUND)
    assert site.api.origin in printed
    assert ELSEWHERE in printed
    site.environment.update(OLD_ORIGIN=ELSEWHERE, NEW_ORIGIN=site.api.origin)
    await site.run(allow)
    assert await root.execute_update("do", Job([site.api.url("items")])) == ["200"]
    *_, last = (await site.run(over)).splitlines()
    assert last.endswith(f"{site.api.origin} 200")


@on_server([DELETE_SOON])
async def test_a_workflow_needs_its_token_set_again(site: Site) -> None:
    retries = RetryPolicy(initial_interval=timedelta(seconds=6), backoff_coefficient=1)
    handle = await site.start(Flaky.run, Plan(), origins=[ELSEWHERE], retry_policy=retries)
    await nodes_run(site.issuer, ROOT, 1)
    before = await run_id(site.client, ROOT)
    await handle.signal("break_down")
    await next_run(site.client, ROOT, before)
    await delete_run(site.client, ROOT, str(before))

    async def is_lost() -> bool:
        status = await site.issuer.status(ROOT)
        return status is not None and status.state == "needs_set"

    await eventually(is_lost)
    look, again, over = blocks("A workflow needs its token set again")
    assert "needs_set" in await site.run(look)
    site.environment["ORIGIN"] = ELSEWHERE
    await site.run(again)
    assert "held" in await site.run(over)
    assert await site.opened(ROOT) == shown(SECOND)


# --- what leaked ---------------------------------------------------------------------------------


async def test_a_token_leaked(site: Site) -> None:
    await site.start_tree()
    await site.all_open(FIRST)

    rotate, cut, look, give_back, over = blocks("A token leaked")
    await site.run(rotate)
    await site.run(cut)
    assert await site.opened(ROOT) == shown(SECOND)
    assert await site.opened(CHILD) == "TokenRevoked"
    printed = await site.run(look)
    seen = Counter(line.split()[2] for line in printed.splitlines() if CHILD in line)
    assert seen["read"] == 1
    assert seen["refuse"] == 1
    await site.run(give_back)
    await site.run(over)
    await site.all_open(SECOND)


async def test_a_reader_key_leaked(site: Site) -> None:
    await site.start_tree()
    await site.all_open(FIRST)
    leaked = site.kid("reader")
    stolen = Keyring.from_json((site.home / "worker.json").read_text())  # which follows no file
    thief = TokenClient(await Client.connect(site.engine.address), stolen)
    assert (await thief.get(ROOT)).reveal() == FIRST
    site.environment["LEAKED_READER"] = leaked

    look, change, over = blocks("A reader key leaked")
    assert leaked in await site.run(look)
    await site.run(change)
    await site.all_open(SECOND)
    with pytest.raises(Exception, match="reader"):
        await thief.get(ROOT)
    listed, _, tail = (await site.run(over)).partition(" read ")
    assert "revoked" in listed
    *_, last_read = [line for line in tail.splitlines() if " in reveal" in line]
    assert leaked not in last_read
    assert site.kid("reader") in last_read


async def test_an_issuer_key_leaked(site: Site) -> None:
    await site.start_tree()
    leaked = site.kid("issuer")
    thief = Keyring.from_json(site.keyring.only(issuers=True).to_json())
    held = parse(await sealed_at(site.client, ROOT))
    theirs = replace(held.claims, version=held.claims.version + 60_000)
    handle = site.client.get_workflow_handle(ROOT)
    await handle.signal("apiToken", thief.seal(theirs, STOLEN))

    async def is_taken() -> bool:
        return await site.opened(ROOT) == shown(STOLEN)

    await eventually(is_taken)
    site.environment["LEAKED_ISSUER"] = leaked

    look, change, over = blocks("An issuer key leaked")
    assert leaked in await site.run(look)
    await site.run(change)
    await site.all_open(SECOND)
    successor = site.kid("issuer")
    assert successor != leaked
    assert successor in await site.run(over)
    later = replace(theirs, version=theirs.version + 60_000)
    await handle.signal("apiToken", thief.seal(later, STOLEN))
    await site.comes_to_say(ROOT, lambda said: said["rejections"]["counts"] == {"TokenForged": 1})
    await site.all_open(SECOND)


async def test_a_worker_has_an_old_keyring(site: Site) -> None:
    await site.start_tree()
    await site.shell("stateful keys add-issuer", "before")
    refused = await site.shell(
        f"stateful token set {ROOT} --from-env NEW_TOKEN", "before", status=1
    )
    assert "not known yet" in refused
    newest = [key.kid for key in site.keyring.keys() if key.kind == "issuer"][-1]

    look, change, over = blocks("A worker has an old keyring")
    assert (await site.run(look)).count(newest) == 1
    await site.run(change)
    assert newest in await site.run(over)
    await site.all_open(SECOND)


# --- the record ----------------------------------------------------------------------------------


async def test_the_audit_sink_fails(site: Site) -> None:
    root = await site.start(Caller.run)
    site.audit.is_full = True
    update = await site.insist(root)
    assert site.api.calls == []

    look, over = blocks("The audit sink fails")
    assert "worker.jsonl" in await site.run(look)
    site.audit.is_full = False
    assert await update.result() == ["200"]
    assert " lost " in await site.run(over)


async def test_an_audit_file_does_not_verify(idle_site: Site) -> None:
    site = idle_site
    (keep,) = blocks("Keep what cannot be had afterwards")
    look, away, read, begin, over = blocks("An audit file does not verify")
    async with start_worker(site.client, "tenants", **EVERYTHING):
        await site.start_tree()
        await site.all_open(FIRST)
    site.audit.close()
    await site.run(keep)
    lines = site.audit_path.read_bytes().splitlines(keepends=True)
    opened = next(n for n, line in enumerate(lines) if b'"read"' in line)
    site.audit_path.write_bytes(b"".join(lines[:opened] + lines[opened + 1 :]))

    assert f"line {opened + 1}" in await site.run(look, 1)
    await site.run(away)
    assert not list(site.audit_path.parent.iterdir())
    assert f"line {opened + 1}" in await site.run(read, 1)

    site.audit = Volume(site.audit_path)
    await site.connect()
    async with start_worker(site.client, "tenants", **EVERYTHING):
        await site.all_open(FIRST)
    site.audit.close()
    await site.run(begin)
    await site.run(over)


# --- the document itself -------------------------------------------------------------------------


def test_every_section_is_followed_here() -> None:
    """Each heading with commands is named by a test."""
    source = Path(__file__).read_text("utf-8")
    headings = {b.heading for b in BLOCKS if b.document == DOCUMENT and b.kind in {"sh", "python"}}
    assert len(headings) > 14
    for heading in headings:
        assert f'blocks("{heading}"' in source, heading
