"""Whatever one workflow answers, it is that workflow's problem, and no other's."""

from __future__ import annotations

import asyncio
import zlib
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from temporalio.api.common.v1 import Payload
from temporalio.client import Client, Interceptor, OutboundInterceptor, QueryWorkflowInput
from temporalio.common import QueryRejectCondition
from temporalio.converter import DataConverter, PayloadCodec
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import Worker

from stateful_workflow import (
    AnswerMalformed,
    Keyring,
    NotConverged,
    StatefulPlugin,
    TokenClient,
    TokenTree,
    TreeNode,
)
from stateful_workflow.engine import EmbeddedEngine
from stateful_workflow.node.members import MAX_ENTRIES
from tests.support.asking import Unreachable, eventually, status_of
from tests.support.liars import Host, Liar
from tests.support.statuses import CHILD, HELD, MALFORMED, Json, status

URL = "https://api.example.com"
A_MALFORMED = next(iter(MALFORMED.values()))
"""`tests/node/test_answers.py` reads the others."""

HELD_AND_LARGE: Json = {**HELD, "sealed": "x", "more": "x" * 70_000}
NO_TOKEN: Json = {"hard": ["*"], "withheld": ["*"]}


@dataclass(frozen=True)
class Tree:
    """A root with two nodes and some liars below it."""

    client: Client
    tokens: TokenClient
    root: str

    @property
    def liar(self) -> str:
        return f"{self.root}-liar0"

    async def answers(self, answer: object, liar: int = 0) -> None:
        handle = self.client.get_workflow_handle(f"{self.root}-liar{liar}")
        await handle.signal(Liar.say, answer)

    async def has_phantoms(self, count: int, phantom: Json = CHILD) -> None:
        answer = status(self.root, children=[phantom])
        handle = self.client.get_workflow_handle(self.liar)
        await handle.signal(Liar.say_children, args=[answer, count])

    async def seen(self) -> dict[str, TreeNode]:
        return by_suffix(await self.tokens.tree(self.root))

    async def rotated(self, token: str = "second", timeout: float = 1) -> dict[str, TreeNode]:
        """What a rotation comes to, which says that it has converged or that it has not."""
        try:
            return by_suffix(await self.tokens.rotate(self.root, token, timeout=timeout))
        except NotConverged as error:
            return by_suffix(error.tree)


def by_suffix(tree: TokenTree) -> dict[str, TreeNode]:
    """The nodes by what their id has after the root's."""
    return {node.id.removeprefix(tree.nodes[0].id): node for node in tree.nodes}


@asynccontextmanager
async def started(
    client: Client, tokens: TokenClient, queue: str, *, liars: int = 1
) -> AsyncGenerator[Tree]:
    theirs = f"{queue}-theirs"
    async with (
        Worker(client, task_queue=queue, workflows=[Host]),
        Worker(client, task_queue=theirs, workflows=[Liar]),
    ):
        await tokens.start_workflow(
            Host.run,
            args=[liars, theirs],
            id=queue,
            task_queue=queue,
            api_token="first",
            api_url=URL,
        )
        tree = Tree(client, tokens, queue)

        async def all_run() -> bool:
            children = (await status_of(client, queue))["children"]
            return [child["life"] for child in children] == ["running"] * (2 + liars)

        await eventually(all_run)
        yield tree


@pytest.fixture
async def tree(client: Client, tokens: TokenClient, queue: str) -> AsyncIterator[Tree]:
    async with started(client, tokens, queue) as tree:
        yield tree


Ask = Callable[[QueryWorkflowInput], Awaitable[Any]]


class Queries(Interceptor):
    """Lets a function see each query of a client; it asks, or answers itself."""

    def __init__(self, see: Callable[[QueryWorkflowInput, Ask], Awaitable[Any]]) -> None:
        self._see = see

    def intercept_client(self, next: OutboundInterceptor) -> OutboundInterceptor:
        see = self._see

        class Outbound(OutboundInterceptor):
            async def query_workflow(self, input: QueryWorkflowInput) -> Any:
                return await see(input, super().query_workflow)

        return Outbound(next)


async def connect(engine: EmbeddedEngine, **options: Any) -> Client:
    return await Client.connect(engine.address, namespace=engine.namespace, **options)


# --- one answer ----------------------------------------------------------------------------------


async def test_a_child_that_answers_as_a_node_does_is_one(tree: Tree) -> None:
    await tree.answers(await status_of(tree.client, f"{tree.root}-a"))

    assert (await tree.tokens.tree(tree.root)).converged


NO_STATUS: list[object] = [None, True, 7, "status", [], {}]


