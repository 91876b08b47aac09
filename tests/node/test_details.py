"""Each node keeps a line of Temporal's own workflow details with what it holds."""

from __future__ import annotations

from temporalio import workflow
from temporalio.api.sdk.v1 import WorkflowMetadata
from temporalio.client import Client
from temporalio.worker import Worker

from stateful_workflow import StatefulWorkflow, TokenClient
from tests.support.asking import eventually, nodes_run
from tests.support.workflows import Node, Plan

URL = "https://api.example.com"


@workflow.defn
class Telling(StatefulWorkflow):
    """Has details of its own, and changes them when it is told to."""

    @workflow.run
    async def run(self) -> None:
        workflow.set_current_details("mine")
        await workflow.wait_condition(lambda: False)

    @workflow.signal
    def tell(self, text: str) -> None:
        workflow.set_current_details(f"{text}\n\n{workflow.get_current_details()}")


async def details_of(client: Client, workflow_id: str) -> str:
    metadata: WorkflowMetadata = await client.get_workflow_handle(workflow_id).query(
        "__temporal_workflow_metadata", result_type=WorkflowMetadata
    )
    return metadata.current_details


async def test_the_details_of_each_node_say_what_it_holds(
    worker: Worker, client: Client, tokens: TokenClient, queue: str
) -> None:
    plan = Plan({"a": Plan(), "c": Plan(type="Cleanup")})
    await tokens.start_workflow(
        Node.run, plan, id=queue, task_queue=queue, api_token="canary-one", api_url=URL
    )
    await nodes_run(tokens, queue, 3)
    for change in (tokens.rotate(queue, "canary-two", timeout=20), tokens.revoke(queue)):
        await change
        status = await tokens.status(queue)
        assert status is not None
        assert status.fingerprint is not None

        state, fingerprint = status.state, status.fingerprint[:8]

        async def says_so() -> None:
            for node in (queue, f"{queue}-a"):
                details = await details_of(client, node)
                assert state in details  # noqa: B023
                assert fingerprint in details  # noqa: B023
                assert "canary" not in details
            assert "withheld" in await details_of(client, f"{queue}-c")

        await eventually(says_so)
    assert f"set at `{queue}`" in await details_of(client, f"{queue}-a")


async def test_what_a_workflows_own_code_has_in_its_details_stays(
    client: Client, tokens: TokenClient, queue: str
) -> None:
    async with Worker(client, task_queue=queue, workflows=[Telling]):
        await tokens.start_workflow(
            Telling.run, id=queue, task_queue=queue, api_token="one", api_url=URL
        )
        await tokens.set(queue, "two")
        assert (await details_of(client, queue)).startswith("mine\n\n`apiToken` **held**")

        await client.get_workflow_handle(queue).signal(Telling.tell, "more")
        await tokens.revoke(queue)
        assert (await details_of(client, queue)).startswith(
            "more\n\nmine\n\n`apiToken` **revoked**"
        )


async def test_a_workflow_that_has_no_token_has_no_such_line(
    worker: Worker, client: Client, queue: str
) -> None:
    await client.start_workflow(Node.run, Plan(), id=queue, task_queue=queue)

    assert await details_of(client, queue) == ""
