"""What this library costs beside a rotation, against Temporal without it and a secret manager.

With the database in a file and in memory, both servers up at once and taking turns:

- *child starts*: from the parent's call to the first line of the child's `run`, one child
  after another and all at once; a plain client and worker against ones with the plugin;
- *activities*: a no-op on a plain worker, against one that opens its token, and against
  what users do today: each resolves a reference with boto3, without a cache and with AWS's
  own caching library. And what an activity adds to the history;
- *staleness*: seconds from the start of a rotation until the last activity was given the old
  secret, on a tree of 21 workflows which use it all the time;
- *CPU*: of worker, server and client, each a process, for one signal to each of 501
  workflows; what they use while idle is taken off;
- *memory*: what a worker process grows by for each idle workflow in its cache.

Ratios are medians of the repetitions' own ratios; the first repetition is left out.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from measures import (
    OURS,
    PLAIN,
    QUICK,
    REFERENCE,
    REFRESH_SECONDS,
    WAYS,
    Cpu,
    Server,
    Size,
    measure_activities,
    measure_child_starts,
    measure_memory,
    measure_staleness,
    prepared,
    worker_apart,
)
from report import Bar, Spread, add_databases, arguments, databases, publish, say, table
from rich.table import Table
from secret_manager import DEFAULT_REFRESH_SECONDS, start_server

SECTIONS = ("child_starts", "activities", "staleness", "cpu", "memory")
Figures = dict[str, list[dict[str, float]]]
"""For each server, what every counted repetition found."""


async def repeated(
    what: str,
    servers: Sequence[Server],
    repetitions: int,
    size: Size,
    run: Callable[[Server, int, Size], Awaitable[dict[str, float]]],
) -> Figures:
    """All repetitions, the servers taking turns; one before them is not counted."""
    found: Figures = {server.name: [] for server in servers}
    for n in range(0 if size.warm_up else 1, repetitions + 1):
        for server in servers[:: 1 if n % 2 else -1]:
            figures = await run(server, n, size)
            told = ", ".join(f"{name} {figure:.3g}" for name, figure in figures.items())
            say(f"{what}, {n} of {repetitions}, {server.name}: {told}")
            if n > 0:
                found[server.name].append(figures)
    return found


async def measure(
    sections: Sequence[str], repetitions: int, size: Size, names: Sequence[str]
) -> dict[str, Figures]:
    """The figures of each section."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        moto = stack.enter_context(start_server())
        servers = [await stack.enter_async_context(prepared(n, folder, moto)) for n in names]
        await asyncio.to_thread(servers[0].manager.create, REFERENCE, "secret")
        measures: dict[str, Callable[[], Awaitable[Figures]]] = {
            "child_starts": lambda: repeated(
                "child starts, ms", servers, repetitions, size, measure_child_starts
            ),
            "activities": lambda: repeated(
                "activities, ms", servers, repetitions, size, measure_activities
            ),
            "staleness": lambda: repeated(
                "staleness, s", servers, size.slow, size, measure_staleness
            ),
            "cpu": lambda: measure_cpu(servers, size),
            # A worker's memory knows nothing of the server's database.
            "memory": lambda: repeated("memory, kB", servers[:1], size.slow, size, measure_memory),
        }
        return {section: await measures[section]() for section in sections}


async def measure_cpu(servers: Sequence[Server], size: Size) -> Figures:
    async with AsyncExitStack() as stack:
        benches: dict[str, Cpu] = {}
        for server in servers:
            workers = {
                kind: await stack.enter_async_context(worker_apart(server, kind))
                for kind in (PLAIN, OURS)
            }
            benches[server.name] = Cpu(server, workers, size)
            await benches[server.name].start()
        return await repeated(
            "CPU, ms", servers, size.slow, size, lambda server, n, _: benches[server.name].run(n)
        )