@pytest.mark.parametrize("answer", [*NO_STATUS, {**status("r"), **A_MALFORMED}], ids=repr)
async def test_what_cannot_be_read_is_a_problem_of_that_workflow_alone(
    tree: Tree, answer: object
) -> None:
    await tree.answers(answer)

    seen = await tree.seen()

    assert {suffix: node.current for suffix, node in seen.items()} == {
        **dict.fromkeys(("", "-a", "-b"), True),
        "-liar0": False,
    }
    assert {seen[suffix].state for suffix in ("", "-a", "-b")} == {"held"}
    why = f"workflow {tree.liar} answered apiTokenStatus with what cannot be read: "
    assert why in str(seen["-liar0"].problem)


async def test_with_a_malformed_status_a_rotation_tells_all_others_and_does_not_converge(
    tree: Tree,
) -> None:
    await tree.answers({**status(tree.root), **A_MALFORMED})

    rotated = await tree.rotated(timeout=0.1)

    assert not rotated["-liar0"].current

    async def all_are_told() -> None:
        for suffix in ("", "-a", "-b"):
            assert (await tree.tokens.get(tree.root + suffix)).reveal() == "second"

    await eventually(all_are_told)


async def test_who_asks_that_workflow_itself_is_told_what_is_wrong(tree: Tree) -> None:
    await tree.answers(status(tree.root, tokens=[{**HELD, "version": "abc"}]))

    with pytest.raises(AnswerMalformed, match=f"{tree.liar} answered .* tokens: version: it is no"):
        await tree.tokens.tree(tree.liar)
    with pytest.raises(AnswerMalformed, match=f"{tree.liar} answered apiTokenStatus"):
        await tree.tokens.set(tree.liar, "second", origins=[URL])


@pytest.mark.parametrize(
    "answer",
    ["x", {}, {**HELD, "version": "abc"}, {**HELD, "sealed": 7}, HELD_AND_LARGE],
    ids=["text", "empty", "version", "sealed", "large"],
)
async def test_what_it_says_of_its_token_is_read_as_strictly(tree: Tree, answer: object) -> None:
    await tree.answers(status(tree.root))
    await tree.client.get_workflow_handle(tree.liar).signal(Liar.say_of_token, answer)
    malformed = pytest.raises(AnswerMalformed, match=f"{tree.liar} answered apiToken with what")

    with malformed:
        await tree.tokens.status(tree.liar)
    with malformed:
        await tree.tokens.get(tree.liar)


async def test_an_update_that_is_answered_with_no_status_is_said_to_be(tree: Tree) -> None:
    await tree.answers(status(tree.root))

    with pytest.raises(AnswerMalformed, match="answered apiToken with what"):
        await tree.tokens.set(tree.liar, "second", origins=[URL])


# --- what it says of others ----------------------------------------------------------------------


@pytest.mark.parametrize("named", ["-liar0", ""], ids=["itself", "the root"])
async def test_who_names_itself_or_one_above_it_as_a_child_is_the_problem(
    tree: Tree, named: str
) -> None:
    told = await status_of(tree.client, f"{tree.root}-a")
    await tree.answers({**told, "children": [{**CHILD, "id": tree.root + named, **NO_TOKEN}]})

    seen = await tree.seen()

    assert {suffix for suffix, node in seen.items() if not node.current} == {"-liar0"}
    assert "which is no child of its" in str(seen["-liar0"].problem)


async def test_what_it_names_its_siblings_as_does_not_make_them_current(
    engine: EmbeddedEngine, keyring: Keyring, queue: str
) -> None:
    """It says that they are its children and to have no token; they are to have their parent's."""
    unreachable = Unreachable()
    client = await connect(engine, plugins=[StatefulPlugin(keyring)], interceptors=[unreachable])
    async with started(client, TokenClient(client, keyring), queue) as tree:
        siblings = [{**CHILD, "id": f"{queue}-{suffix}", **NO_TOKEN} for suffix in "ab"]
        told = await status_of(client, f"{queue}-a")
        unreachable.ids.add(f"{queue}-b")
        await tree.answers({**told, "withheld": ["*"], "children": siblings})

        rotated = await tree.rotated()

        assert not rotated["-b"].current
        assert rotated["-b"].parent == queue
        assert (rotated["-a"].current, rotated["-a"].problem) == (True, None)


async def test_liars_that_name_one_another_in_every_order_keep_no_walk_from_ending(
    engine: EmbeddedEngine, client: Client, tokens: TokenClient, queue: str
) -> None:
    """Each expects something else of those below it, so that each way through them is another."""
    asked = Counter[str]()

    async def count(input: QueryWorkflowInput, ask: Ask) -> Any:
        asked[input.id] += 1
        return await ask(input)

    liars = 6
    async with started(client, tokens, queue, liars=liars) as tree:
        children = [{**CHILD, "id": f"{queue}-liar{n}"} for n in range(liars)]
        for n in range(liars):
            own = {**HELD, "authority": f"{queue}-liar{n}", "version": n + 1}
            others = [child for child in children if child["id"] != own["authority"]]
            await tree.answers(status(queue, tokens=[own], children=others), liar=n)

        counting = await connect(engine, interceptors=[Queries(count)])
        seen = by_suffix(await TokenClient(counting).tree(queue))

    assert len(seen) == 3 + liars
    assert max(asked.values()) <= 4


