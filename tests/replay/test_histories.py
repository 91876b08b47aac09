"""What was recorded once replays from then on, whatever has become of the keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import WorkflowHistory
from temporalio.worker import Replayer

from stateful_workflow import Keyring, StatefulPlugin
from stateful_workflow.demo.search import forms
from tests.replay.record import HISTORIES, PARTS, SCENARIOS, SECRETS, files_of, recorded_keyring
from tests.replay.workflows import WORKFLOWS

FILES = sorted(HISTORIES.glob("*.json"))


def _revoked(keyring: Keyring) -> Keyring:
    for info in keyring.keys():
        if info.kind == "issuer":
            keyring = keyring.revoke(info.kid)
    return keyring


KEYRINGS = {
    "as they were": recorded_keyring,
    "public": lambda: recorded_keyring().public(),
    "issuers revoked": lambda: _revoked(recorded_keyring()),
    "a stranger's": Keyring.generate,
    "empty": Keyring,
    "none": lambda: None,
}


def read(path: Path) -> WorkflowHistory:
    scenario, part, _, _ = path.name.split(".")
    return WorkflowHistory.from_json(scenario + part.removeprefix("-root"), path.read_text())


def content_of(history: WorkflowHistory) -> bytes:
    return b"".join(event.SerializeToString() for event in history.events)


async def failure_of(
    history: WorkflowHistory, keyring: Keyring | None, **options: Any
) -> Exception | None:
    """Why a history does not replay under a keyring; None where it does."""
    plugins = [StatefulPlugin(keyring)]
    replayer = Replayer(workflows=WORKFLOWS, plugins=plugins, namespace="default", **options)
    result: Any = await replayer.replay_workflow(history, raise_on_replay_failure=False)
    failure: Exception | None = result.replay_failure
    return failure


@pytest.fixture(autouse=True)
def no_keyring_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STATEFUL_KEYRING", raising=False)


ABOUT_KEYS = ("keys", "revoked_key", "rotations", "waiting")
"""Scenarios in which a keyring could decide what is done; the others replay under one."""

CASES = [
    (path, keys)
    for path in FILES
    for keys in (KEYRINGS if path.name.split(".")[0] in ABOUT_KEYS else ("as they were",))
]


@pytest.mark.parametrize(("path", "keys"), CASES, ids=lambda part: getattr(part, "stem", part))
async def test_a_recorded_history_replays(path: Path, keys: str) -> None:
    assert await failure_of(read(path), KEYRINGS[keys]()) is None


@pytest.mark.parametrize(
    ("name", "holds"),
    {
        "rotations.-root.0": "statefulTell",
        "rotations.-w.3": "signalName",
        "uses.-root.0": "stateful-use",
        "keys.-root.0": "statefulTrust",
        "keys.-a.1": "statefulTrust",
        "next_runs.-root.0": "EVENT_TYPE_WORKFLOW_EXECUTION_CONTINUED_AS_NEW",
        "next_runs.-a.3": "statefulRecover",
        "adoption.-root.0": "orphans",
        "retried_root.-root.1": "statefulRecover",
        "unreachable.-root.0": "UNAVAILABLE: made so",
        "uncached.-root.0": "statefulTell",
        "revoked_key.-a.1": "statefulTrust",
        "waiting.-root.1": "statefulTrust",
        "unsettled.-root.0": "orphans",
        "reset_run.-root.1": "statefulTell",
        "silent.-root.0": "EVENT_TYPE_ACTIVITY_TASK_CANCEL_REQUESTED",
        "given_up.-root.0": "statefulTell",
    }.items(),
)
def test_a_history_has_what_it_is_kept_for(name: str, holds: str) -> None:
    path = HISTORIES / f"{name}.json"
    assert holds in path.read_text() or holds.encode() in content_of(read(path))


def test_there_are_the_histories_of_every_scenario_and_no_others() -> None:
    assert sorted(path for name in SCENARIOS for path in files_of(name)) == FILES
    assert PARTS.keys() == SCENARIOS.keys()


@pytest.mark.parametrize("name", ["rotations.-root.0", "keys.-a.1"])
async def test_a_history_that_was_changed_does_not_replay(name: str) -> None:
    """The control: without the node's own activities the history is another workflow's."""
    history = read(HISTORIES / f"{name}.json")
    told = "activity_task_scheduled_event_attributes"
    events = [e for e in history.events if not e.HasField(told)]
    assert len(events) < len(history.events)

    assert await failure_of(WorkflowHistory(history.workflow_id, events), None) is not None


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_history_holds_a_token(path: Path) -> None:
    held = content_of(read(path))
    for secret in SECRETS:
        for form in forms(secret.encode()):
            assert form not in held
            assert form not in path.read_bytes()
    assert "recorder" in path.read_text()
    assert json.loads(path.read_text())["events"]
