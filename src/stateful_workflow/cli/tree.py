"""`stateful tree`: who holds what."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict
from typing import Annotated, NoReturn

import typer
from rich.console import Group
from rich.live import Live
from rich.text import Text
from rich.tree import Tree
from temporalio.service import RPCError

from ..client import TokenClient
from ..errors import NoWorkerAnswers
from ..messages import DEFAULT_NAME
from ..status import TokenTree, TreeNode
from .common import (
    Address,
    Json,
    Name,
    Namespace,
    WorkflowId,
    connect,
    out,
    print_json,
    run,
)

NOT_CONVERGED = 3
"""Exit status: some node has not accepted the newest version."""


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
) -> None:
    """Show a workflow's tree: who holds which version, from whom it is withheld.

    Exit status 0 when every node that should have the newest version has accepted it, 3 when
    one has not; 0 after Ctrl-C of a watch.
    """

    async def command() -> int:
        tokens = TokenClient(await connect(address, namespace))
        if watch:
            await _watch(tokens, workflow_id, name, every, as_json=as_json)
        return show_tree(await tokens.tree(workflow_id, name), as_json=as_json)

    run(command(), stopped=0 if watch else None)


async def _watch(
    tokens: TokenClient, workflow_id: str, name: str, every: float, *, as_json: bool
) -> NoReturn:
    tree = await tokens.tree(workflow_id, name)
    console = out()
    if as_json or not console.is_terminal:
        shown: tuple[TreeNode, ...] | None = None
        while True:
            if tree.nodes != shown:
                shown = tree.nodes
                show_tree(tree, as_json=as_json)
            seen = await _next_look(tokens, tree, every)
            if seen is None:
                typer.echo("the tree does not answer; it is asked again", err=True)
            tree = seen or tree
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            live.update(Group(render(tree, time.time()), _looked_at()), refresh=True)
            seen = await _next_look(tokens, tree, every)
            while seen is None:
                note = Text("the tree does not answer; it is asked again", "red")
                live.update(Group(render(tree, time.time()), note), refresh=True)
                seen = await _next_look(tokens, tree, every)
            tree = seen


async def _next_look(tokens: TokenClient, tree: TokenTree, every: float) -> TokenTree | None:
    """The tree a little later, or None where it could not be asked just now."""
    await asyncio.sleep(every)
    try:
        return await tokens.tree(tree.nodes[0].id, tree.name)
    except (NoWorkerAnswers, RPCError):
        return None


def _looked_at() -> Text:
    return Text(time.strftime("as of %H:%M:%S, Ctrl-C ends it"), "dim")


def show_tree(tree: TokenTree, *, as_json: bool) -> int:
    """Print a tree and return the exit status it stands for."""
    if as_json:
        nodes = [asdict(node) for node in tree.nodes]
        print_json({"name": tree.name, "converged": tree.converged, "nodes": nodes})
    else:
        out().print(render(tree, time.time()))
    return 0 if tree.converged else NOT_CONVERGED


def render(tree: TokenTree, now: float) -> Tree:
    """Draw a tree.

    Args:
        tree: what was seen.
        now: Unix seconds, for the age of versions.
    """
    verdict = (
        Text("converged", "green")
        if tree.converged
        else Text(f"not converged, {len(tree.behind)} behind", "red")
    )
    drawn = Tree(Text.assemble((tree.name, "bold"), " ", verdict))
    branches: dict[str | None, Tree] = {}
    for node in tree.nodes:
        branches[node.id] = branches.get(node.parent, drawn).add(_line(node, now))
    return drawn


def _line(node: TreeNode, now: float) -> Text:
    line = Text.assemble((node.id, "bold"), " ", (node.type, "dim"))
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
    if node.by_update:
        line.append(" told by update: its run takes no more signals", "yellow")
    if node.rotations_left is not None:
        line.append(f" about {node.rotations_left} rotations left: continue as new", "yellow")
    if node.undelivered:
        line.append(f" undelivered: {', '.join(node.undelivered)}", "yellow")
    if node.problem is not None:
        line.append(f" {node.problem}", "red")
    return line


def _age(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} old"
    return f"{max(seconds, 0):.0f} s old"
