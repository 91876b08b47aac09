"""An API refused a token: the workflow at which it was set is told so once."""

from __future__ import annotations

from typing import Any

from temporalio.api.sdk.v1 import WorkflowMetadata
from temporalio.client import WorkflowUpdateFailedError
from temporalio.exceptions import ApplicationError

from stateful_workflow import TokenStatus
from tests.support.trees import Tree


async def report(tree: Tree, status: TokenStatus, **other: Any) -> str | None:
    """Report a token by update, and return the name of the error that turned it down."""
    said: dict[str, Any] = {
        "name": status.name,
        "fingerprint": status.fingerprint,
        "version": status.version,
    }
    said |= {"authority": status.authority, **other}
    try:
        await tree[""].execute_update("apiTokenReport", said)
    except WorkflowUpdateFailedError as error:
        return error.cause.type if isinstance(error.cause, ApplicationError) else "no name"
    return None


async def test_the_first_report_counts_and_what_says_nothing_new_enters_no_history(
    tree: Tree,
) -> None:
    await tree.start()
    status = await tree.tokens.status(tree.root)
    assert status is not None

    assert await report(tree, status) is None
    before = (await tree[""].describe()).history_length
    assert await report(tree, status) == "TokenKnown"
    assert await report(tree, status, fingerprint="0123456789abcdef") == "TokenStale"
    assert await report(tree, status, name=["apiToken"]) == "TokenStale"

    assert (await tree[""].describe()).history_length == before
    assert (await tree[""].query("apiTokenStatus"))["reports"] == {
        "apiToken": {status.fingerprint: 1}
    }


async def test_only_a_token_that_stands_is_said_to_be_refused(tree: Tree) -> None:
    await tree.start()
    first = await tree.tokens.status(tree.root)
    assert first is not None
    await report(tree, first)
    reported = await tree.tokens.status(tree.root)
    assert reported is not None
    assert (first.refused, reported.refused) == (False, True)
    shown: WorkflowMetadata = await tree[""].query(
        "__temporal_workflow_metadata", result_type=WorkflowMetadata
    )
    assert "refused by an API" in shown.current_details

    await tree.tokens.revoke(tree.root)
    revoked = await tree.tokens.status(tree.root)
    assert revoked is not None

    assert not revoked.refused
    assert await report(tree, first) == "TokenStale"
    assert await report(tree, revoked) == "TokenStale"
