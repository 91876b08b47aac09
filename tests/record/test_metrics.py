"""What Prometheus sees of a worker and a client: every metric, and no label that can grow."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import httpx
import pytest
from temporalio.client import Client
from temporalio.runtime import PrometheusConfig, Runtime, TelemetryConfig

from stateful_workflow import Keyring, NotConverged, StatefulPlugin, TokenClient
from stateful_workflow.audit import AuditEvent, AuditSink
from stateful_workflow.engine import EmbeddedEngine
from stateful_workflow.errors import MessageRefused
from stateful_workflow.node.contract import OUTCOMES
from stateful_workflow.record.metrics import BUCKETS, NAMES, Metrics
from stateful_workflow.sealed.message import Claims, parse
from tests.support.api import Api, start_api
from tests.support.asking import (
    WITHIN,
    Unreachable,
    eventually,
    nodes_run,
    sealed_at,
    start_worker,
    status_of,
)
from tests.support.use_workflows import ASYNC_ACTIVITIES, USE_WORKFLOWS, Caller, Job
from tests.support.workflows import ACTIVITIES, WORKFLOWS, Node, Plan

FIRST, SECOND, THIRD = "metrics-token-1", "metrics-token-2", "metrics-token-3"
URL = "https://api.example.com"
EVERYTHING: dict[str, Any] = {
    "workflows": [*WORKFLOWS, *USE_WORKFLOWS],
    "activities": [*ACTIVITIES, *ASYNC_ACTIVITIES],
}


@dataclass(frozen=True)
class Sample:
    """One line of a scrape; a histogram has many, named ``…_bucket``, ``…_sum``, ``…_count``."""

    name: str
    labels: dict[str, str]
    value: float


@dataclass(frozen=True)
class Scrape:
    """What one scrape found of this library's metrics."""

    samples: list[Sample]

    @property
    def metrics(self) -> set[str]:
        """The metrics' names, as they stand in `NAMES`."""
        return {re.sub("_(bucket|sum|count)$", "", sample.name) for sample in self.samples}

    @property
    def series(self) -> set[tuple[str, frozenset[tuple[str, str]]]]:
        """Every combination of name and labels."""
        return {(sample.name, frozenset(sample.labels.items())) for sample in self.samples}

    @property
    def label_values(self) -> set[str]:
        return {value for sample in self.samples for value in sample.labels.values()}

    def total(self, name: str, /, **labels: str) -> float:
        """The sum of all samples of a name that have these labels."""
        return sum(
            sample.value
            for sample in self.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def by(self, label: str, name: str, /, **labels: str) -> dict[str, float]:
        """What there is of a metric beside zeros, by the values of one label."""
        values = {sample.labels[label] for sample in self.samples if sample.name == name}
        totals = {value: self.total(name, **{label: value}, **labels) for value in values}
        return {value: total for value, total in totals.items() if total}


class Exporter:
    """A runtime whose metrics are scraped over HTTP."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{probe.getsockname()[1]}"
        exporter = PrometheusConfig(
            bind_address=self.address, histogram_bucket_overrides=dict(BUCKETS)
        )
        self.runtime = Runtime(telemetry=TelemetryConfig(metrics=exporter))

    async def connect(
        self,
        address: str,
        keyring: Keyring,
        sink: AuditSink | None = None,
        *,
        rule: Any = "block",
        **options: Any,
    ) -> Client:
        plugin = StatefulPlugin(keyring, audit=sink, audit_failure=rule)
        return await Client.connect(address, plugins=[plugin], runtime=self.runtime, **options)

    async def scrape(self) -> Scrape:
        return await scrape(self.address)


async def scrape(address: str) -> Scrape:
    """What an exporter has of this library's metrics now."""
    async with httpx.AsyncClient(trust_env=False) as http:
        text = (await http.get(f"http://{address}/metrics")).text
    found = re.findall(r"^(stateful_\w+)(?:\{(.*)\})? (\S+)$", text, re.MULTILINE)
    return Scrape(
        [
            Sample(name, dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', labels)), float(value))
            for name, labels, value in found
        ]
    )


class Broken:
    """An audit sink that fails."""

    is_local = True

    def record(self, event: AuditEvent) -> None:
        raise OSError("no space left")


@pytest.fixture
def own() -> Exporter:
    """An exporter of this test's own, where it counts from zero."""
    return Exporter()


@pytest.fixture
async def measured(own: Exporter, engine: EmbeddedEngine, keyring: Keyring) -> Client:
    return await own.connect(engine.address, keyring)


@pytest.fixture
async def tokens(measured: Client, keyring: Keyring, queue: str) -> AsyncIterator[TokenClient]:
    """A worker runs."""
    async with start_worker(measured, queue, **EVERYTHING):
        yield TokenClient(measured, keyring)


@pytest.fixture
def api() -> Iterator[Api]:
    with start_api() as api:
        api.valid = {FIRST}
        yield api


async def start_tree(tokens: TokenClient, queue: str) -> None:
    """A root with one child, both holding a token."""
    await tokens.start_workflow(
        Node.run, Plan({"a": Plan()}), id=queue, task_queue=queue, api_token=FIRST, api_url=URL
    )
    await nodes_run(tokens, queue, 2)


# --- what is counted -----------------------------------------------------------------------------


async def test_a_worker_that_has_done_nothing_shows_zeros_to_count_from(
    own: Exporter, tokens: TokenClient
) -> None:
    seen = await own.scrape()

    assert {sample.value for sample in seen.samples} == {0}
    assert "stateful_audit_lost" in seen.metrics
    rejections = {
        sample.labels["reason"] for sample in seen.samples if sample.name == "stateful_messages"
    }
    assert {error.__name__ for error in MessageRefused.__subclasses__()} <= rejections
    minted = {
        sample.labels["reason"]
        for sample in seen.samples
        if sample.labels.get("action") == "mint" and sample.labels["name"] == ""
    }
    # What is newer is taken over, without an exchange.
    assert minted == {*OUTCOMES, "refused_grant_after_lost_reply"} - {"newer"}
    refusals = {
        sample.labels["reason"] for sample in seen.samples if sample.name == "stateful_refusals"
    }
    assert {"TokenRevoked", "TokenExpired", "TokenNotSet", "OriginNotAllowed", "NoReaderKey"} <= (
        refusals
    )


async def test_messages_are_counted_by_action_and_outcome_on_their_way_down(
    own: Exporter, tokens: TokenClient, queue: str
) -> None:
    await start_tree(tokens, queue)
    await tokens.rotate(queue, SECOND, timeout=WITHIN)

    seen = await own.scrape()
    sent = {"action": "set", "name": "apiToken"}
    assert seen.by("outcome", "stateful_messages", **sent) == {"unknown": 2, "success": 2}
    assert seen.by("reason", "stateful_messages", action="accept") == {"start": 2, "": 2}
    assert seen.by("outcome", "stateful_messages", action="forward") == {"success": 1}
    assert seen.total("stateful_propagation_count", name="apiToken") == 2
    assert seen.total("stateful_convergence_count", name="apiToken") == 1
    assert seen.total("stateful_not_converged") == 0


async def test_rejected_messages_are_counted_by_reason(
    own: Exporter, tokens: TokenClient, measured: Client, queue: str, keyring: Keyring
) -> None:
    await start_tree(tokens, queue)
    held = parse(await sealed_at(measured, queue))
    old = keyring.seal(replace(held.claims, version=1), "x")
    elsewhere = keyring.seal(replace(held.claims, tree="another"), "x")
    handle = measured.get_workflow_handle(queue)
    for text in ("garbage", old, old, elsewhere):
        await handle.signal("apiToken", text)

    async def are_counted() -> None:
        seen = await own.scrape()
        assert seen.by("reason", "stateful_messages", action="reject", outcome="failure") == {
            "NotSealed": 1,
            "TokenStale": 2,
            "WrongTree": 1,
        }

    await eventually(are_counted)


async def test_uses_are_counted_by_status_and_refusals_by_reason(
    own: Exporter, tokens: TokenClient, queue: str, api: Api
) -> None:
    with start_api() as gone:
        pass
    root = await tokens.start_workflow(
        Caller.run, id=queue, task_queue=queue, api_token=FIRST, origins=[api.origin, gone.origin]
    )
    await root.execute_update("do", Job([api.url("items"), api.url("more"), gone.url("items")]))
    await root.execute_update("do", Job(["https://evil.example.net/x"]))
    api.valid = set()
    await root.execute_update("do", Job([api.url("items")]))
    await tokens.revoke(queue)
    await root.execute_update("do", Job([api.url("items")]))

    seen = await own.scrape()
    by_status = seen.by("status", "stateful_uses", name="apiToken")
    assert by_status == {"200": 2, "401": 1, "none": 1}
    assert seen.by("reason", "stateful_refusals") == {"OriginNotAllowed": 1, "TokenRevoked": 1}


async def test_an_opened_token_is_counted_by_its_age_and_by_what_is_left_of_it_in_seconds(
    own: Exporter, tokens: TokenClient, measured: Client, queue: str, keyring: Keyring
) -> None:
    handle = await tokens.start_workflow(Node.run, Plan(), id=queue, task_queue=queue)
    place = await status_of(measured, queue)
    hour, now = 3600, int(time.time())
    claims = Claims(
        name="apiToken",
        namespace=measured.namespace,
        root=place["root"],
        tree=place["tree"],
        authority=queue,
        version=(now - 2 * hour) * 1000,
        origins=(URL,),
        expires_at=now + 2 * hour,
    )
    await handle.execute_update("apiToken", keyring.seal(claims, FIRST))
    await handle.execute_update("use_token", "apiToken")

    seen = await own.scrape()
    for metric in ("stateful_token_age", "stateful_token_remaining"):
        within = [seen.total(f"{metric}_bucket", le=str(bound)) for bound in (hour, 6 * hour)]
        assert within == [0, 1], metric
    assert seen.total("stateful_propagation_sum") >= 2 * hour

    forever = replace(claims, version=claims.version + 1, expires_at=None)
    await handle.execute_update("apiToken", keyring.seal(forever, FIRST))
    await handle.execute_update("use_token", "apiToken")
    seen = await own.scrape()
    counts = [seen.total(f"stateful_token_{what}_count") for what in ("age", "remaining")]
    assert counts == [2, 1]


@pytest.mark.parametrize("rule", ["block", "continue"])
async def test_events_that_the_audit_sink_does_not_take_are_counted_at_once(
    own: Exporter, engine: EmbeddedEngine, keyring: Keyring, queue: str, rule: str
) -> None:
    client = await own.connect(engine.address, keyring, Broken(), rule=rule)
    async with start_worker(client, queue):
        await client.start_workflow("Node", Plan(), id=queue, task_queue=queue)
        await client.get_workflow_handle(queue).signal("apiToken", "garbage")

        async def is_counted() -> None:
            assert (await own.scrape()).total("stateful_audit_lost") == 1

        await eventually(is_counted)


# --- who is behind -------------------------------------------------------------------------------


async def test_a_child_that_cannot_be_told_is_a_failed_delivery_and_a_rotation_not_converged(
    own: Exporter, engine: EmbeddedEngine, keyring: Keyring, queue: str
) -> None:
    unreachable = Unreachable()
    client = await own.connect(engine.address, keyring, interceptors=[unreachable])
    tokens = TokenClient(client, keyring)
    async with start_worker(client, queue):
        await start_tree(tokens, queue)
        unreachable.ids.add(f"{queue}-a")
        with pytest.raises(NotConverged):
            await tokens.rotate(queue, SECOND, timeout=0.5)

        async def has_failed() -> None:
            seen = await own.scrape()
            assert seen.total("stateful_messages", action="forward", outcome="failure") >= 1

        await eventually(has_failed)
        seen = await own.scrape()
        assert seen.total("stateful_not_converged", name="apiToken") == 1
        assert seen.total("stateful_convergence_count") == 0

        unreachable.ids.clear()
        await tokens.rotate(queue, THIRD, timeout=WITHIN)
        assert (await own.scrape()).total("stateful_convergence_count") == 1


async def test_the_clients_and_workers_of_a_process_are_counted_together(own: Exporter) -> None:
    lazy = partial(Client.connect, "127.0.0.1:1", runtime=own.runtime, lazy=True)
    first, second = Metrics.of(await lazy()), Metrics.of(await lazy())

    for metrics in (first, second, first):
        metrics.lost()

    assert (await own.scrape()).total("stateful_audit_lost") == 3


# --- labels --------------------------------------------------------------------------------------


async def test_messages_with_made_up_names_and_issuers_add_no_label(
    own: Exporter, tokens: TokenClient, measured: Client, queue: str, keyring: Keyring
) -> None:
    await start_tree(tokens, queue)
    held = parse(await sealed_at(measured, queue))
    before = await own.scrape()
    handle = measured.get_workflow_handle(queue)
    header = held.text.partition(".")[0]
    forger = Keyring.generate()
    many = 50
    for n in range(many):
        claims = replace(held.claims, name=f"made-up-{n}", version=held.claims.version + 1 + n)
        as_trusted = ".".join([header, *forger.seal(claims, "x").split(".")[1:]])
        await handle.signal("apiToken", as_trusted)
        await handle.signal("apiToken", Keyring.generate().seal(claims, "x"))

    async def are_counted() -> None:
        seen = await own.scrape()
        assert seen.total("stateful_messages", action="reject", reason="TokenForged") == many

    await eventually(are_counted)
    assert (await own.scrape()).series == before.series


async def lived(exporter: Exporter, address: str, keyring: Keyring, queue: str) -> Scrape:
    """A scrape after everything has happened that is counted."""
    client = await exporter.connect(address, keyring, Broken(), rule="continue")
    tokens = TokenClient(client, keyring)
    with start_api() as api:
        api.valid = {SECOND}
        async with start_worker(client, queue, **EVERYTHING):
            await start_tree(tokens, queue)
            root = await tokens.start_workflow(
                Caller.run,
                id=f"{queue}-caller",
                task_queue=queue,
                api_token=FIRST,
                origins=[api.origin],
                expires_in=1800,
            )
            await root.execute_update("do", Job([api.url("items"), "https://evil.example.net/x"]))
            await tokens.rotate(f"{queue}-caller", SECOND, timeout=WITHIN)
            await root.execute_update("do", Job([api.url("items")]))
            await client.get_workflow_handle(queue).signal("apiToken", "garbage")
            await tokens.get(queue)
            await tokens.rotate(queue, SECOND, timeout=WITHIN)
            return await exporter.scrape()


async def test_every_metric_is_scraped_with_few_labels_and_no_workflow_id_among_them(
    own: Exporter, engine: EmbeddedEngine, keyring: Keyring, queue: str
) -> None:
    seen = await lived(own, engine.address, keyring, queue)

    assert seen.metrics == set(NAMES)
    labels = {
        name: {
            label
            for sample in seen.samples
            if sample.name.startswith(name)
            for label in sample.labels
        }
        - {"service_name", "le"}
        for name in NAMES
    }
    assert labels == {
        "stateful_messages": {"action", "outcome", "reason", "name"},
        "stateful_uses": {"name", "status"},
        "stateful_refusals": {"reason"},
        "stateful_audit_lost": set(),
        "stateful_not_converged": {"name"},
        "stateful_convergence": {"name"},
        "stateful_propagation": {"name"},
        "stateful_token_age": {"name"},
        "stateful_token_remaining": {"name"},
    }
    ids = [value for value in seen.label_values if queue in value]
    assert ids == []
    keys = {key.kid for key in keyring.keys()}
    assert not keys & seen.label_values