# --- how large, and for how long -----------------------------------------------------------------


class Compresses(PayloadCodec):
    async def encode(self, payloads: Sequence[Payload]) -> list[Payload]:
        metadata = {"encoding": b"binary/zlib"}
        return [
            Payload(metadata=metadata, data=zlib.compress(payload.SerializeToString()))
            for payload in payloads
        ]

    async def decode(self, payloads: Sequence[Payload]) -> list[Payload]:
        return [Payload.FromString(zlib.decompress(payload.data)) for payload in payloads]


async def test_an_answer_is_measured_as_a_codec_gives_it(
    engine: EmbeddedEngine, keyring: Keyring, queue: str
) -> None:
    client = await connect(
        engine,
        plugins=[StatefulPlugin(keyring)],
        data_converter=DataConverter(payload_codec=Compresses()),
    )
    async with started(client, TokenClient(client, keyring), queue) as tree:
        await tree.answers(await status_of(client, f"{queue}-a"))
        assert (await tree.tokens.rotate(f"{queue}-a", "own", origins=[URL], timeout=20)).converged
        assert (await tree.tokens.tree(queue)).converged

        await tree.has_phantoms(16_000, {**CHILD, "type": "Node" * 10})

        problem = (await tree.seen())["-liar0"].problem
        assert "bytes, more than 2,097,152" in str(problem)


async def test_more_children_than_a_status_can_hold_are_not_looked_for(tree: Tree) -> None:
    await tree.has_phantoms(MAX_ENTRIES + 1, {"id": "phantom"})

    assert "children: it is no list of at most" in str((await tree.seen())["-liar0"].problem)


async def test_what_was_not_looked_at_in_time_is_shown_as_such(
    engine: EmbeddedEngine, keyring: Keyring, tree: Tree
) -> None:
    """50 are asked at a time, and none of these answers: a rotation waits for no more than it has.

    The first are given up when its time is over, the next a second later; then it ends.
    """

    async def mute(input: QueryWorkflowInput, ask: Ask) -> Any:
        if not input.id.startswith(CHILD["id"]):
            return await ask(input)
        assert input.rpc_timeout is not None
        await asyncio.sleep(input.rpc_timeout.total_seconds())
        raise RPCError("no answer", RPCStatusCode.DEADLINE_EXCEEDED, b"")

    client = await connect(engine, interceptors=[Queries(mute)])
    await tree.has_phantoms(500)

    with pytest.raises(NotConverged) as caught:
        await TokenClient(client, keyring).rotate(tree.root, "second", timeout=2)

    phantoms = [node.problem for node in caught.value.tree.behind if "phantom" in node.id]
    assert len(phantoms) == 500
    assert phantoms.count("not asked in time") >= 350


async def test_what_a_codec_cannot_decode_is_a_problem_of_that_workflow_alone(
    engine: EmbeddedEngine, tree: Tree
) -> None:
    class KnowsOneKeyOnly(PayloadCodec):
        async def encode(self, payloads: Sequence[Payload]) -> list[Payload]:
            return list(payloads)

        async def decode(self, payloads: Sequence[Payload]) -> list[Payload]:
            if (
                any(b'"Liar"' in payload.data for payload in payloads)
                and len(payloads[0].data) < 900
            ):
                raise ValueError("no such key")
            return list(payloads)

    await tree.answers(status(tree.root))
    codec = DataConverter(payload_codec=KnowsOneKeyOnly())

    seen = by_suffix(await TokenClient(await connect(engine, data_converter=codec)).tree(tree.root))

    assert {suffix for suffix, node in seen.items() if not node.current} == {"-liar0"}
    assert "cannot be encoded or decoded (ValueError)" in str(seen["-liar0"].problem)


async def test_a_workflow_in_a_state_that_the_sdk_does_not_know_is_not_closed(
    engine: EmbeddedEngine, tree: Tree
) -> None:
    """For a paused workflow the SDK raises a ValueError where the server turns the query down."""

    async def as_paused(input: QueryWorkflowInput, ask: Ask) -> Any:
        if input.reject_condition is QueryRejectCondition.NOT_OPEN:
            raise ValueError("8 is not a valid WorkflowExecutionStatus")
        return await ask(input)

    client = await connect(engine, interceptors=[Queries(as_paused)])

    paused = (await TokenClient(client).tree(tree.root)).nodes[0]

    assert (paused.problem, paused.closed, paused.state) == (None, False, "held")
