"""Draw what the benchmarks found, as PNG and SVG.

Where matplotlib is missing nothing is drawn: the tests run the benchmarks without it.
"""

# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from report import say

# Okabe and Ito's colours, told apart by colour-blind readers; a marker for each, besides.
KINDS = {
    "limit": ("limit: a client signals unrelated workflows", "#000000", "|"),
    "set": ("set: this library, to the last node", "#0072B2", "o"),
    "rotate": ("rotate: this library, all nodes have confirmed", "#56B4E9", "s"),
    "by_hand": ("by hand: workflows signal their children, asyncio.gather", "#D55E00", "D"),
    "loop": ("loop: by hand, one child after the other", "#E69F00", "^"),
}
DATABASES = {"file": "database in a file", "memory": "database in memory"}
INK, FAINT = "#222222", "#dddddd"
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "svg.hashsalt": "stateful",  # the same figures give the same file
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


def draw_rotation(shapes: list[dict[str, Any]], folder: Path) -> None:
    """Seconds of every kind by shape, a panel a database."""
    if find_spec("matplotlib") is None:
        say("no picture: matplotlib is missing")
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(r["shape"] for r in shapes))
    databases = [name for name in DATABASES if any(r["database"] == name for r in shapes)]
    height = len(KINDS) + 1  # rows of a shape, and a gap
    with matplotlib.rc_context(STYLE):
        figure, panels = pyplot.subplots(
            1,
            len(databases),
            figsize=(5.2 * len(databases) + 0.8, 0.21 * height * len(names) + 1.9),
            sharex=True,
            sharey=True,
            squeeze=False,
        )
        slowest = max(r["loop_s"] for r in shapes)
        fastest = min(r[f"{kind}_s"] for r in shapes for kind in KINDS)
        for panel, database in zip(panels[0], databases, strict=True):
            _draw_panel(panel, [r for r in shapes if r["database"] == database])
            panel.set_title(DATABASES[database], loc="left", fontsize=10)
            panel.set_xlim(fastest / 1.5, slowest * 8)  # room for the last row's figures
        panels[0][0].set_yticks(
            [n * height + (len(KINDS) - 1) / 2 for n in range(len(names))], names, fontsize=10
        )
        panels[0][0].invert_yaxis()
        handles, labels = panels[0][0].get_legend_handles_labels()
        figure.suptitle(
            "How long a new token takes to reach every workflow of a tree",
            x=0.01,
            ha="left",
            fontsize=12,
            fontweight="bold",
        )
        figure.legend(
            handles, labels, loc="lower left", ncols=2, frameon=False, bbox_to_anchor=(0.0, 0.0)
        )
        figure.supxlabel("seconds (logarithmic); × the limit in brackets", fontsize=9, y=0.15)
        figure.tight_layout(rect=(0, 0.14, 1, 1))
        _save(figure, folder, "rotation")
        pyplot.close(figure)


def _draw_panel(panel: Any, shapes: list[dict[str, Any]]) -> None:
    panel.set_xscale("log")
    panel.xaxis.set_major_formatter("{x:g}")
    for kind_number, (kind, (label, colour, marker)) in enumerate(KINDS.items()):
        rows = [n * (len(KINDS) + 1) + kind_number for n in range(len(shapes))]
        seconds = [r[f"{kind}_s"] for r in shapes]
        panel.hlines(rows, 1e-3, seconds, colors=colour, linewidth=0.8, alpha=0.35)
        panel.plot(seconds, rows, marker, color=colour, label=label, markersize=6)
        for row, value, shape in zip(rows, seconds, shapes, strict=True):
            ratio = "" if kind == "limit" else f" ({_short(shape[f'{kind}_to_limit'])}×)"
            panel.annotate(
                f"{_short(value)} s{ratio}",
                (value, row),
                xytext=(7, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
    panel.grid(axis="x", color=FAINT, linewidth=0.6)
    panel.set_axisbelow(True)
    panel.tick_params(axis="both", length=0, which="both")
    for side in ("top", "right", "left"):
        panel.spines[side].set_visible(False)


def _short(figure: float) -> str:
    return f"{figure:.0f}" if figure >= 10 else f"{figure:.2f}"


def _save(figure: Any, folder: Path, name: str) -> None:
    for ending in ("png", "svg"):
        file = folder / f"{name}.{ending}"
        # Without a date in it, the same figures give the same file.
        metadata = {"Date": None} if ending == "svg" else None
        figure.savefig(file, dpi=160, facecolor="white", metadata=metadata)
        say(f"wrote {file}")
