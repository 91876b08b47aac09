"""What an update is answered after its message was signalled as well."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from temporalio.client import WorkflowUpdateFailedError
from temporalio.exceptions import ApplicationError

from stateful_workflow import TokenConflict
from stateful_workflow.client.calls import _stands  # pyright: ignore[reportPrivateUsage]
from stateful_workflow.errors import StatefulError

ANSWERS: dict[str, tuple[ApplicationError, type[StatefulError]]] = {
    "refused": (ApplicationError("made so", type="TokenConflict"), TokenConflict),
}


@pytest.mark.parametrize("what", ANSWERS)
async def test_a_late_refusal_is_said_and_not_waited_out(what: str) -> None:
    answer, refusal = ANSWERS[what]

    async def late() -> object:
        raise WorkflowUpdateFailedError(answer)

    update = asyncio.create_task(late())
    await asyncio.wait([update])

    with pytest.raises(refusal):
        await asyncio.wait_for(_stands(cast("Any", None), "w", cast("Any", None), update), 5)
