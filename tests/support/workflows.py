"""The workflows and activities of the server tests."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from temporalio import activity, workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import (
    ApplicationError,
    ChildWorkflowError,
    WorkflowAlreadyStartedError,
)

with workflow.unsafe.imports_passed_through():
    from stateful_workflow import (
        MessageRefused,
        NoReaderKey,
        NotConverged,
        SealedToken,
        StatefulWorkflow,
        TokenUnavailable,
        UseRefused,
        current_api_url,
        current_token,
        seal_token,
    )
    from tests.support.terminal import HOSTILE

SOON = timedelta(seconds=10)
QUICK = RetryPolicy(initial_interval=timedelta(milliseconds=50))
LATER = RetryPolicy(initial_interval=timedelta(hours=1))

HOSTILE_NAME = HOSTILE.replace("\udc9b", "")
"""What the server takes of it: half a surrogate is no text."""


def shown(secret: str) -> str:
    """A short secret as it is; for one that no activity may return, what stands for it."""
    return secret if len(secret) < 8 else hashlib.sha256(secret.encode()).hexdigest()


@activity.defn
async def reveal(name: str = "apiToken") -> str:
    """What an activity of the calling workflow can open, as `shown`; tests' tokens only."""
    try:
        return shown(current_token(name).reveal())
    except (TokenUnavailable, UseRefused, NoReaderKey) as error:
        return type(error).__name__


@activity.defn
async def reveal_again() -> str:
    """In flight until its workflow has the note "go"; its second attempt asks for the newest."""
    if activity.info().attempt > 1:
        return await reveal()
    handle = activity.client().get_workflow_handle(str(activity.info().workflow_id))
    await handle.signal("note", f"opened {await reveal()}")
    while "go" not in await handle.query("notes"):
        await asyncio.sleep(0.05)
    raise ApplicationError("this attempt was to fail")


@activity.defn
async def reveal_address() -> str | None:
    try:
        return current_api_url()
    except UseRefused as error:
        return type(error).__name__


@activity.defn
async def reveal_next_address() -> str | None:
    """In flight until its address is another than at first; its workflow has a note of that."""
    first = current_api_url()
    handle = activity.client().get_workflow_handle(str(activity.info().workflow_id))
    await handle.signal("note", f"at {first}")
    while (found := current_api_url()) == first:
        await asyncio.sleep(0.05)
    return found


@activity.defn
async def fetch_and_seal(token: str, origins: list[str] | None) -> SealedToken:
    """Stands for an issuer's activity; the argument for the secret it would fetch itself."""
    return seal_token(token, origins=origins)


@dataclass
class Plan:
    """What a `Node` does when it starts.

    Attributes:
        children: for each child its id suffix and its own plan.
        type: workflow type of this node.
        hard: start this node inside `withholding()`.
        without: start it inside `withholding(name=…)` of this name.
        scopes: start it inside `narrowed(scopes=…)`.
        api_url: set by the node's own code.
        close_policy: of this node as a child.
        retried: when it fails, soon.
        rests: "backoff" where it is retried an hour after it fails, "cron" where it waits from the
            start for midnight of the 1st of January.
    """

    children: dict[str, Plan] = field(default_factory=dict[str, "Plan"])
    type: str = "Node"
    hard: bool = False
    without: str | None = None
    scopes: list[str] = field(default_factory=list[str])
    api_url: str | None = None
    close_policy: int = 2  # ABANDON
    retried: bool = False
    rests: str = ""

    @property
    def size(self) -> int:
        """How many nodes of the tree there will be."""
        return (self.type != "Plain") + sum(child.size for child in self.children.values())


