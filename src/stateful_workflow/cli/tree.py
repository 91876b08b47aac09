"""`stateful tree`: who holds what."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from typing import Annotated, Final, NoReturn

import typer
from rich.console import Group
from rich.live import Live
from rich.tree import Tree
from temporalio.service import RPCError

from ..client.client import TokenClient
from ..errors import NoWorkerAnswers
from ..node.contract import MAX_SIGNALS
from ..node.renewal import SourceStatus
from ..node.status import TokenStatus, TokenTree, TreeNode
from ..sealed.origins import in_clear
from ..text.output import Escaped, out, print_json, say
from ..text.printable import printable
from ..text.times import utc
from .common import AtWorkflow, KeyringPath, command, keyring_at_hand, run

NOT_CONVERGED = 3
"""Exit status: not every node that should have the newest version holds a usable one."""

_LOOK_EVERY_SECONDS: Final = 1.0
_ALIKE: Final = 10
"""So many siblings that look alike are drawn each by itself; more are one line."""


@command
def tree(
    options: AtWorkflow,
    watch: Annotated[
        bool,
        typer.Option("--watch", "-w", help="Follow it until Ctrl-C; with --json a line a change."),
    ] = False,
    keyring: KeyringPath = None,
) -> None:
    """Show a workflow's tree: who holds which version, from whom it is withheld.

    Where more than ten siblings differ by their id alone, with all below them, one line stands
    for them; --json has every node.

    The first line is the tree in a line: what is "set here" was set at that very node, which
    nothing that is set or revoked further up reaches. With a keyring at hand a token is also
    looked at for whether the key that signed it was revoked.

    Exit status 0 when every node that should have the newest version holds it, usable, 3 when
    one does not, or none holds anything; 0 after Ctrl-C of a watch.
    """
    keys = keyring_at_hand(keyring)

    async def looking() -> int:
        tokens = TokenClient(await options.connect(), keys)
        seen = await tokens.tree(options.workflow_id, options.name)
        if watch:
            await _watch(tokens, seen, options)
        return show_tree(seen, as_json=options.as_json)

    run(looking(), stopped=0 if watch else None)


async def _watch(tokens: TokenClient, seen: TokenTree, options: AtWorkflow) -> NoReturn:
    console = out()
    is_drawn = console.is_terminal and not options.as_json
    live = Live(console=console, auto_refresh=False, vertical_overflow="crop")
    note = Escaped((time.strftime("as of %H:%M:%S, Ctrl-C ends it"), "dim"))
    shown = None
    with live if is_drawn else nullcontext():
        while True:
            if is_drawn:
                live.update(Group(render(seen, time.time()), note), refresh=True)
            elif seen.nodes != shown:
                show_tree(seen, as_json=options.as_json)
                shown = seen.nodes
            await asyncio.sleep(_LOOK_EVERY_SECONDS)
            try:
                seen = await tokens.tree(options.workflow_id, options.name)
                note = Escaped((time.strftime("as of %H:%M:%S, Ctrl-C ends it"), "dim"))
            except (NoWorkerAnswers, RPCError):
                note = Escaped(("the tree does not answer; it is asked again", "red"))
                if not is_drawn:
                    say(note.plain, err=True)


def show_tree(tree: TokenTree, *, as_json: bool) -> int:
    """Print a tree and return the exit status it stands for."""
    if as_json:
        nodes = [asdict(node) for node in tree.nodes]
        signed = {} if tree.signed is None else {"signed": tree.signed.to_json()}
        said = {"converged": tree.converged, "usable": tree.usable, "counts": {**tree.counts}}
        print_json({"name": tree.name, **said, **signed, "nodes": nodes})
    else:
        if tree.signed is not None:
            signed = Escaped(f"signed {_terms(tree.signed)}")
            out().print(signed.append(*in_red(tree.signed.origins)))
        out().print(render(tree, time.time()))
    return 0 if tree.usable else NOT_CONVERGED


def in_red(origins: Sequence[str]) -> tuple[str, str]:
    """A text that says which of these a token goes to in clear text, and its style."""
    http = [origin for origin in origins if in_clear(origin)]
    return (f" in clear text to {', '.join(http)}" if http else "", "red")


def _terms(signed: TokenStatus) -> str:
    def names(of: Sequence[str] | None) -> str:
        return "any" if of is None else ", ".join(of) or "none"

    origins = ", ".join(signed.origins) or "no origin"
    address = "" if signed.api_url is None else f"; address {signed.api_url}"
    return (
        f"{signed.name} {signed.fingerprint} for {origins}; types {names(signed.types)}; "
        f"readers {names(signed.readers)}{address}"
    )


def render(tree: TokenTree, now: float) -> Tree:
    """Draw a tree; many siblings of which nothing but the id differs are one line.

    Args:
        tree: what was seen.
        now: Unix seconds, for the age of versions.
    """
    is_well = tree.usable and not any(node.needs_authorization for node in tree.nodes)
    style = "green" if is_well else "yellow" if tree.converged and tree.holding else "red"
    drawn = Tree(Escaped((tree.name, "bold"), " ", (tree.glance, style)))
    seen = {node.id: node.used_api_url for node in tree.nodes}
    bare = {"api_url": None, "used_api_url": None}
    nodes = [replace(node, **bare) if _follows(node, seen) else node for node in tree.nodes]
    children: defaultdict[str | None, list[TreeNode]] = defaultdict(list)
    for node in nodes:
        children[node.parent if node.parent in seen else None].append(node)
    looks = _looks(nodes, children, now)
    todo = [(drawn, children[None])]
    while todo:
        branch, siblings = todo.pop()
        for alike in _folded(siblings, looks):
            line, below = _line(alike, now), children[alike[0].id]
            if below and len(alike) > 1:
                line.append(", each with", "dim")
            todo.append((branch.add(line), below))
    return drawn


def _follows(node: TreeNode, used: Mapping[str, str | None]) -> bool:
    """Whether a node uses the address that is drawn for its parent already, and has no other."""
    above = None if node.parent is None else used.get(node.parent)
    return node.api_url == node.used_api_url == above


def _looks(
    nodes: Sequence[TreeNode], children: Mapping[str | None, list[TreeNode]], now: float
) -> Mapping[str, int]:
    """For each node a number that it shares with those that look as it does, all below included."""
    numbers: dict[tuple[str, tuple[int, ...]], int] = {}
    looks: dict[str, int] = {}
    for node in reversed(nodes):  # children before their parents
        below = sorted(looks[child.id] for child in children[node.id])
        look = (_what(node, now).plain.replace(printable(node.id), ""), tuple(below))
        looks[node.id] = numbers.setdefault(look, len(numbers))
    return looks


def _folded(siblings: Sequence[TreeNode], looks: Mapping[str, int]) -> Iterator[list[TreeNode]]:
    """Siblings that look alike together where there are many, the others alone."""
    by_look: defaultdict[int, list[TreeNode]] = defaultdict(list)
    for node in siblings:
        by_look[looks[node.id]].append(node)
    for node in siblings:
        alike = by_look[looks[node.id]]
        if len(alike) <= _ALIKE:
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
    state = node.state.replace("_", " ")
    version = ""
    if node.version is not None:
        version = f"{node.fingerprint} {_span(now - node.version / 1000)} old"
    if node.withheld and not version:
        line.append(" withheld", "yellow")
    elif node.withheld and node.state == "held" and node.authority != node.id:
        line.append(f" withheld, still holds {version}", "yellow")
    elif node.withheld:
        line.append(f" withheld, {state} {version}", "yellow")
    elif not version:
        line.append(f" {state}", "dim")
    else:
        is_well = node.current and node.state in ("held", "revoked", "told")
        line.append(f" {state} {version}", "green" if is_well else "red")
    if node.asleep_until is not None:
        line.append(f", asleep until {utc(node.asleep_until)}", "yellow")
    if node.set_here:
        line.append(" set here", "yellow")
    if node.narrowed:
        line.append(f" narrowed to {', '.join(node.narrowed)}", "dim")
    if node.api_url is not None:
        line.append(f" at {node.api_url}", "dim")
        if node.api_url != node.used_api_url:
            line.append(f", not signed: uses {node.used_api_url or 'no address'}", "yellow")
    if node.not_for_type:
        line.append(" not for this type", "yellow")
    if node.closed:
        line.append(" closed", "dim")
    if not node.current and not node.beside and node.state not in ("unknown", "failed"):
        line.append(" behind", "red")
    line.append(*in_red(node.http))
    if node.signals is not None:
        line.append(f" {node.signals:,} of {MAX_SIGNALS:,} signals: continue as new", "yellow")
    if node.undelivered:
        line.append(f" undelivered: {some(node.undelivered)}", "yellow")
    if node.problem is not None:
        line.append(f" {node.problem}", "red")
    if node.source is not None:
        line.append(*_source(node.id, node.source, now))
    return line


def _source(home: str, source: SourceStatus, now: float) -> tuple[str, str]:
    """What a line says of the source that mints a token at a home, and its style."""
    text = f" source {source.source} {source.state.replace('_', ' ')}"
    amiss, cure = source.amiss, source.cure(home)
    if amiss is not None:
        text += f": {amiss}"
    elif source.next_at is not None:
        text += f", renews it in {_span(source.next_at / 1000 - now)}"
    if cure is not None:
        text += f"; run `{cure}`"
    is_well = source.state in ("fresh", "stale")
    return text, "red" if not is_well else "dim" if amiss is None else "yellow"


def some(ids: Sequence[str]) -> str:
    """The first few of these ids, and how many more there are."""
    shown = ", ".join(ids[:_ALIKE])
    return shown if len(ids) <= _ALIKE else f"{shown} and {len(ids) - _ALIKE} more"


def _span(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
