"""Random faults for some minutes: ``./run chaos --minutes 10 [--seed 17]``.

Each round starts a tree, lets a few faults happen to it, one in the middle of a rotation each,
and checks after every one what `invariants` says. The seed decides on all of them. The exit
status is 1 where something did not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from temporalio.service import RPCError

from .cluster import Cluster, start_cluster
from .faults import Fault, random_faults
from .invariants import check
from .tree import start_tree

FAULTS_A_ROUND = 4
WORKERS = 2
PATIENCE_SECONDS = 180.0
"""How long one fault and what comes after it may take."""


@dataclass
class Report:
    """What was done.

    Attributes:
        seed: reproduces the schedule.
        rounds: trees that were begun.
        faults: how often each happened, with everything in order afterwards.
        violation: what did not hold, if anything, and after which faults of which round.
    """

    seed: str
    rounds: int = 0
    faults: Counter[str] = field(default_factory=Counter[str])
    violation: dict[str, Any] | None = None

    def show(self) -> str:
        lines = [f"seed {self.seed}: {self.rounds} trees, {self.faults.total()} faults"]
        lines += [f"  {count:4} {what}" for what, count in sorted(self.faults.items())]
        if self.violation is None:
            return "\n".join([*lines, "Everything held after each of them."])
        return "\n".join([*lines, f"VIOLATION {json.dumps(self.violation, indent=2)}"])


async def run(seed: str, minutes: float, directory: Path) -> Report:
    """Let faults happen until the time is over, or until something does not hold."""
    report = Report(seed)
    give_up = time.monotonic() + 60 * minutes
    async with start_cluster(directory, WORKERS) as cluster:
        while time.monotonic() < give_up and report.violation is None:
            await _round(cluster, report)
    return report


async def _round(cluster: Cluster, report: Report) -> None:
    report.rounds += 1
    happened: list[dict[str, Any]] = []
    async with start_tree(cluster) as tree:
        for fault in random_faults(f"{report.seed}/{report.rounds}", FAULTS_A_ROUND):
            happened.append(asdict(fault))
            say(f"{report.rounds}: {describe(fault)}")
            try:
                await asyncio.wait_for(fault.happen(tree), PATIENCE_SECONDS)
                await asyncio.wait_for(check(tree), PATIENCE_SECONDS)
            except (AssertionError, asyncio.TimeoutError, RPCError) as error:
                why = f"{type(error).__name__}: {error}"
                report.violation = {"round": report.rounds, "faults": happened, "why": why}
                return
            report.faults[fault.what] += 1


def describe(fault: Fault) -> str:
    where = f"in the telling of {fault.parent or 'the root'} after {fault.told}"
    whom = f" ({fault.child})" if fault.child else ""
    return f"{fault.what}{whom} {where}"


def say(text: str) -> None:
    print(f"chaos: {text}", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="./run chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, required=True, help="how long")
    parser.add_argument("--seed", help="of an earlier run, to repeat its schedule")
    parser.add_argument("--json", action="store_true", help="report as JSON")
    options = parser.parse_args()
    seed: str = options.seed or secrets.token_hex(4)
    say(f"--seed {seed}")
    directory = Path(tempfile.mkdtemp(prefix="chaos-"))
    report = asyncio.run(run(seed, options.minutes, directory))
    if report.violation is None:
        shutil.rmtree(directory)
    else:
        say(f"VIOLATION; repeat it with --seed {seed}; what was written is in {directory}")
    print(json.dumps(asdict(report), indent=2) if options.json else report.show())
    return 0 if report.violation is None else 1


if __name__ == "__main__":
    sys.exit(main())
