"""A root that only holds tokens, for workflows that join it."""

from __future__ import annotations

from temporalio import workflow

from . import limits
from .workflow import StatefulWorkflow


@workflow.defn
class TokenHome(StatefulWorkflow):
    """A workflow that holds tokens for others, which `join` it, and ends when it is terminated.

    `StatefulPlugin` gives it to each worker that has workflows. Start it as any root::

        await tokens.start_workflow(
            TokenHome.run, ["Nightly"], id="home", task_queue="nightly", api_token=token
        )

    Args of its run:
        types: workflow types that may join it.
        under: another home that it joins itself, where more workflows than one can tell
            (docs/limits.md) are to have one token; such a one is started without a token.
    """

    @workflow.init
    def __init__(self, types: list[str], under: str | None = None) -> None:
        self.stateful_node.open_to(types)

    @workflow.run
    async def run(self, types: list[str], under: str | None = None) -> None:
        """Wait for ever, in as many runs as it takes."""
        if under is not None:
            await self.join(under)
        await workflow.wait_condition(self._is_long)
        await workflow.wait_condition(workflow.all_handlers_finished)
        workflow.continue_as_new(args=[types, under])

    def _is_long(self) -> bool:
        suggested = workflow.info().is_continue_as_new_suggested()
        return suggested or self.stateful_node.signals >= limits.LIMITS.many_signals
