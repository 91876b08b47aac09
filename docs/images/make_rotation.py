"""Draw rotation.svg, the picture in the README: a new token on its way through a tree.

Run it after a change and commit both: ``python docs/images/make_rotation.py``
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

PICTURE: Final = Path(__file__).with_name("rotation.svg")

NEW, OLD, WITHHELD = "new", "old", "withheld"

# Fill, line and text of a node. The card behind them is light in every theme, so that
# the picture reads the same on a dark page.
COLOURS: Final = {
    NEW: ("#dcf5e3", "#1a7f37", "#0f4a21"),
    OLD: ("#fff1cf", "#b07500", "#5f3f00"),
    WITHHELD: ("#eceef1", "#838c97", "#4c545e"),
}
ARRIVING: Final = "#b07500"

WIDTH, HEIGHT = 1000, 432
NODE_HEIGHT: Final = 46


class Node(NamedTuple):
    """A workflow.

    Attributes:
        x, y: centre, in user units.
        width: of its box.
        title, note: its two lines.
        state: NEW, OLD or WITHHELD.
    """

    x: float
    y: float
    width: float
    title: str
    note: str
    state: str


def draw() -> str:
    """The picture, as the text of an SVG file."""
    tenant = Node(500, 92, 150, "Tenant", "v2", NEW)
    nodes, edges = [tenant], list[str]()
    states = ((NEW, (NEW, NEW)), (NEW, (NEW, OLD)), (OLD, (OLD, OLD)))
    for number, (state, syncs) in enumerate(states):
        x = 180 + 320 * number
        account = Node(x, 202, 130, f"Account {number + 1}", _version(state), state)
        edges.append(_edge(tenant, account))
        children = [
            Node(x - 107 + 86 * place, 312, 78, f"Sync {place + 1}", _version(sync), sync)
            for place, sync in enumerate(syncs)
        ]
        children.append(Node(x + 84, 312, 116, "Cleanup", "no token", WITHHELD))
        edges += [_edge(account, child) for child in children]
        nodes += [account, *children]
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
            f'width="{WIDTH}" height="{HEIGHT}" role="img" '
            'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif">',
            "<title>A rotation on its way through a tree of workflows</title>",
            "<desc>The tenant, two of three accounts and three syncs have version 2 of the token; "
            "one account and three syncs still have version 1; the cleanups have none.</desc>",
            '<defs><marker id="arrow" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="5" '
            f'markerHeight="5" orient="auto"><path d="M0 0 10 5 0 10z" fill="{ARRIVING}"/>'
            "</marker></defs>",
            f'<rect x="1" y="1" width="{WIDTH - 2}" height="{HEIGHT - 2}" rx="14" '
            'fill="#ffffff" stroke="#d0d7de" stroke-width="2"/>',
            *_caller(tenant),
            *edges,
            *(line for node in nodes for line in _node(node)),
            *_legend(),
            "</svg>",
            "",
        )
    )


def _version(state: str) -> str:
    return "v2" if state == NEW else "v1"


def _text(x: float, y: float, text: str, colour: str, size: int, more: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{colour}"{more}>{text}</text>'


def _caller(tenant: Node) -> list[str]:
    line = COLOURS[NEW][1]
    return [
        _text(
            tenant.x, 34, 'tokens.rotate("tenant-acme", …)', "#24292f", 15,
            ' text-anchor="middle" font-family="ui-monospace, Menlo, Consolas, monospace"',
        ),
        f'<path d="M{tenant.x:g} 44V{tenant.y - NODE_HEIGHT / 2 - 2:g}" stroke="{line}" '
        'stroke-width="2.5"/>',
    ]  # fmt: skip


def _edge(parent: Node, child: Node) -> str:
    top, bottom = parent.y + NODE_HEIGHT / 2, child.y - NODE_HEIGHT / 2
    middle = (top + bottom) / 2
    path = f"M{parent.x:g} {top:g}C{parent.x:g} {middle:g} {child.x:g} {middle:g} {child.x:g} "
    if child.state == WITHHELD:
        style = f'stroke="{COLOURS[WITHHELD][1]}" stroke-width="1.5" stroke-dasharray="2 5"'
    elif child.state == NEW:
        style = f'stroke="{COLOURS[NEW][1]}" stroke-width="2.5"'
    elif parent.state == NEW:  # the new version is on its way here
        bottom -= 2
        style = (
            f'stroke="{ARRIVING}" stroke-width="2.5" stroke-dasharray="7 5" '
            'marker-end="url(#arrow)"'
        )
    else:
        style = f'stroke="{COLOURS[OLD][1]}" stroke-width="1.5"'
    return f'<path d="{path}{bottom:g}" fill="none" {style}/>'


def _box(x: float, y: float, width: float, height: float, state: str) -> str:
    fill, line, _ = COLOURS[state]
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="9" '
        f'fill="{fill}" stroke="{line}" stroke-width="2"/>'
    )


def _node(node: Node) -> list[str]:
    colour = COLOURS[node.state][2]
    middle = ' text-anchor="middle"'
    shift = 11 if node.state == WITHHELD else 0
    left, top = node.x - node.width / 2, node.y - NODE_HEIGHT / 2
    drawn = [
        _box(left, top, node.width, NODE_HEIGHT, node.state),
        _text(node.x + shift, node.y - 3, node.title, colour, 15, f'{middle} font-weight="600"'),
        _text(node.x + shift, node.y + 15, node.note, colour, 13, middle),
    ]
    if node.state == WITHHELD:
        drawn.append(_lock(left + 18, node.y))
    return drawn


def _lock(x: float, y: float) -> str:
    colour = COLOURS[WITHHELD][2]
    return (
        f'<g transform="translate({x:g} {y:g})"><path d="M-4 0V-4a4 4 0 0 1 8 0V0" fill="none" '
        f'stroke="{colour}" stroke-width="2"/><rect x="-6.5" y="-1" width="13" height="10" rx="2" '
        f'fill="{colour}"/></g>'
    )


def _legend() -> list[str]:
    y, drawn = 396, [f'<path d="M24 366H{WIDTH - 24}" stroke="#e2e6ea" stroke-width="1.5"/>']
    for x, state, words in (
        (48, NEW, "has accepted the new token"),
        (300, OLD, "still works with the old one"),
        (770, WITHHELD, "withheld: refuses any"),
    ):
        drawn += [_box(x, y - 12, 28, 24, state), _text(x + 38, y + 4, words, "#24292f", 14)]
    drawn += [
        f'<path d="M552 {y - 1}H584" stroke="{ARRIVING}" stroke-width="2.5" '
        'stroke-dasharray="7 5" marker-end="url(#arrow)"/>',
        _text(594, y + 4, "signal on its way", "#24292f", 14),
        _lock(784, y - 1),
    ]
    return drawn


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