class _Controlled(StatefulWorkflow):
    """A workflow that starts children as planned and then does what signals say."""

    def __init__(self) -> None:
        self.stopped = False
        self.carry_on = False
        self.fail = False
        self.handled: list[str] = []
        self.argument: Any = Plan()

    async def start(self, plan: Plan) -> None:
        if plan.api_url is not None:
            self.api_url = plan.api_url
        await asyncio.gather(
            *[self.start_child(suffix, child) for suffix, child in plan.children.items()]
        )

    async def start_child(self, suffix: str, plan: Plan) -> None:
        async def begin() -> None:
            await workflow.start_child_workflow(
                plan.type,
                plan,
                id=f"{workflow.info().workflow_id}-{suffix}",
                parent_close_policy=workflow.ParentClosePolicy(plan.close_policy),
                retry_policy=(
                    LATER if plan.rests == "backoff" else QUICK if plan.retried else None
                ),
                cron_schedule="0 0 1 1 *" if plan.rests == "cron" else "",
            )

        if plan.hard or plan.without is not None:
            with self.withholding(name=plan.without):
                await begin()
        elif plan.scopes:
            with self.narrowed(scopes=plan.scopes):
                await begin()
        else:
            await begin()

    async def until_told(self) -> str:
        await workflow.wait_condition(lambda: self.stopped or self.carry_on or self.fail)
        await workflow.wait_condition(workflow.all_handlers_finished)
        if self.fail:
            raise ApplicationError("told to fail", non_retryable=False)
        if self.carry_on:
            workflow.continue_as_new(self.argument)
        return "stopped"

    @workflow.signal
    def stop(self) -> None:
        self.stopped = True

    @workflow.signal
    def go_on(self) -> None:
        self.carry_on = True

    @workflow.update
    def move_on(self) -> None:
        self.carry_on = True

    @workflow.signal
    def go_on_at_once(self) -> None:
        workflow.continue_as_new(Plan())

    @workflow.signal
    def break_down(self) -> None:
        self.fail = True

    @workflow.signal
    async def add_child(self, suffix: str, plan: Plan) -> None:
        await self.start_child(suffix, plan)

    @workflow.signal
    async def start_guest_withheld(self, suffix: str) -> None:
        own = workflow.info().workflow_id
        with self.withholding():
            await workflow.start_child_workflow("Guest", own, id=f"{own}-{suffix}")

    @workflow.signal
    async def try_to_start(self, suffix: str) -> None:
        with suppress(WorkflowAlreadyStartedError):
            await self.start_child(suffix, Plan())

    @workflow.signal
    async def start_and_give_up(self, suffix: str) -> None:
        """Start a child and then take it for cancelled, which it is not."""
        child = await self.start_abandoned(suffix, Plan({"x": Plan()}))
        child.cancel()
        with suppress(ChildWorkflowError):
            await child

    async def start_abandoned(
        self, suffix: str, plan: Plan
    ) -> workflow.ChildWorkflowHandle[Any, Any]:
        """Start a child that is not cancelled where its handle or its start is."""
        return await workflow.start_child_workflow(
            "Node",
            plan,
            id=f"{workflow.info().workflow_id}-{suffix}",
            cancellation_type=workflow.ChildWorkflowCancellationType.ABANDON,
            parent_close_policy=workflow.ParentClosePolicy.ABANDON,
        )

    @workflow.signal
    async def add_elsewhere(
        self, suffix: str, queue: str = "nobody", child_type: str = "Node"
    ) -> None:
        """Start a child on another task queue, which no worker polls where none is named."""
        await workflow.start_child_workflow(
            child_type, Plan(), id=f"{workflow.info().workflow_id}-{suffix}", task_queue=queue
        )

    @workflow.signal
    async def add_children(self, first: int, count: int) -> None:
        await asyncio.gather(
            *[self.start_child(f"c{n}", Plan()) for n in range(first, first + count)]
        )

    @workflow.signal
    def note(self, text: str) -> None:
        self.handled.append(text)

    @workflow.update
    async def wait_for_note(self, text: str) -> None:
        await workflow.wait_condition(lambda: text in self.handled)

    @workflow.signal
    def keep_from(self, suffix: str, name: str | None) -> None:
        self.withhold(f"{workflow.info().workflow_id}-{suffix}", name=name)

    @workflow.signal
    def give_to(self, suffix: str, name: str | None) -> None:
        self.share(f"{workflow.info().workflow_id}-{suffix}", name=name)

    @workflow.signal
    async def hand_on(self, suffix: str, sealed: str) -> None:
        """Signal a child a copied message."""
        child_id = f"{workflow.info().workflow_id}-{suffix}"
        await workflow.get_external_workflow_handle(child_id).signal("apiToken", sealed)

    @workflow.update
    async def take_copy(self, sealed: str) -> str:
        """Set a copied message here; what was refused, or the state."""
        try:
            return (await self.set_api_token(SealedToken(sealed))).state
        except MessageRefused as error:
            return type(error).__name__

    @workflow.signal
    def move_to(self, url: str) -> None:
        self.api_url = url

    @workflow.update
    async def fetch_token(
        self, token: str, origins: list[str] | None, converged_within: float | None = None
    ) -> str:
        """Set a token here; its state, or the children that were not given it in time."""
        sealed = await workflow.execute_activity(
            fetch_and_seal, args=[token, origins], start_to_close_timeout=SOON
        )
        try:
            status = await self.set_api_token(
                sealed, converged=converged_within is not None, timeout=converged_within or 0
            )
        except NotConverged as error:
            return " ".join(node.id for node in error.tree.behind)
        return status.state

    @workflow.update
    async def use_token_once_held(self, within: float | None) -> str:
        """What the only attempt of an activity opens once there is a token, or why none was."""
        try:
            await self.token_held(within)
        except TokenUnavailable as error:
            return f"{type(error).__name__}: {error}"
        return await workflow.execute_activity(
            reveal, start_to_close_timeout=SOON, retry_policy=RetryPolicy(maximum_attempts=1)
        )

    @workflow.update
    async def use_token(self, name: str) -> str:
        return await workflow.execute_activity(reveal, name, start_to_close_timeout=SOON)

    @workflow.update
    async def use_token_locally(self) -> str:
        return await workflow.execute_local_activity(
            reveal, "apiToken", start_to_close_timeout=SOON
        )

    @workflow.update
    async def use_token_again(self) -> str:
        return await workflow.execute_activity(reveal_again, start_to_close_timeout=SOON * 2)

    @workflow.update
    async def use_address(self) -> str | None:
        return await workflow.execute_activity(reveal_address, start_to_close_timeout=SOON)

    @workflow.update
    async def use_next_address(self) -> str | None:
        return await workflow.execute_activity(reveal_next_address, start_to_close_timeout=SOON * 4)

    @workflow.query
    def notes(self) -> list[str]:
        return self.handled