def summary(found: dict[str, Figures]) -> dict[str, Any]:
    """Medians of each figure, and the ratios of each repetition."""
    return {
        section: [
            {
                "database": database,
                "repetitions": len(runs),
                "median": {
                    name: round(statistics.median(run[name] for run in runs), 4) for name in runs[0]
                },
                "ratios": {
                    name: vars(Spread.of([run[over] / run[under] for run in runs]))
                    for name, over, under in RATIOS.get(section, ())
                },
            }
            for database, runs in figures.items()
        ]
        for section, figures in found.items()
    } | {"cache_refresh_s": {"measured": REFRESH_SECONDS, "default": DEFAULT_REFRESH_SECONDS}}


RATIOS = {
    "child_starts": [
        ("in turn", "ours in turn", "plain in turn"),
        ("at once", "ours at once", "plain at once"),
    ],
    "activities": [(way, way, "nothing") for way in WAYS],
    "memory": [("ours", OURS, PLAIN)],
}


def bars(results: dict[str, Any]) -> list[Bar]:
    """What is wanted with the database in a file."""

    def in_file(section: str) -> list[dict[str, Any]]:
        return [r for r in results.get(section, ()) if r["database"] == "file"]

    return [
        Bar(f"child start, {order}, file: with / without", ratio["median"], 1.1)
        for r in in_file("child_starts")
        for order, ratio in r["ratios"].items()
    ] + [
        Bar("activity, file: token / nothing", r["ratios"]["token"]["median"], 1.05)
        for r in in_file("activities")
    ]


def tables(results: dict[str, Any]) -> list[Table]:
    """A table a section."""

    def spread(r: dict[str, Any], name: str) -> str:
        return str(Spread(**r["ratios"][name]))

    return [
        table(
            "A child's start: ms from the parent's call to the first line of its `run`",
            ["database", "order", "without", "with", "ratio"],
            [
                [
                    r["database"],
                    order,
                    f"{r['median'][f'plain {order}']:.2f}",
                    f"{r['median'][f'ours {order}']:.2f}",
                    spread(r, order),
                ]
                for r in results.get("child_starts", ())
                for order in ("in turn", "at once")
            ],
        ),
        table(
            "An activity: ms, bytes of history (all its events, and its share of the rest)",
            ["database", "activity", "ms", "/ nothing", "bytes"],
            [
                [
                    r["database"],
                    kind,
                    f"{r['median'][kind]:.2f}",
                    spread(r, kind) if kind in r["ratios"] else "",
                    f"{r['median'][f'{kind} bytes']:.0f}",
                ]
                for r in results.get("activities", ())
                for kind in ("nothing", *WAYS)
            ],
        ),
        table(
            "Staleness: s from a rotation until the old secret was given out last",
            ["database", *WAYS],
            [
                [
                    r["database"],
                    f"{r['median']['token']:.2f}",
                    f"{r['median']['uncached']:.2f}",
                    f"{r['median']['cached']:.2f} with refreshes after {REFRESH_SECONDS} s at "
                    f"most; by default after {DEFAULT_REFRESH_SECONDS} s",
                ]
                for r in results.get("staleness", ())
            ],
        ),
        table(
            "CPU of one signal to each workflow: ms a workflow",
            ["database", "how", "worker", "server", "client"],
            [
                [
                    r["database"],
                    kind,
                    *(f"{r['median'][f'{kind} {p}']:.2f}" for p in ("worker", "server", "client")),
                ]
                for r in results.get("cpu", ())
                for kind in ("limit", "by hand", "set")
            ],
        ),
        table(
            "Memory of an idle workflow in a worker's cache: kB",
            ["", "without", "with", "ratio"],
            [
                [
                    "a workflow",
                    f"{r['median'][PLAIN]:.1f}",
                    f"{r['median'][OURS]:.1f}",
                    spread(r, "ours"),
                ]
                for r in results.get("memory", ())
            ],
        ),
    ]


async def main() -> None:
    parser = arguments(__doc__, repetitions=5)
    parser.add_argument("--section", choices=SECTIONS, action="append", help="repeatable; else all")
    add_databases(parser)
    args = parser.parse_args()
    size = QUICK if args.quick else Size()
    repetitions = 1 if args.quick else args.repetitions
    found = await measure(args.section or SECTIONS, repetitions, size, databases(args))
    results = summary(found)
    publish("overhead", results, bars(results), tables(results), args)


if __name__ == "__main__":
    asyncio.run(main())
