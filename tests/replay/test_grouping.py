"""A history replays whether the SDK gives a workflow an update with the events before it, or after.

A workflow task that has led to no command may be given to the workflow together with the next one,
in which an update came: signals and updates are seen first then, and what had come before them
after. The replayer here does so wherever it can be done; what the workflow does has to be what the
history says, as when each task is given by itself (`test_histories`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
from temporalio.bridge.proto.workflow_activation import WorkflowActivation
from temporalio.bridge.proto.workflow_completion import WorkflowActivationCompletion
from temporalio.worker import (
    UnsandboxedWorkflowRunner,
    WorkflowInstance,
    WorkflowInstanceDetails,
)

from tests.replay.record import HISTORIES, recorded_keyring
from tests.replay.test_histories import failure_of, read

WITH_UPDATES = sorted(
    path
    for path in HISTORIES.glob("*.json")
    if "EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ACCEPTED" in path.read_text()
)

APART = {
    "do_update",
    "initialize_workflow",
    "remove_from_cache",
    "resolve_child_workflow_execution_start",  # docs/decisions/known-limits.md
}
"""Jobs of an activation that is given by itself."""


class Grouping(UnsandboxedWorkflowRunner):
    """Gives some activations together with the next one.

    Args:
        together: numbers of the activations that are kept for the next one.

    Attributes:
        jobs: of each activation as it came, what it brought.
        idle: numbers of the activations that led to no command.
    """

    def __init__(self, together: Collection[int] = ()) -> None:
        super().__init__()
        self._together = together
        self.jobs: list[set[str]] = []
        self.idle: set[int] = set()

    def create_instance(self, det: WorkflowInstanceDetails) -> WorkflowInstance:
        instance = super().create_instance(det)
        activate: Callable[[WorkflowActivation], WorkflowActivationCompletion] = instance.activate
        kept: list[Any] = []

        def grouped(activation: WorkflowActivation) -> WorkflowActivationCompletion:
            number = len(self.jobs)
            self.jobs.append({str(job.WhichOneof("variant")) for job in activation.jobs})
            if number in self._together:
                kept.extend(activation.jobs)
                done = WorkflowActivationCompletion(run_id=activation.run_id)
                done.successful.SetInParent()
                return done
            later = [*activation.jobs]
            del activation.jobs[:]
            activation.jobs.extend([*kept, *later])
            kept.clear()
            completion = activate(activation)
            if completion.HasField("successful") and not completion.successful.commands:
                self.idle.add(number)
            return completion

        setattr(instance, "activate", grouped)  # noqa: B010 - it is a method
        return instance

    @property
    def before_updates(self) -> set[int]:
        """Those that led to no command, and after which comes one with an update."""
        return {
            number
            for number in self.idle
            if number + 1 < len(self.jobs)
            and "do_update" in self.jobs[number + 1]
            and not self.jobs[number] & APART
        }


async def failure_of_grouped(path: Path, grouping: Grouping) -> Exception | None:
    return await failure_of(read(path), recorded_keyring(), workflow_runner=grouping)


async def as_recorded(path: Path) -> Grouping:
    grouping = Grouping()
    assert await failure_of_grouped(path, grouping) is None
    return grouping


@pytest.mark.parametrize("path", WITH_UPDATES, ids=lambda path: path.stem)
async def test_a_history_replays_with_updates_before_what_came_before_them(path: Path) -> None:
    together = (await as_recorded(path)).before_updates

    for number in together:
        assert await failure_of_grouped(path, Grouping({number})) is None
    assert await failure_of_grouped(path, Grouping(together)) is None


async def test_the_crowded_history_has_tellings_and_updates_to_give_together() -> None:
    """The control."""
    recorded = await as_recorded(HISTORIES / "crowded.-root.0.json")

    assert any(
        recorded.jobs[number + 1] >= {"signal_workflow", "do_update", "resolve_activity"}
        for number in recorded.before_updates
    )
