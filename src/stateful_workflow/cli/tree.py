"""`stateful tree`: who holds what."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Final, NoReturn

import typer
from rich.console import Group
from rich.live import Live
from rich.tree import Tree
from temporalio.service import RPCError

from ..client.client import TokenClient
from ..errors import NoWorkerAnswers
from ..node.contract import MAX_SIGNALS
from ..node.status import TokenStatus, TokenTree, TreeNode
from ..sealed.message import DEFAULT_NAME
from ..text.output import Escaped, out, print_json, say
from ..text.printable import printable
from .common import (
    Address,
    Json,
    Name,
    Namespace,
    WorkflowId,
    connect,
    run,
)

NOT_CONVERGED = 3
"""Exit status: some node has not accepted the newest version."""

_ALIKE: Final = 10
"""So many siblings that look alike are drawn each by itself; more are one line."""


def tree(
    workflow_id: WorkflowId,
    name: Name = DEFAULT_NAME,
    address: Address = None,
    namespace: Namespace = None,
    as_json: Json = False,
    watch: Annotated[
        bool,
        typer.Option("--watch", "-w", help="Follow it until Ctrl-C; with --json a line a change."),
    ] = False,
    every: Annotated[
        float, typer.Option(min=0.1, help="With --watch: seconds from one look to the next.")
    ] = 1.0,
    each: Annotated[
        bool, typer.Option("--all", help="Draw each of many siblings that look alike.")
    ] = False,
) -> None:
    """Show a workflow's tree: who holds which version, from whom it is withheld.

    Where more than ten siblings differ by their id alone, with all below them, one line stands
    for them; --json has every node.

    Exit status 0 when every node that should have the newest version has accepted it, 3 when
    one has not; 0 after Ctrl-C of a watch.
    """

    async def command() -> int:
        tokens = TokenClient(await connect(address, namespace))
        if watch:
            await _watch(tokens, workflow_id, name, every, as_json=as_json, each=each)
        return show_tree(await tokens.tree(workflow_id, name), as_json=as_json, each=each)

    run(command(), stopped=0 if watch else None)


async def _watch(
    tokens: TokenClient, workflow_id: str, name: str, every: float, *, as_json: bool, each: bool
) -> NoReturn:
    tree = await tokens.tree(workflow_id, name)
    console = out()
    if as_json or not console.is_terminal:
        shown: tuple[TreeNode, ...] | None = None
        while True:
            if tree.nodes != shown:
                shown = tree.nodes
                show_tree(tree, as_json=as_json, each=each)
            seen = await _next_look(tokens, tree, every)
            if seen is None:
                say("the tree does not answer; it is asked again", err=True)
            tree = seen or tree
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            live.update(Group(render(tree, time.time(), each=each), _looked_at()), refresh=True)
            seen = await _next_look(tokens, tree, every)
            while seen is None:
                note = Escaped(("the tree does not answer; it is asked again", "red"))
                live.update(Group(render(tree, time.time(), each=each), note), refresh=True)
                seen = await _next_look(tokens, tree, every)
            tree = seen


async def _next_look(tokens: TokenClient, tree: TokenTree, every: float) -> TokenTree | None:
    """The tree a little later, or None where it could not be asked just now."""
    await asyncio.sleep(every)
    try:
        return await tokens.tree(tree.nodes[0].id, tree.name)
    except (NoWorkerAnswers, RPCError):
        return None


def _looked_at() -> Escaped:
    return Escaped((time.strftime("as of %H:%M:%S, Ctrl-C ends it"), "dim"))


def show_tree(tree: TokenTree, *, as_json: bool, each: bool = False) -> int:
    """Print a tree and return the exit status it stands for; `each` as for `render`."""
    if as_json:
        nodes = [asdict(node) for node in tree.nodes]
        signed = {} if tree.signed is None else {"signed": tree.signed.to_json()}
        print_json({"name": tree.name, "converged": tree.converged, **signed, "nodes": nodes})
    else:
        if tree.signed is not None:
            out().print(f"signed {terms(tree.signed)}")
        out().print(render(tree, time.time(), each=each))
    return 0 if tree.converged else NOT_CONVERGED


def terms(signed: TokenStatus) -> str:
    """What was signed with a token, in one line: where it may go, and who may open it."""
    return "; ".join(
        (
            f"{signed.name} {signed.fingerprint} for {', '.join(signed.origins) or 'no origin'}",
            f"types {_any(signed.types)}",
            f"readers {_any(signed.readers)}",
        )
    )


def _any(names: Sequence[str] | None) -> str:
    return "any" if names is None else ", ".join(names) or "none"


def render(tree: TokenTree, now: float, *, each: bool = False) -> Tree:
    """Draw a tree; many siblings of which nothing but the id differs are one line.

    Args:
        tree: what was seen.
        now: Unix seconds, for the age of versions.
        each: draw every node.
    """
    verdict = (
        ("converged", "green")
        if tree.converged
        else (f"not converged, {len(tree.behind)} behind", "red")
    )
    drawn = Tree(Escaped((tree.name, "bold"), " ", verdict))
    children = _children(tree.nodes)
    looks = _looks(tree.nodes, children, now)
    todo = [(drawn, children[None])] if tree.nodes else []
    while todo:
        branch, siblings = todo.pop()
        for alike in _folded(siblings, looks, most=len(siblings) if each else _ALIKE):
            line, below = _line(alike, now), children.get(alike[0].id, [])
            if below and len(alike) > 1:
                line.append(", each with", "dim")
            todo.append((branch.add(line), below))
    return drawn


def _children(nodes: Sequence[TreeNode]) -> Mapping[str | None, list[TreeNode]]:
    """The nodes by the id of their parent; those whose parent was not seen, by None."""
    seen = {node.id for node in nodes}
    children: dict[str | None, list[TreeNode]] = {}
    for node in nodes:
        children.setdefault(node.parent if node.parent in seen else None, []).append(node)
    return children


def _looks(
    nodes: Sequence[TreeNode], children: Mapping[str | None, list[TreeNode]], now: float
) -> Mapping[str, int]:
    """For each node a number that it shares with those that look as it does, all below included."""
    numbers: dict[tuple[str, tuple[int, ...]], int] = {}
    looks: dict[str, int] = {}
    for node in reversed(nodes):  # children before their parents
        below = sorted(looks[child.id] for child in children.get(node.id, ()))
        look = (_what(node, now).plain.replace(printable(node.id), ""), tuple(below))
        looks[node.id] = numbers.setdefault(look, len(numbers))
    return looks


def _folded(
    siblings: Sequence[TreeNode], looks: Mapping[str, int], *, most: int
) -> Iterator[list[TreeNode]]:
    """Siblings that look alike together where there are more than `most`, the others alone."""
    by_look: dict[int, list[TreeNode]] = {}
    for node in siblings:
        by_look.setdefault(looks[node.id], []).append(node)
    for node in siblings:
        alike = by_look[looks[node.id]]
        if len(alike) <= most:
            yield [node]
        elif node is alike[0]:
            yield alike


def _line(alike: Sequence[TreeNode], now: float) -> Escaped:
    first, last = alike[0], alike[-1]
    if first is last:
        return Escaped((first.id, "bold"), " ", _what(first, now))
    return Escaped((f"{len(alike)} × ", "bold"), _what(first, now), f": {first.id} … {last.id}")


def _what(node: TreeNode, now: float) -> Escaped:
    """What a line says of a node beside its id."""
    line = Escaped(node.type, style="dim")
    version = ""
    if node.version is not None:
        version = f"{node.fingerprint} {_age(now - node.version / 1000)}"
    if node.withheld and not version:
        line.append(" withheld", "yellow")
    elif node.withheld and node.state == "held" and node.authority != node.id:
        line.append(f" withheld, still holds {version}", "yellow")
    elif node.withheld:
        line.append(f" withheld, {node.state} {version}", "yellow")
    elif not version:
        line.append(f" {node.state}", "dim")
    else:
        line.append(f" {node.state} {version}", "green" if node.current else "red")
    if node.closed:
        line.append(" closed", "dim")
    if not node.current:
        line.append(" behind", "red")
    if node.signals is not None:
        line.append(f" {node.signals:,} of {MAX_SIGNALS:,} signals: continue as new", "yellow")
    if node.undelivered:
        line.append(f" undelivered: {_some(node.undelivered)}", "yellow")
    if node.problem is not None:
        line.append(f" {node.problem}", "red")
    return line


def _some(ids: Sequence[str]) -> str:
    shown = ", ".join(ids[:_ALIKE])
    return shown if len(ids) <= _ALIKE else f"{shown} and {len(ids) - _ALIKE} more"


def _age(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} old"
    return f"{max(seconds, 0):.0f} s old"
