"""The tables of docs/scaling.md are what the simulation prints.

A million workflows take too long to simulate here: of their plans the last column is not looked at.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import pytest

PROJECT: Final = Path(__file__).parents[2]
LINES: Final = (PROJECT / "docs" / "scaling.md").read_text("utf-8").splitlines()

sys.path.append(str(PROJECT / "benchmarks"))  # programs, which are not installed
simulation: Final[Any] = import_module("simulation")


@pytest.mark.parametrize("shape", simulation.SECONDS)
def test_what_was_measured_stands_beside_what_the_simulation_says(shape: str) -> None:
    assert simulation.compared(shape) in LINES


@pytest.mark.parametrize(
    "plan", [plan for plan in simulation.PLANS if simulation.count(plan.shape) < 200_000], ids=str
)
def test_a_plan_of_100_000_takes_as_long_as_the_table_says(plan: Any) -> None:
    assert simulation.planned(plan) in LINES


def test_the_lines_of_the_table_are_the_plans_of_the_simulation() -> None:
    after = LINES[LINES.index("## 100,000 and 1,000,000 workflows") :]
    lines = [line for line in after if line.endswith(" s |")]
    for line, plan in zip(lines, simulation.PLANS, strict=True):
        assert line.startswith(simulation.described(plan))


def test_more_workers_and_higher_limits_never_take_longer() -> None:
    def seconds(workers: int, calls: float) -> float:
        cluster = simulation.Cluster(workers, simulation.UNBOUNDED, calls)
        return float(simulation.converge((20, 99), simulation.MEASURED, cluster))

    assert seconds(1, 1e9) > seconds(4, 1e9) > seconds(16, 1e9)
    assert seconds(16, 1_200) > seconds(16, 2_400) > seconds(16, 4_800)
    # What bounds is named: three calls for each of the 2,001, or the one process's time for each.
    each = simulation.MEASURED.signal_worker + simulation.MEASURED.task_worker
    assert seconds(16, 1_200) == pytest.approx(2_001 * 3 / 1_200, rel=0.05)
    assert seconds(1, 1e9) == pytest.approx(2_001 * each / 1000, rel=0.05)