@workflow.defn
class Node(_Controlled, withhold=("Cleanup",)):
    @workflow.run
    async def run(self, plan: Plan) -> str:
        await self.start(plan)
        return await self.until_told()


@workflow.defn
class Cleanup(_Controlled):
    @workflow.run
    async def run(self, plan: Plan) -> str:
        await self.start(plan)
        return await self.until_told()


@workflow.defn
class Host(_Controlled, open_to=("Guest",)):
    @workflow.run
    async def run(self, plan: Plan) -> str:
        await self.start(plan)
        return await self.until_told()


@workflow.defn
class Guest(_Controlled):
    """Joins the workflow it is told of, and notes what its first activity opens then."""

    @workflow.run
    async def run(self, host: str, timeout: float = 40) -> str:
        self.argument = host
        await self.join(host, timeout=timeout)
        self.note(await workflow.execute_activity(reveal, "apiToken", start_to_close_timeout=SOON))
        return await self.until_told()


@workflow.defn
class Sharer(_Controlled, share=("Node",)):
    @workflow.run
    async def run(self, plan: Plan) -> str:
        await self.start(plan)
        return await self.until_told()


@workflow.defn
class Hermit(_Controlled, share=()):
    @workflow.run
    async def run(self, plan: Plan) -> str:
        await self.start(plan)
        return await self.until_told()


@workflow.defn
class Regional(_Controlled, api_url="https://eu.example.com"):
    @workflow.run
    async def run(self, plan: Plan) -> str:
        await self.start(plan)
        return await self.until_told()


@workflow.defn
class Flaky(_Controlled):
    """Fails when told to; started with a retry policy it comes back."""

    @workflow.run
    async def run(self, plan: Plan) -> str:
        if workflow.info().attempt == 1:
            await self.start(plan)
        return await self.until_told()


@workflow.defn
class Brancher(_Controlled):
    """Branches on what it knows of its token, so that a replay that saw another state breaks."""

    @workflow.run
    async def run(self, plan: Plan) -> str:
        await self.start(plan)
        self.seen = ""
        while not self.stopped:
            status = self.api_token_status
            now = "none" if status is None else f"{status.state}{status.version}"
            if now != self.seen:
                self.seen = now
                if status is None:
                    await workflow.sleep(timedelta(milliseconds=1))
                elif status.state == "held":
                    await workflow.execute_activity(reveal, "apiToken", start_to_close_timeout=SOON)
                else:
                    await workflow.execute_local_activity(
                        reveal, "apiToken", start_to_close_timeout=SOON
                    )
            await workflow.wait_condition(lambda: self.stopped or self._moved())
        return self.seen

    def _moved(self) -> bool:
        status = self.api_token_status
        return ("none" if status is None else f"{status.state}{status.version}") != self.seen


