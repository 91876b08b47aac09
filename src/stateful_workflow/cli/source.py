"""`stateful token authorize` and `renew`: what a source mints at a workflow."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Final

import typer

from ..client.client import TokenClient
from ..client.starting import NewGrant
from ..errors import NotRenewed, OperationFailed
from ..node.renewal import SourceStatus
from ..text.output import Escaped, out, print_json, say
from ..text.strict_json import json_object
from .common import AtWorkflow, Timeout, command, not_empty
from .token import GivenSecret, Noted, one_line, source_json, source_rows, table_of
from .tree import NOT_CONVERGED, some

_LOOK_EVERY_SECONDS: Final = 0.5
_UNITS: Final = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


def _seconds(text: str) -> float:
    """Of `90`, `90s`, `30m`, `12h` or `7d`."""
    found = re.fullmatch(r"(\d{1,9})(s|m|min|h|d)?", text)
    seconds = 0 if found is None else int(found[1]) * _UNITS[found[2] or ""]
    if seconds < 1:
        raise ValueError("no such time")
    return float(seconds)


@dataclass(frozen=True)
class ToAuthorize(GivenSecret):
    """Options of a command that gives a grant."""

    grant_from_env: Annotated[
        str | None, typer.Option(metavar="VARIABLE", help="Read the grant from this variable.")
    ] = None
    refresh_token: Annotated[
        bool,
        typer.Option(
            "--refresh-token", help="What is read is an OAuth 2.0 refresh token, no JSON."
        ),
    ] = False
    no_grant: Annotated[
        bool, typer.Option("--no-grant", help="The source needs none: all is in itself.")
    ] = False

    def secret(self) -> dict[str, Any]:
        """The grant."""
        grant = self._grant()
        return {"grant": grant, **self.note(*NewGrant("", grant).secrets)}

    def _grant(self) -> dict[str, Any]:
        if self.no_grant and not (self.grant_from_env or self.refresh_token or self.mistaken):
            return {}
        if self.no_grant:
            raise typer.BadParameter("--no-grant stands without a grant")
        mistake = "have its provider revoke it"
        text = self.read("grant", "--grant-from-env", self.grant_from_env, mistake)
        if self.refresh_token:
            return {"refresh_token": one_line(text)}
        try:
            return json_object(text)
        except ValueError as error:
            raise typer.BadParameter(
                f'a grant is a JSON object, such as {{"refresh_token": "…"}}, and of what was '
                f"given: {error}. Of a refresh token alone say so by --refresh-token"
            ) from None


@command
async def authorize(
    options: ToAuthorize,
    source: Annotated[
        str, typer.Option(metavar="NAME", callback=not_empty, help="As its workers name it.")
    ],
    renew_every: Annotated[
        float | None,
        typer.Option(
            parser=_seconds,
            metavar="TIME",
            help="Renew at the latest after so long, such as 90s, 30m, 12h or 7d; else in time "
            "for the token's expiry.",
        ),
    ] = None,
    retire: Annotated[
        bool,
        typer.Option("--retire", help="Revoke each token once its successor is in use everywhere."),
    ] = False,
    timeout: Timeout = 60.0,
) -> int:
    """Give a workflow a grant, by which a source mints its tokens, and wait for the first one.

    The grant is a JSON object from stdin, or from a variable with --grant-from-env; never from the
    command line. It is sealed for the workers of sources alone. Terms are those of its tokens: name
    --origin the first time, unless the source gives it.

    Exit status 0 once a token of this grant stands, 3 where none does yet: what is printed says
    what holds it up. It is tried on after that.
    """
    async with options.client() as tokens:
        status = await tokens.authorize(
            **options.given, source=source, renew_every=renew_every, retire=retire
        )
        deadline = time.monotonic() + timeout
        with _progress() as show:
            while not _is_settled(status) and time.monotonic() < deadline:
                show(status.amiss or f"source {source} mints the first token …")
                await asyncio.sleep(_LOOK_EVERY_SECONDS)
                status = await tokens.source(options.workflow_id, options.name) or status
    return _show(options, status, is_done=status.state == "fresh")


def _is_settled(status: SourceStatus) -> bool:
    return status.state == "fresh" or status.needs_authorization


@command
async def renew(
    options: Noted,
    retire: Annotated[
        bool, typer.Option("--retire", help="Wait until the old one is revoked at its provider.")
    ] = False,
    timeout: Timeout = 60.0,
) -> int:
    """Have its source mint a new token for a workflow now, and wait until it stands.

    With --retire it waits until every workflow that should have the new one holds it and running
    activities have asked for it; then the old one is revoked at its provider, which is asked
    whether it refuses it now.

    Exit status 0 when all of that is done. 3 says that it is not: what is printed names who holds
    it up. The old token is kept then, and what was asked for goes on.
    """
    at = options.workflow_id, options.name
    problem: str | None = None
    async with options.client() as tokens:
        before, old = await tokens.source(*at), await tokens.status(*at)
        fingerprint = None if old is None else old.fingerprint
        asked = tokens.renew(*at, retire=retire, timeout=timeout, **options.note())
        renewing = asyncio.create_task(asked)
        with _progress() as show:
            while not (await asyncio.wait([renewing], timeout=_LOOK_EVERY_SECONDS))[0]:
                show(await _step(tokens, options, fingerprint))
        try:
            status = await renewing
        except NotRenewed as error:
            waits = bool(error.status.retiring) and not error.status.asked
            step = await _step(tokens, options, fingerprint) if waits else None
            return _show(options, error.status, is_done=False, problem=step)
        new = await tokens.status(*at)
    was_retired = None if before is None else before.retired
    if new is not None and new.fingerprint == fingerprint:
        problem = f"source {status.source} gave the token that stands there already"
    elif retire and old is not None and old.state == "held" and status.retired == was_retired:
        problem = f"{fingerprint} is not retired: source {status.source} did not mint it"
    is_taken = retire and status.proven is False
    return _show(options, status, is_done=problem is None and not is_taken, problem=problem)


async def _step(tokens: TokenClient, options: AtWorkflow, old: str | None) -> str:
    """How far a renewal is; where nobody answers just now, that."""
    try:
        return await _seen(tokens, options, old)
    except OperationFailed as error:
        return str(error)


async def _seen(tokens: TokenClient, options: AtWorkflow, old: str | None) -> str:
    status = await tokens.source(options.workflow_id, options.name)
    if status is None or status.asked or status.is_minting:
        return (status and status.amiss) or "a new token is minted …"
    if status.amiss is not None or all(one.fingerprint != old for one in status.retiring):
        return f"minted; {status.amiss or 'the old one is retired'}"
    tree = await tokens.tree(options.workflow_id, options.name)
    meant = [node for node in tree.nodes if not (node.closed or node.withheld)]
    behind = [node.id for node in meant if not node.current]
    held = f"minted; {len(meant) - len(behind)} of {len(meant)} workflows hold it"
    if behind:
        return f"{held}, not yet {some(behind)}"
    return f"{held}; running activities ask for it, then the old one is retired …"


@contextmanager
def _progress() -> Generator[Callable[[str], None], None, None]:
    """Shows on stderr what is waited for: in its place on a terminal, else a line a change."""
    console = out(err=True)
    last = ""
    with console.status("") as shown:

        def show(step: str) -> None:
            nonlocal last
            if console.is_terminal:
                shown.update(Escaped(step))
            elif step != last:
                say(step, err=True)
            last = step

        yield show


def _show(
    options: AtWorkflow, status: SourceStatus, *, is_done: bool, problem: str | None = None
) -> int:
    home = options.workflow_id
    if options.as_json:
        more = {} if problem is None else {"problem": problem}
        print_json({"done": is_done, **source_json(home, status), **more})
    else:
        named = {"workflow": home, "name": options.name}
        out().print(table_of({**named, **source_rows(home, status), "problem": problem}))
    return 0 if is_done else NOT_CONVERGED
