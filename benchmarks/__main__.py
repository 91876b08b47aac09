"""What docs/scaling.md measures: `./run bench rotation|costs|overhead|living [options]`, or all.

The figures are medians of the repetitions, of which the first is left out; so are ratios, of the
repetitions' own. Everything runs on an embedded server.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import costs
import living
import overhead
import rotation
from rich.console import Console
from rich.table import Table
from trees import Results

PROGRAMS: dict[str, Callable[[argparse.Namespace], Coroutine[Any, Any, Results]]] = {
    "rotation": rotation.measure,
    "costs": costs.measure,
    "overhead": overhead.measure,
    "living": living.measure,
}
SHAPES = ["1+500", "10×10×10", "chain of 50", "1+1900"]


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    programs = parser.add_subparsers(dest="program")
    modules = {"rotation": rotation, "costs": costs, "overhead": overhead, "living": living}
    for name, module in modules.items():
        about = (module.__doc__ or "").splitlines()[0]
        program = programs.add_parser(name, help=about, description=about)
        program.add_argument("--database", choices=["file", "memory"], default="file")
        program.add_argument("--repetitions", type=int, default=3, help="default %(default)s")
        program.add_argument("--json", action="store_true", help="print JSON instead of a table")
        if module in (overhead, living):
            module.add_options(program)
        else:
            program.add_argument(
                "--shape", action="append", metavar="SHAPE", help=f"as {SHAPES}; repeatable"
            )
        if module is costs:
            costs.add_options(program)
    return parser


def show(results: Results, *, as_json: bool) -> None:
    """Print a column for each thing measured, and a line for each figure of it."""
    if as_json:
        print(json.dumps(results))
        return
    table = Table("", *results)
    for figure in dict.fromkeys(name for figures in results.values() for name in figures):
        of_each = [figures.get(figure) for figures in results.values()]
        table.add_row(figure, *("" if value is None else f"{value:g}" for value in of_each))
    Console(width=None if sys.stdout.isatty() else 150).print(table)


def main() -> int:
    args = arguments().parse_args()
    if args.program is None:
        # Each in a process of its own, since what one leaves in memory slows the next one.
        commands = [[sys.executable, Path(__file__).parent, name] for name in PROGRAMS]
        return max(subprocess.run(command).returncode for command in commands)
    if "shape" in args:
        args.shape = args.shape or SHAPES
    show(asyncio.run(PROGRAMS[args.program](args)), as_json=args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