@workflow.defn
class Quitter(_Controlled):
    """Starts children, is cancelled meanwhile, and goes on."""

    @workflow.run
    async def run(self, count: int) -> str:
        with suppress(asyncio.CancelledError):
            await self._try("first")
            await asyncio.gather(*[self._try(f"c{n}") for n in range(count)])
        return await self.until_told()

    async def _try(self, suffix: str) -> None:
        try:
            await self.start_abandoned(suffix, Plan())
        except asyncio.CancelledError:
            self.note(suffix)
            raise


@workflow.defn(name=HOSTILE_NAME)
class Liar:
    """No node, and yet it answers as one, with what a terminal would act upon in every text."""

    @workflow.run
    async def run(self, plan: Plan) -> str:
        await workflow.wait_condition(lambda: False)
        return "never"

    @workflow.query(name="apiToken")
    def token(self, name: str) -> dict[str, Any]:
        texts = ("fingerprint", "authority", "issuer")
        lists = ("origins", "types", "readers")
        return {
            "name": name,
            "state": "held",
            "sealed": None,
            **dict.fromkeys(texts, HOSTILE_NAME),
            **{key: [HOSTILE_NAME] for key in lists},
            "version": 100_000,
            "expires_at": None,
            "overtaken": {HOSTILE_NAME: 1},
        }

    @workflow.query(name="apiTokenStatus")
    def status(self) -> dict[str, Any]:
        held = {**self.token("apiToken"), "kind": "token", "in_force": True, "inherit": None}
        lists: dict[str, list[str]] = {"hard": [], "withheld": [], "shared": []}
        child = {"id": HOSTILE_NAME, "type": HOSTILE_NAME, "life": "starting", **lists}
        return {
            "root": workflow.info().workflow_id,
            "tree": HOSTILE_NAME,
            "type": HOSTILE_NAME,
            "api_url": None,
            "tokens": [held],
            "children": [child],
            "withheld": [],
            "waiting": [],
            "undelivered": [{"id": HOSTILE_NAME, "name": "apiToken"}],
            "needs_set": False,
            "recovering": False,
        }


@workflow.defn
class Plain:
    @workflow.run
    async def run(self, plan: Plan) -> str:
        await workflow.wait_condition(lambda: False)
        return "never"


@workflow.defn
class PlainParent:
    """A plain workflow above a tree."""

    @workflow.run
    async def run(self, plan: Plan) -> str:
        return await workflow.execute_child_workflow(
            "Node", plan, id=f"{workflow.info().workflow_id}-root"
        )


@workflow.defn
class Ticker(StatefulWorkflow):
    """For cron: each run reports what it holds through an activity and ends."""

    @workflow.run
    async def run(self) -> str:
        return await workflow.execute_activity(reveal, "apiToken", start_to_close_timeout=SOON)


async def start_old(parent: bool) -> None:
    """Start a child of the same type, and wait for ever."""
    if parent:
        await workflow.start_child_workflow(
            "Growing",
            False,
            id=f"{workflow.info().workflow_id}-old",
            parent_close_policy=workflow.ParentClosePolicy.ABANDON,
        )
    await workflow.wait_condition(lambda: False)


@workflow.defn(name="Growing")
class BareNode:
    """Before it took part in a tree."""

    @workflow.run
    async def run(self, parent: bool) -> None:
        await start_old(parent)


@workflow.defn(name="Growing")
class GrownNode(StatefulWorkflow):
    """The same workflow after its class was given the base."""

    @workflow.run
    async def run(self, parent: bool) -> None:
        await start_old(parent)


@workflow.defn(name="Buggy")
class Buggy(_Controlled):
    @workflow.run
    async def run(self, plan: Plan) -> str:
        await workflow.sleep(timedelta(milliseconds=1))
        return await self.until_told()


@workflow.defn(name="Buggy")
class Mended(_Controlled):
    """`Buggy` without the timer its histories have."""

    @workflow.run
    async def run(self, plan: Plan) -> str:
        return await self.until_told()


WORKFLOWS: list[type] = [
    Brancher,
    Cleanup,
    Flaky,
    Guest,
    Hermit,
    Host,
    Liar,
    Node,
    Plain,
    PlainParent,
    Quitter,
    Regional,
    Sharer,
    Ticker,
]
ACTIVITIES: list[Any] = [
    fetch_and_seal,
    reveal,
    reveal_address,
    reveal_again,
    reveal_next_address,
]
