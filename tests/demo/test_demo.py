"""The demo as a person runs it: its report, its terminal, and what Ctrl-C leaves behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import httpx
import pytest

from stateful_workflow.demo.report import Report
from tests.engine.test_engine import gone

COMMAND = [sys.executable, "-c", "from stateful_workflow.cli import main; main()", "demo"]


@contextmanager
def start_demo(tmp_path: Path, *arguments: str) -> Generator[subprocess.Popen[str], None, None]:
    with subprocess.Popen(
        [*COMMAND, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path), "HTTP_PROXY": "http://127.0.0.1:9"},
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(process: subprocess.Popen[str], text: str) -> str:
    """What it says on stderr up to the line with this text."""
    assert process.stderr is not None
    said: list[str] = []
    for line in process.stderr:
        said.append(line)
        if text in line:
            return "".join(said)
    raise AssertionError(f"it ended without {text!r}: {''.join(said)}")


def ui_port(said: str) -> int:
    found = re.search(r"http://127\.0\.0\.1:(\d+)", said)
    assert found is not None
    return int(found[1])


@pytest.mark.timeout(300)
def test_it_rotates_while_calls_flow_and_reports_what_was_counted(tmp_path: Path) -> None:
    with start_demo(tmp_path, "--json", "--keep") as process:
        said = wait_for(process, "Ctrl-C ends it")
        assert process.stdout is not None
        report = json.loads(process.stdout.readline())
        ui = httpx.get(report["web_ui"], follow_redirects=True, trust_env=False)
        os.killpg(process.pid, signal.SIGINT)
        rest, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert rest == ""
    assert "v4: rotated and converged" in said
    assert "\x1b" not in said

    assert list(report) == [field.name for field in fields(Report)]
    assert report["nodes"] == 1 + 5 + 5 * 5 + 5
    assert report["rotations"] == len(report["convergence_ms"]) == 3
    by_version = report["api_calls_by_version"]
    assert list(by_version)[:4] == ["v1", "v2", "v3", "v4"]
    assert min(by_version.values()) > 0
    assert sum(by_version.values()) == report["api_calls"]
    assert report["audit_api_uses"] == report["api_calls"]
    assert report["audit_verified"] is True
    assert report["audit_events"] > 2 * report["api_calls"]
    assert 0 <= report["unauthorized_responses"] < report["api_calls"] / 4
    assert report["refreshes"] == report["exchanges_at_provider"] >= 5
    assert (report["reports_of_401"], report["retired_and_refused"]) == (1, 1)
    assert "nobody was told" in said
    assert report["failed_activities"] == 0
    assert report["withheld_nodes_with_token"] == 0
    assert report["token_occurrences_in_engine"] == 0
    assert ui.status_code == 200
    assert gone(ui_port(report["web_ui"]))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="signals to a process group")
@pytest.mark.parametrize("after", ["Web UI", "workflows run"])
def test_ctrl_c_leaves_nothing_behind(tmp_path: Path, after: str) -> None:
    with start_demo(tmp_path) as process:
        said = wait_for(process, after)
        os.killpg(process.pid, signal.SIGINT)
        output, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert output == ""
    assert "Traceback" not in errors
    assert gone(ui_port(said))
    assert list(tmp_path.iterdir()) == []
