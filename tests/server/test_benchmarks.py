"""The benchmarks run, so that they do not rot; their figures are not looked at.

Four of the programs run only where `./run bench` has installed what they need; CI does not.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run_benchmark(name: str, *options: str, out: Path) -> dict[str, Any]:
    """Run a program for one counted repetition; what it printed is what it wrote."""
    command = [sys.executable, BENCHMARKS / f"{name}.py", "--quick", "--json", "--out", out]
    finished = subprocess.run([*command, *options], capture_output=True, text=True, timeout=55)
    assert finished.returncode == 0, finished.stderr
    printed: dict[str, Any] = json.loads(finished.stdout)
    assert printed == json.loads((out / f"{name}.json").read_text("utf-8"))
    return printed


def test_a_rotation_is_measured_in_every_way(tmp_path: Path) -> None:
    document = run_benchmark("rotation", "--shape", "1+20", out=tmp_path)

    (shape,) = document["results"]["shapes"]
    assert (shape["nodes"], shape["database"], shape["repetitions"]) == (21, "file", 1)
    for kind in ("limit", "by_hand", "loop", "set", "rotate"):
        assert shape[f"{kind}_s"] > 0
    for kind in ("by_hand", "loop", "set", "rotate"):
        ratio = shape[f"{kind}_s"] / shape["limit_s"]
        assert shape[f"{kind}_to_limit"] == pytest.approx(ratio, rel=0.1)
    assert shape["root_events"] > 0
    assert shape["root_bytes"] > 0
    assert shape["signal_s"] > 0
    assert document["machine"]["cpus"] > 0


def test_the_cost_of_the_record_is_measured(tmp_path: Path) -> None:
    document = run_benchmark("audit", out=tmp_path)

    assert document["results"]["recorded_to_without"] > 0


@pytest.mark.skipif(find_spec("psutil") is None, reason="./run bench has not been run here")
@pytest.mark.parametrize(
    ("name", "sections"),
    [
        ("overhead", ["child_starts", "activities", "staleness"]),
        ("overhead", ["cpu", "memory"]),
        ("costs", []),
        ("big", []),
    ],
)
def test_what_processes_use_is_measured(name: str, sections: list[str], tmp_path: Path) -> None:
    options = [f"--section={section}" for section in sections]
    results = run_benchmark(name, *options, out=tmp_path)["results"]
    assert results
    assert set(sections) <= results.keys()
