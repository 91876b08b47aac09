"""A workflow whose module passes nothing through the sandbox: the plugin has to do it."""

from temporalio import workflow

from stateful_workflow import StatefulWorkflow


@workflow.defn
class Lone(StatefulWorkflow):
    @workflow.run
    async def run(self) -> None:
        await workflow.wait_condition(lambda: False)
