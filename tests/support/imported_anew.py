"""A workflow whose module imports the library as users do, without passing it through."""

from __future__ import annotations

from temporalio import workflow

from stateful_workflow import StatefulWorkflow


@workflow.defn
class Plainly(StatefulWorkflow):
    @workflow.run
    async def run(self) -> str:
        status = self.api_token_status
        return "nothing" if status is None else status.state
