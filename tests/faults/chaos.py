"""Random faults for some minutes: ``./run chaos --minutes 10 [--seed 17]``.

Each round starts a tree, lets a few faults happen to it, one in the middle of a rotation each,
and checks after every one what `invariants` says. The seed decides on all of them. The exit
status is 1 where something did not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import secrets
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

from temporalio.service import RPCError

from tests.faults.cluster import Cluster, start_cluster
from tests.faults.faults import describe, possible
from tests.faults.invariants import check
from tests.faults.tree import start_tree

FAULTS_A_ROUND = 4
WORKERS = 2
PATIENCE_SECONDS = 180.0
"""How long one fault and what comes after it may take."""


async def run(seed: str, minutes: float, directory: Path) -> Counter[str]:
    """Let faults happen until the time is over; how often each did, with all in order afterwards.

    Raises:
        AssertionError, TimeoutError, RPCError: something does not hold.
    """
    happened = Counter[str]()
    give_up = time.monotonic() + 60 * minutes
    async with start_cluster(directory, WORKERS) as cluster:
        number = 0
        while time.monotonic() < give_up:
            number += 1
            await _round(cluster, f"{seed}/{number}", happened)
    return happened


async def _round(cluster: Cluster, seed: str, happened: Counter[str]) -> None:
    choose = random.Random(seed)
    async with start_tree(cluster) as tree:
        for _ in range(FAULTS_A_ROUND):
            fault = replace(choose.choice(possible(tree)), told=choose.randint(1, 3))
            say(f"{seed}: {describe(fault)} after {fault.told}")
            await asyncio.wait_for(fault.happen(tree), PATIENCE_SECONDS)
            await asyncio.wait_for(check(tree), PATIENCE_SECONDS)
            happened[fault.what] += 1


def say(text: str) -> None:
    print(f"chaos: {text}", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="./run chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, required=True, help="how long")
    parser.add_argument("--seed", help="of an earlier run, to repeat its schedule")
    options = parser.parse_args()
    seed: str = options.seed or secrets.token_hex(4)
    directory = Path(tempfile.mkdtemp(prefix="chaos-"))
    try:
        happened = asyncio.run(run(seed, options.minutes, directory))
    except (AssertionError, asyncio.TimeoutError, RPCError) as error:
        say(f"VIOLATION after the last of these: {type(error).__name__}: {error}")
        say(f"repeat it with --seed {seed}; what was written is in {directory}")
        return 1
    shutil.rmtree(directory)
    for what, count in sorted(happened.items()):
        print(f"{count:4} {what}")
    print(f"Everything held after each of these {happened.total()} faults; seed {seed}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
