"""The benchmarks run, so that they do not rot; their figures are not looked at."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
OVERHEAD = ("overhead", "--children", "3", "--activities", "20", "--idle", "20")
KINDS = {"without", "with", "ratio"}


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("arguments", "measured", "figures"),
    [
        (
            ("rotation", "--shape", "1+20", "--shape", "chain of 5"),
            {"1+20", "chain of 5"},
            {"limit", "by hand", "set", "set / limit", "signal", "rotate", "rotate / limit"},
        ),
        (
            ("costs", "--shape", "3×5", "--cached", "6"),
            {"3×5"},
            {"held by all, s", "converged, s", "worker, CPU ms a node", "root, events"},
        ),
        (
            (*OVERHEAD, "--section", "starts", "--section", "activities"),
            {"start in turn, ms", "start at once, ms", "activity, ms", "activity, bytes"},
            KINDS,
        ),
        ((*OVERHEAD, "--section", "memory"), {"idle workflow, kB"}, KINDS),
        (
            ("living", "--homes", "3", "--refused", "3"),
            {"renewals, s", "heal, s", "events a renewal"},
            {"ours"},
        ),
    ],
    ids=["rotation", "costs", "overhead", "memory", "living"],
)
def test_a_benchmark_measures_what_it_says(
    arguments: tuple[str, ...], measured: set[str], figures: set[str]
) -> None:
    command = [sys.executable, BENCHMARKS, *arguments, "--repetitions", "1", "--json"]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert finished.returncode == 0, finished.stderr
    results = json.loads(finished.stdout)
    assert results.keys() == measured
    assert all(figures <= found.keys() for found in results.values())
    assert all(found[name] > 0 for found in results.values() for name in figures - {"ratio"})
