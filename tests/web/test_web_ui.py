"""Temporal's own command line and Web UI, with the codec server behind them."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import signal
import subprocess
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

import httpx
import pytest
from temporalio.client import Client

from stateful_workflow import Keyring, StatefulPlugin, TokenClient
from stateful_workflow.engine import find_temporal, start_engine
from stateful_workflow.web.codec_server import codec_app, serve_codec
from tests.cli.test_cli_in_trees import start_dev
from tests.engine.test_engine import free_port
from tests.support.asking import events_of, eventually, nodes_run, sealed_at, start_worker
from tests.support.tools import needs
from tests.support.workflows import Node, Plan
from tests.web.browser import browser

SECRET = "canary-9c27-first"
NEWER = "canary-9c27-second"
HEADER = '{"alg":"Ed25519","kid":"'
SEALED = base64.b64encode(HEADER.encode()).decode()[:10]
"""How every sealed message begins."""


@dataclass(frozen=True)
class Scene:
    """An engine with its Web UI and codec server, and a tree whose token was set twice."""

    address: str
    ui: str
    codec: str
    client: Client
    tokens: TokenClient
    root: str
    child: str
    fingerprint: str

    async def temporal(self, *arguments: str, codec: bool = True) -> str:
        """What Temporal's program prints."""
        endpoint = ["--codec-endpoint", self.codec] if codec else []
        done = await asyncio.to_thread(
            subprocess.run,
            [find_temporal(), *arguments, "--address", self.address, *endpoint],
            env={**os.environ, "TEMPORAL_CONFIG_FILE": os.devnull},
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    async def read(self, path: str, *texts: str) -> str:
        """What the Web UI's page of the child shows, once these texts are there."""
        run_id = (await self.client.get_workflow_handle(self.child).describe()).run_id
        url = f"{self.ui}/namespaces/default/workflows/{self.child}/{run_id}/{path}"

        def look() -> str:
            with browser(within=45) as page:
                page.open(url)
                return page.wait_for(*texts)

        return await asyncio.to_thread(look)


@pytest.fixture(scope="module")
async def scene() -> AsyncIterator[Scene]:
    keyring = Keyring.generate()
    ui_port = free_port()
    app = codec_app(keyring.public(), ui_origins=[f"http://127.0.0.1:{ui_port}"])
    queue = f"t-{uuid.uuid4().hex[:8]}"
    async with (
        serve_codec(app) as codec,
        start_engine(ui_port=ui_port, ui_codec_endpoint=codec) as engine,
    ):
        client = await Client.connect(engine.address, plugins=[StatefulPlugin(keyring)])
        tokens = TokenClient(client, keyring)
        async with start_worker(client, queue):
            await tokens.start_workflow(
                Node.run,
                Plan({"a": Plan()}),
                id=queue,
                task_queue=queue,
                api_token=SECRET,
                origins=["https://api.example.com"],
            )
            await nodes_run(tokens, queue, 2)
            tree = await tokens.rotate(queue, NEWER, timeout=20)
            (fingerprint,) = {node.fingerprint for node in tree.nodes}
            yield Scene(
                engine.address,
                str(engine.ui_url),
                codec,
                client,
                tokens,
                root=queue,
                child=f"{queue}-a",
                fingerprint=str(fingerprint),
            )


def payloads_in(data: object) -> Iterator[Any]:
    """What the payloads of a history hold, wherever they are in it."""
    if isinstance(data, list):
        for entry in cast("list[object]", data):
            yield from payloads_in(entry)
    elif isinstance(data, dict):
        members = cast("dict[str, object]", data)
        if "metadata" in members and isinstance(members.get("data"), str):
            yield json.loads(base64.b64decode(str(members["data"])))
        else:
            for member in members.values():
                yield from payloads_in(member)


async def history(scene: Scene, workflow_id: str, *, codec: bool = True) -> str:
    """All that `temporal workflow show` prints of a history, and what its payloads hold."""
    arguments = ("workflow", "show", "--workflow-id", workflow_id)
    printed = await scene.temporal(*arguments, "--output", "json", codec=codec)
    detailed = await scene.temporal(*arguments, "--detailed", codec=codec)
    return json.dumps([json.loads(printed), *payloads_in(json.loads(printed)), detailed])


async def test_a_shown_history_has_claims_in_the_place_of_sealed_tokens(scene: Scene) -> None:
    sealed = await sealed_at(scene.client, scene.root)
    for workflow_id in (scene.root, scene.child):
        shown = await history(scene, workflow_id)
        plain = await history(scene, workflow_id, codec=False)
        assert sealed in plain
        assert SEALED in plain
        for text in (SECRET, NEWER, sealed, SEALED, sealed.split(".")[2]):
            assert text not in shown

    show = ("workflow", "show", "--workflow-id", scene.child, "--output", "json")
    events = {each["eventType"]: each for each in json.loads(await scene.temporal(*show))["events"]}
    (header,) = payloads_in(
        events["EVENT_TYPE_WORKFLOW_EXECUTION_STARTED"]["workflowExecutionStartedEventAttributes"][
            "header"
        ]
    )
    (held,) = header["ledger"]["held"]
    (signalled,) = payloads_in(events["EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED"])
    for described in (held, signalled):
        assert (described["kind"], described["verified"]) == ("token", True)
        assert described["authority"] == scene.root
        assert described["origins"] == ["https://api.example.com"]
    assert held["version"] < signalled["version"]
    assert signalled["fingerprint"] == scene.fingerprint


async def test_a_query_is_answered_with_claims(scene: Scene) -> None:
    asked = ("workflow", "query", "--workflow-id", scene.child, "--type", "apiToken")
    shown = await scene.temporal(*asked, "--output", "json")
    assert scene.fingerprint in shown
    assert '"verified"' in shown
    assert SEALED not in shown
    assert SEALED in await scene.temporal(*asked, "--output", "json", codec=False)


async def test_input_is_sent_through_the_endpoint_as_it_is(scene: Scene) -> None:
    new = f"{scene.root}-new"
    await scene.temporal(
        *("workflow", "start", "--type", "Node", "--task-queue", scene.root),
        *("--workflow-id", new, "--input", '{"api_url": "https://api.example.com/v2"}'),
    )

    async def is_there() -> None:
        assert (await scene.tokens.tree(new)).nodes[0].api_url == "https://api.example.com/v2"

    await eventually(is_there)


def test_dev_gives_its_web_ui_the_endpoint() -> None:
    with start_dev("--ui-codec-endpoint", "http://127.0.0.1:8234/{namespace}") as process:
        try:
            assert process.stdout is not None
            (url,) = re.findall(r"Web UI +(http://\S+)", "".join(islice(process.stdout, 4)))
            answer = httpx.get(f"{url}/api/v1/settings", trust_env=False)
            os.killpg(process.pid, signal.SIGINT)
            process.communicate(timeout=30)
        finally:
            process.kill()
    assert answer.json()["Codec"]["Endpoint"] == "http://127.0.0.1:8234/{namespace}"


@needs("chromium")
async def test_the_web_ui_shows_claims_in_an_event(scene: Scene) -> None:
    handle = scene.client.get_workflow_handle(scene.child)
    (event,) = await events_of(handle, "WORKFLOW_EXECUTION_SIGNALED")
    seen = await scene.read(
        f"history/events/{event.event_id}",
        "Workflow Execution Signaled",
        '"kind": "token"',
        '"verified": true',
        f'"fingerprint": "{scene.fingerprint}"',
        f'"authority": "{scene.root}"',
    )
    assert SEALED not in seen


@needs("chromium")
async def test_the_web_ui_shows_claims_in_the_state_a_child_began_with(scene: Scene) -> None:
    seen = await scene.read("history/events/1", "stateful-node", '"kind": "token"')
    assert SEALED not in seen


@needs("chromium")
async def test_the_web_ui_shows_what_a_node_holds_in_the_workflows_details(scene: Scene) -> None:
    seen = await scene.read("user-metadata", "Current Details", scene.fingerprint[:8], "held")
    assert f"set at {scene.root}" in seen
