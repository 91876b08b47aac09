"""The workflow that the audit benchmark runs."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from temporalio import activity, workflow

with workflow.unsafe.imports_passed_through():
    from stateful_workflow import StatefulWorkflow, current_token

AT_ONCE = 25


@activity.defn
async def open_token() -> None:
    current_token()


@workflow.defn
class Opening(StatefulWorkflow):
    """Runs activities that open its token, a few at once."""

    @workflow.run
    async def run(self, activities: int) -> None:
        slots = asyncio.Semaphore(AT_ONCE)

        async def one() -> None:
            async with slots:
                await workflow.execute_activity(
                    open_token, start_to_close_timeout=timedelta(seconds=60)
                )

        await asyncio.gather(*[one() for _ in range(activities)])
