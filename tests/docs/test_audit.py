"""docs/audit.md: its Python runs, and its tables name what there is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import stateful_workflow.audit
from stateful_workflow import Keyring
from stateful_workflow.audit import AuditEvent, AuditFile, AuditSink, verify
from stateful_workflow.record import metrics
from stateful_workflow.record.event import ACTIONS, ATTRIBUTES
from tests.docs.reader import PROJECT, read_blocks

TEXT = (PROJECT / "docs" / "audit.md").read_text("utf-8")
EVENT = AuditEvent(time=1.0, action="set", outcome="success", name="apiToken")


def test_its_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keyring = tmp_path / "keyring.json"
    Keyring.generate().save(keyring)
    monkeypatch.setenv("STATEFUL_KEYRING", str(keyring))
    names: dict[str, Any] = {}
    for block in read_blocks("docs/audit.md", TEXT):
        assert block.kind == "python", block.place
        code = block.text.replace("/var/log/stateful", str(tmp_path))
        exec(compile(code, block.place, "exec"), names)  # the document's own
    names["record"].record(EVENT)
    names["record"].close()
    assert verify(tmp_path / "api.jsonl").events == 1
    names["Table"]().record(EVENT)
    assert isinstance(names["Table"](), AuditSink)

    names["plugin"].sink_writer.write(EVENT, lambda: pytest.fail("it was lost"))
    assert verify(tmp_path / "worker.jsonl").events == 1


def test_every_action_and_attribute_is_explained() -> None:
    explained = set(re.findall(r"`([a-z_.]+)`", TEXT))
    short = {
        name if name in explained else "." + name.rpartition(".")[2] for name in ATTRIBUTES.values()
    }

    assert set(ACTIONS) <= explained
    assert short <= explained


def test_every_sink_and_command_it_names_exists() -> None:
    for sink in ("AuditFile", "LoggingSink", "OpenTelemetrySink"):
        assert sink in TEXT
        assert sink in stateful_workflow.audit.__all__
    assert AuditFile.is_local


def test_every_metric_is_explained() -> None:
    operations = (PROJECT / "docs" / "operations.md").read_text("utf-8")

    assert all(f"`{name}`" in operations for name in metrics.NAMES)
