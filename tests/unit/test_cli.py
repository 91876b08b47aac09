"""The command, as far as it goes without a server."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from stateful_workflow.cli.app import app
from stateful_workflow.cli.tree import render
from stateful_workflow.node.status import TokenTree, TreeNode
from stateful_workflow.sealed.keyring import Keyring

NOWHERE = "127.0.0.1:1"


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("STATEFUL_KEYRING", "TEMPORAL_ADDRESS", "TEMPORAL_NAMESPACE", "TEMPORAL_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TEMPORAL_CONFIG_FILE", str(tmp_path / "temporal.toml"))
    monkeypatch.setenv("NO_COLOR", "1")
    (tmp_path / "temporal.toml").touch()


def stateful(*arguments: str | Path, stdin: str | bytes = "") -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)


def test_keys_init_makes_a_file_of_ones_own_and_never_overwrites(tmp_path: Path) -> None:
    path = tmp_path / "keyring.json"
    made = stateful("keys", "init", path)
    assert made.exit_code == 0
    assert f"export STATEFUL_KEYRING={path}" in made.stderr
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for key in Keyring.load(path).keys():
        assert key.kid in made.stdout
    before = path.read_bytes()
    again = stateful("keys", "init", path)
    assert (again.exit_code, again.stdout) == (1, "")
    assert again.stderr.startswith("error: ")
    assert path.read_bytes() == before


def test_keys_list_shows_no_private_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "keyring.json"
    stateful("keys", "init", path)
    monkeypatch.setenv("STATEFUL_KEYRING", str(path))
    shown, data = stateful("keys", "list"), stateful("keys", "list", "--json")
    kinds = [(key["kind"], key["private"]) for key in json.loads(data.stdout)]
    assert kinds == [("issuer", True), ("reader", True)]
    for key in json.loads(path.read_text())["keys"]:
        assert key["d"] not in shown.output + data.output


def test_keys_public_prints_a_keyring_without_private_halves(tmp_path: Path) -> None:
    path = tmp_path / "keyring.json"
    stateful("keys", "init", path)
    printed = stateful("keys", "public", "--keyring", path)
    keyring = Keyring.from_json(printed.stdout)
    assert [key.private for key in keyring.keys()] == [False, False]
    assert keyring.trusted() == Keyring.load(path).trusted()


@pytest.mark.parametrize(
    "command",
    [
        ("keys", "list"),
        ("keys", "public"),
        ("token", "set", "x"),
        ("token", "reveal", "x"),
        ("token", "revoke", "x"),
        ("token", "inherit", "x"),
    ],
)
def test_what_needs_keys_says_how_to_give_them(command: tuple[str, ...]) -> None:
    result = stateful(*command, stdin="secret")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: no keyring: ")
    assert "$STATEFUL_KEYRING" in result.stderr


@pytest.mark.parametrize("command", [("tree", "x"), ("token", "status", "x")])
def test_no_server_is_an_error_that_names_the_address(command: tuple[str, ...]) -> None:
    result = stateful(*command, "--address", NOWHERE)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"error: no Temporal server at {NOWHERE} (")
    assert "stateful dev" in result.stderr


def test_the_address_comes_from_temporals_own_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporal.toml").write_text('[profile.far]\naddress = "127.0.0.1:2"\n')
    monkeypatch.setenv("TEMPORAL_PROFILE", "far")
    assert "at 127.0.0.1:2 (" in stateful("tree", "x").stderr
    monkeypatch.setenv("TEMPORAL_ADDRESS", "127.0.0.1:3")
    assert "at 127.0.0.1:3 (" in stateful("tree", "x").stderr
    assert f"at {NOWHERE} (" in stateful("tree", "x", "--address", NOWHERE).stderr


def test_a_wrong_configuration_is_an_error_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporal.toml").write_text("not [toml")
    result = stateful("tree", "x")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: Temporal's environment configuration: ")


@pytest.mark.parametrize(
    ("arguments", "stdin"),
    [
        (["x", "secret"], ""),
        (["x"], ""),
        (["x"], "\n"),
        (["x"], b"\xff\xfe"),
        (["x", "--from-env", "NOT_SET_ANYWHERE"], "secret"),
        (["x", "--expires-in", "0"], "secret"),
        (["x", "--origin", "http://api.example.com"], "secret"),
        (["x", "--origin", "https://api.example.com/path"], "secret"),
    ],
)
def test_wrong_usage_of_set_is_status_2(arguments: list[str], stdin: str | bytes) -> None:
    assert stateful("token", "set", *arguments, stdin=stdin).exit_code == 2


def test_ports_that_cannot_be_are_an_error() -> None:
    result = stateful("dev", "--port", "70000")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: --port 70000 cannot be used")


def test_help_shows_every_command_and_completion() -> None:
    text = stateful("--help").stdout
    for word in ("dev", "demo", "keys", "token", "tree", "--install-completion"):
        assert word in text


def test_without_the_extra_it_says_what_to_install() -> None:
    code = "import sys; sys.modules['typer'] = None; from stateful_workflow.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert 'pip install "stateful-workflow[cli]"' in done.stderr


def test_a_tree_is_drawn_with_what_each_node_holds() -> None:
    seen = TokenTree(
        "apiToken",
        (
            TreeNode("tenant", "Tenant", None, "held", 100_000, "aa" * 8, undelivered=("old",)),
            TreeNode("[red]sync", "Sync", "tenant", "held", 40_000, "bb" * 8, current=False),
            TreeNode("cleanup", "Cleanup", "tenant", withheld=True, closed=True),
            TreeNode("full", "Sync", "tenant", "held", 40_000, "bb" * 8, signals=8042),
            TreeNode("lost", "Sync", "tenant", problem="no worker answers", current=False),
        ),
    )
    console = Console(width=200, markup=False)
    with console.capture() as captured:
        console.print(render(seen, now=130))
    lines = captured.get().splitlines()
    assert lines[0] == "apiToken not converged, 2 behind"
    assert lines[1].endswith(f"tenant Tenant held {'aa' * 8} 30 s old undelivered: old")
    assert lines[2].endswith(f"[red]sync Sync held {'bb' * 8} 2 min old behind")
    assert lines[3].endswith("cleanup Cleanup withheld closed")
    assert lines[4].endswith("2 min old 8,042 of 10,000 signals: continue as new")
    assert lines[5].endswith("lost Sync none behind no worker answers")


def test_many_siblings_that_look_alike_are_one_line_and_those_that_do_not_are_seen() -> None:
    def held(node_id: str, parent: str | None, *, behind: bool = False) -> TreeNode:
        return TreeNode(node_id, "Sync", parent, "held", 100_000, "aa" * 8, current=not behind)

    nodes = [held("tenant", None)]
    for n in range(20):
        nodes.append(held(f"sync-{n}", "tenant"))
        # The eighth's last one is behind, and so the eighth does not look as the others do.
        nodes += [held(f"sync-{n}-{m}", f"sync-{n}", behind=n == 7 and m == 14) for m in range(15)]
    seen = TokenTree("apiToken", tuple(nodes))

    def drawn(*, each: bool) -> list[str]:
        console = Console(width=200, markup=False)
        with console.capture() as captured:
            console.print(render(seen, now=130, each=each))
        return [line.strip(" │├└─") for line in captured.get().splitlines()]

    what = f"Sync held {'aa' * 8} 30 s old"
    assert drawn(each=False) == [
        "apiToken not converged, 1 behind",
        f"tenant {what}",
        f"19 × {what}: sync-0 … sync-19, each with",
        f"15 × {what}: sync-0-0 … sync-0-14",
        f"sync-7 {what}",
        f"14 × {what}: sync-7-0 … sync-7-13",
        f"sync-7-14 {what} behind",
    ]
    assert len(drawn(each=True)) == 1 + len(nodes)


def test_of_many_children_that_could_not_be_told_the_first_are_named() -> None:
    children = tuple(f"sync-{n}" for n in range(2000))
    seen = TokenTree("apiToken", (TreeNode("tenant", "Tenant", None, undelivered=children),))
    console = Console(width=300, markup=False)
    with console.capture() as captured:
        console.print(render(seen, now=130))
    assert captured.get().rstrip().endswith("sync-8, sync-9 and 1990 more")
