"""What a type checker must know of `TokenClient.start_workflow`; checked by linting, never run."""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from datetime import timedelta
from typing import Any

from temporalio.client import WorkflowHandle
from typing_extensions import assert_type

from stateful_workflow import TokenClient

from .use_workflows import Caller, Clumsy, Distant, Job, PlainCaller


async def the_handle_has_the_types_of_the_run_method(tokens: TokenClient) -> None:
    no_argument = await tokens.start_workflow(
        Caller.run, id="i", task_queue="q", api_token="t", api_url="https://a.example"
    )
    assert_type(no_argument, WorkflowHandle[Caller, None])
    one = await tokens.start_workflow(
        PlainCaller.run, Job(), id="i", task_queue="q", expires_in=timedelta(hours=1)
    )
    assert_type(one, WorkflowHandle[PlainCaller, list[str]])
    assert_type(await one.result(), list[str])
    several = await tokens.start_workflow(Clumsy.run, args=["t", True], id="i", task_queue="q")
    assert_type(several, WorkflowHandle[Any, None])
    by_name = await tokens.start_workflow("Caller", id="i", task_queue="q", origins=["https://a"])
    assert_type(by_name, WorkflowHandle[Any, Any])


async def a_wrong_argument_is_an_error(tokens: TokenClient) -> None:
    await tokens.start_workflow(  # pyright: ignore[reportCallIssue]
        PlainCaller.run,
        "no job",  # pyright: ignore[reportArgumentType]
        id="i",
        task_queue="q",
    )
    await tokens.start_workflow(Distant.run, id="i", task_queue="q")  # pyright: ignore[reportArgumentType, reportCallIssue]
    await tokens.start_workflow(Caller.run, id="i", task_queue="q", api_tokn="t")  # pyright: ignore[reportCallIssue]
    await tokens.start_workflow(  # pyright: ignore[reportCallIssue]
        Caller.run,
        id="i",
        task_queue="q",
        expires_in="1h",  # pyright: ignore[reportArgumentType]
    )
