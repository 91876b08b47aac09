"""How every benchmark tells what it found: progress, a table, bars, and a file of JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from stateful_workflow.engine import find_temporal

RESULTS = Path(__file__).parent / "results"
DATABASES = ("file", "memory")

_begun = time.monotonic()


@dataclass(frozen=True)
class Bar:
    """What a figure should not exceed.

    Attributes:
        what: is compared, in words.
        figure: as measured.
        limit: the highest that is wanted.
    """

    what: str
    figure: float
    limit: float

    @property
    def met(self) -> bool:
        return self.figure <= self.limit


@dataclass(frozen=True)
class Spread:
    """One figure of several repetitions."""

    median: float
    lowest: float
    highest: float

    @staticmethod
    def of(figures: Sequence[float]) -> Spread:
        return Spread(statistics.median(figures), min(figures), max(figures))

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.lowest:.2f}–{self.highest:.2f})"


def arguments(about: str | None, repetitions: int | None = None) -> argparse.ArgumentParser:
    """The options that all benchmarks have; `repetitions` where there are any."""
    parser = argparse.ArgumentParser(description=(about or "").splitlines()[0])
    if repetitions is not None:
        parser.add_argument(
            "--repetitions", type=int, default=repetitions, help="counted ones; default %(default)s"
        )
    parser.add_argument("--quick", action="store_true", help="a smoke run: its figures mean little")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument(
        "--out",
        type=Path,
        default=RESULTS,
        metavar="FOLDER",
        help="where the JSON and the pictures are written; default %(default)s",
    )
    return parser


def add_databases(parser: argparse.ArgumentParser) -> None:
    """Let the server's database be chosen."""
    parser.add_argument(
        "--database",
        choices=[*DATABASES, "both"],
        help="of the server; default both, with --quick a file",
    )


def databases(args: argparse.Namespace) -> list[str]:
    """The databases that were chosen."""
    chosen: str = args.database or ("file" if args.quick else "both")
    return list(DATABASES) if chosen == "both" else [chosen]


def say(text: str) -> None:
    """Tell of progress, with the minutes and seconds since the start."""
    minutes, seconds = divmod(int(time.monotonic() - _begun), 60)
    print(f"{minutes:2}:{seconds:02} {text}", file=sys.stderr, flush=True)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table whose first column names what the others say figures of."""
    made = Table(title=title, title_justify="left", title_style="bold")
    for number, column in enumerate(columns):
        made.add_column(column, justify="right" if number else "left")
    for row in rows:
        made.add_row(*row)
    return made


def publish(
    name: str,
    results: dict[str, Any],
    bars: Sequence[Bar],
    tables: Sequence[Table],
    args: argparse.Namespace,
) -> None:
    """Print the findings and write them to NAME.json."""
    document = {
        "benchmark": name,
        "machine": machine(),
        "quick": args.quick,
        "results": results,
        "bars": [{**asdict(bar), "met": bar.met} for bar in bars],
    }
    out: Path = args.out
    out.mkdir(parents=True, exist_ok=True)
    file = out / f"{name}.json"
    file.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", "utf-8")
    say(f"wrote {file}")
    if args.json:
        print(json.dumps(document))
    else:
        show([*tables, *([bars_table(bars)] if bars else [])])


def show(tables: Sequence[Table]) -> None:
    """Print tables, as wide as they need to be where nobody looks at a terminal."""
    console = Console() if sys.stdout.isatty() else Console(width=150)
    for each in tables:
        console.print(each)


def bars_table(bars: Sequence[Bar]) -> Table:
    """Which bars were met; noise makes one of a few per cent be missed now and then."""
    return table(
        "Bars",
        ["what", "figure", "at most", ""],
        [
            [bar.what, f"{bar.figure:.2f}", f"{bar.limit:.2f}", "met" if bar.met else "MISSED"]
            for bar in bars
        ],
    )


def machine() -> dict[str, Any]:
    """Where and with what the figures were measured."""
    server = subprocess.run([find_temporal(), "--version"], capture_output=True, text=True)
    return {
        "cpus": os.cpu_count(),
        "architecture": platform.machine(),
        "system": platform.system(),
        "python": platform.python_version(),
        "temporalio": version("temporalio"),
        "server": server.stdout.strip(),
    }
