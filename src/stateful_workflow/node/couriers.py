"""Ask this workflow's couriers, and read what they answer.

Whoever polls their task queue may have answered, another program's activity of any name too. So an
answer is held against its type before anything of it is believed.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any, Final, TypeVar

from temporalio import workflow
from temporalio.common import RawValue, RetryPolicy
from temporalio.exceptions import ApplicationError, FailureError, is_cancelled_exception

from ..errors import AnswerMalformed
from .contract import courier_queue_of
from .members import read

_LARGEST: Final = 2 * 1024 * 1024
"""Bytes of a payload that the server takes."""

HEARTBEAT: Final = timedelta(seconds=4)
"""After this the server takes the worker of a source for dead."""

T = TypeVar("T")


class NoAnswer(Exception):
    """A courier gave no answer, or none that can be read; the text says why."""


def courier_queue() -> str:
    """The task queue of the couriers of this workflow's workers."""
    return courier_queue_of(workflow.info().task_queue)


def start(
    activity: str, *args: Any, task_queue: str | None = None, **options: Any
) -> workflow.ActivityHandle[RawValue]:
    """Start an activity of a courier, or of another queue of the library's; its options are the
    SDK's."""
    queue = courier_queue() if task_queue is None else task_queue
    return workflow.start_activity(
        activity, args=args, result_type=RawValue, task_queue=queue, **options
    )


def start_once(
    activity: str, request: object, *, task_queue: str, within: timedelta
) -> workflow.ActivityHandle[RawValue]:
    """Start what a source's worker does once: nobody but this workflow decides on a second time.

    Where it is cancelled, its end is awaited all the same, unless no worker has begun it.

    Args:
        activity: its name.
        request: its argument, a dataclass.
        task_queue: of the source's workers, or of the couriers.
        within: what it may take.
    """
    return start(
        activity,
        vars(request),
        task_queue=task_queue,
        start_to_close_timeout=within,
        heartbeat_timeout=HEARTBEAT,
        retry_policy=RetryPolicy(maximum_attempts=1),
        cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
    )


def result(handle: asyncio.Task[RawValue], cls: type[T]) -> T:
    """What a courier answered, once it has.

    Raises:
        FailureError: the activity failed.
        AnswerMalformed: the answer is not what it has to be.
    """
    answer: Any = handle.result()
    try:
        if isinstance(answer, RawValue):  # the user's converter may know no raw values
            if answer.payload.ByteSize() > _LARGEST:
                raise AnswerMalformed("it is too large")
            answer = workflow.payload_converter().from_payload(answer.payload)
        return read(cls, answer)
    except AnswerMalformed as error:
        why = str(error)
    except Exception as error:  # noqa: BLE001 - the converter is the user's, and may raise anything
        why = f"it cannot be decoded: {type(error).__name__}"
    raise AnswerMalformed(
        f"what was answered is none of this library's answers ({why}): only workers with "
        f"StatefulPlugin may poll {courier_queue()}, and those of the library's other task queues"
    )


async def ask(activity: str, *args: Any, answers: type[T], **options: Any) -> T:
    """Ask a courier and wait.

    Raises:
        NoAnswer: none came that can be read.
        FailureError: this was cancelled.
    """
    handle = start(activity, *args, **options)
    try:
        await handle
        return result(handle, answers)
    except AnswerMalformed as error:
        why = str(error)
    except FailureError as error:
        if is_cancelled_exception(error):
            raise
        why = _why(error)
    raise NoAnswer(why)


def _why(error: BaseException) -> str:
    """What an attempt said last, or that there was none."""
    last = error
    while last.__cause__ is not None:
        last = last.__cause__
    if isinstance(last, ApplicationError):
        return last.message
    return (
        f"no courier answered; does a worker with workflows and StatefulPlugin poll "
        f"{workflow.info().task_queue}?"
    )
