"""What the command prints: nothing that a terminal acts upon, and nothing it did not understand."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.live import Live
from rich.table import Table
from rich.text import Text
from typer.main import get_command
from typer.testing import CliRunner, Result

import stateful_workflow
from stateful_workflow.cli import token as token_commands
from stateful_workflow.cli import tree as tree_command
from stateful_workflow.cli.app import app
from stateful_workflow.errors import NoWorkerAnswers, StatefulError, TokenNotSet, WorkflowNotFound
from stateful_workflow.node.status import TokenStatus, TokenTree, TreeNode
from stateful_workflow.sealed.keyring import Keyring
from stateful_workflow.text.output import Escaped, Output, out
from tests.terminal import HOSTILE, VISIBLE, unprintable

PACKAGE = Path(stateful_workflow.__file__).parent
NOWHERE = "127.0.0.1:1"


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    keyring = tmp_path / "keyring.json"
    Keyring.generate().save(keyring)
    for name in ("TEMPORAL_NAMESPACE", "TEMPORAL_PROFILE", "STATEFUL_AUDIT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("STATEFUL_KEYRING", str(keyring))
    monkeypatch.setenv("TEMPORAL_ADDRESS", NOWHERE)
    monkeypatch.setenv("TEMPORAL_CONFIG_FILE", str(tmp_path / "temporal.toml"))
    monkeypatch.setenv("NO_COLOR", "1")
    (tmp_path / "temporal.toml").touch()
    monkeypatch.chdir(tmp_path)


def stateful(*arguments: str | Path, stdin: str = "secret") -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)


# --- nothing goes around ------------------------------------------------------------------


def test_only_one_module_of_the_commands_and_the_demo_prints() -> None:
    """`cli/output.py`; `cli/__init__.py` has the streams alone: a traceback, and flushes."""
    found: list[str] = []
    for path in (*PACKAGE.glob("cli/*.py"), *PACKAGE.glob("demo/*.py")):
        if path == PACKAGE / "cli" / "output.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Name("print"):
                    used = "print"
                case ast.Attribute(ast.Name("typer"), "echo" | "secho" | "Exit" as name):
                    used = "" if name == "Exit" else name
                case ast.Attribute(ast.Name("sys"), "stdout" | "stderr" | "__stdout__" as name):
                    used = "" if path == PACKAGE / "cli" / "__init__.py" else name
                case ast.Attribute(_, "write" | "writelines"):
                    used = "" if path == PACKAGE / "cli" / "__init__.py" else "write"
                case ast.ImportFrom(module=str(module)) if module.split(".")[0] == "rich":
                    # Of rich that which lays out, and no text, markup or console of its own.
                    names = {alias.name for alias in node.names}
                    used = ", ".join(names - {"Group", "Live", "RenderableType", "Table", "Tree"})
                case ast.ImportFrom(module="typer" | "click"):
                    used = "a name of typer"
                case ast.Import():
                    used = ", ".join({a.name for a in node.names} & {"rich", "click", "logging"})
                case _:
                    continue
            if used:
                found.append(f"{path.name}:{node.lineno} {used}")
    assert found == []


@pytest.mark.parametrize("colours", [True, False])
def test_rich_keeps_its_codes_and_what_it_is_given_is_escaped(
    colours: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR")
    stream = StringIO()
    console = Output(
        file=stream, force_terminal=colours, color_system="standard" if colours else None, width=500
    )
    table = Table(HOSTILE)
    table.add_row(HOSTILE)
    with Live(console=console, auto_refresh=False) as live:
        live.update(Escaped((HOSTILE, "red"), " ", (HOSTILE, "bold")), refresh=True)
        console.print(Text(HOSTILE, "green"), HOSTILE, table)
    text = stream.getvalue()
    assert ("\x1b[31m" in text) == colours
    assert unprintable(re.sub(r"\x1b\[[?0-9;]*[a-zA-Z]|\r", "", text)) == set()
    assert VISIBLE in text


def test_ids_are_neither_markup_nor_emoji(capsys: pytest.CaptureFixture[str]) -> None:
    out().print("tenant:key:[red]1[/red]")
    assert capsys.readouterr().out == "tenant:key:[red]1[/red]\n"


def test_an_error_that_nobody_expected_is_escaped_too() -> None:
    code = (
        "from stateful_workflow import Keyring; from stateful_workflow.cli import main\n"
        "def fail(*_): raise RuntimeError('\\x1b]0;evil\\x07')\n"
        "Keyring.load = fail; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "keys", "list"],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert r"RuntimeError: \x1b]0;evil\x07" in done.stderr
    assert unprintable(done.stderr) == set()


# --- what others chose --------------------------------------------------------------------

NODE = TreeNode(
    HOSTILE,
    HOSTILE,
    None,
    HOSTILE,  # pyright: ignore[reportArgumentType]
    100_000,
    HOSTILE,
    HOSTILE,
    api_url=HOSTILE,
    current=False,
    undelivered=(HOSTILE,),
    problem=HOSTILE,
)
STATUS = TokenStatus(
    HOSTILE,
    HOSTILE,  # pyright: ignore[reportArgumentType]
    version=100_000,
    fingerprint=HOSTILE,
    authority=HOSTILE,
    issuer=HOSTILE,
    origins=(HOSTILE,),
    types=(HOSTILE,),
    readers=(HOSTILE,),
    overtaken={HOSTILE: 1},
)


class Liar:
    """Answers as workflows would that lie in whatever they may choose."""

    error: StatefulError | None = None

    def __init__(self, *_: object, **__: object) -> None:
        self.asked = 0

    async def tree(self, workflow_id: str, name: str) -> TokenTree:
        self.asked += 1
        if self.error is not None:
            raise self.error
        if self.asked > 2:
            raise TokenNotSet("enough")
        many = [replace(NODE, id=f"{HOSTILE}{n}", parent=HOSTILE) for n in range(11)]
        return TokenTree(HOSTILE, (replace(NODE, signals=self.asked), *many))

    async def status(self, workflow_id: str, name: str) -> TokenStatus:
        if self.error is not None:
            raise self.error
        return STATUS

    async def rotate(self, *_: object, **__: object) -> TokenTree:
        return await self.tree("", "")

    async def set(self, *_: object, **__: object) -> TokenStatus:
        return STATUS


@pytest.fixture
def liar(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Liar]]:
    async def connect(*_: object) -> None: ...

    for module in (token_commands, tree_command):
        monkeypatch.setattr(module, "TokenClient", Liar)
        monkeypatch.setattr(module, "connect", connect)
    yield Liar
    Liar.error = None


@pytest.mark.parametrize(
    "command",
    [
        ("tree", "x"),
        ("tree", "x", "--all"),
        ("tree", "x", "--watch", "--every", "0.1"),
        ("token", "status", "x"),
        ("token", "set", "x"),
        ("token", "rotate", "x"),
    ],
    ids=" ".join,
)
def test_what_workflows_say_is_escaped(liar: type[Liar], command: tuple[str, ...]) -> None:
    shown, data = stateful(*command), stateful(*command, "--json")
    for result in (shown, data):
        assert unprintable(result.output) == set()
        assert not any(line.startswith("error: forged") for line in result.output.splitlines())
    assert VISIBLE in shown.stdout
    assert HOSTILE in json.dumps(json.loads(data.stdout.splitlines()[0]), ensure_ascii=False) or (
        json.dumps(HOSTILE) in data.stdout
    )


@pytest.mark.parametrize("kind", [WorkflowNotFound, NoWorkerAnswers, StatefulError])
def test_what_is_in_an_error_is_escaped(liar: type[Liar], kind: type[StatefulError]) -> None:
    liar.error = kind(f"workflow {HOSTILE}: {HOSTILE}")
    for command in (("tree", "x"), ("token", "status", "x")):
        result = stateful(*command)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr == f"error: workflow {VISIBLE}: {VISIBLE}\n"


def test_what_stands_in_a_keyring_is_escaped(tmp_path: Path) -> None:
    path = tmp_path / f"{HOSTILE}.json"
    Keyring.generate().add_issuer(names=["a"], roots=["tenant-"]).save(path)
    for command in ("list", "public"):
        result = stateful("keys", command, "--keyring", path)
        assert result.exit_code == 0
        assert unprintable(result.output) == set()
    again = stateful("keys", "init", path)
    assert again.stderr.startswith(f"error: {tmp_path}/{VISIBLE}.json exists; ")
    made = stateful("keys", "init", tmp_path / f"{HOSTILE}2.json")
    assert made.exit_code == 0
    assert unprintable(made.output) == set()


def test_a_token_is_revealed_as_it_is_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    class Holder(Liar):
        token = ""

        async def get(self, *_: object) -> Any:
            return self

        def reveal(self) -> str:
            return self.token

    async def connect(*_: object) -> None: ...

    monkeypatch.setattr(token_commands, "TokenClient", Holder)
    monkeypatch.setattr(token_commands, "connect", connect)
    for Holder.token in ("sk-live", "-----BEGIN-----\nkey:key: [red]\n-----END-----"):
        assert stateful("token", "reveal", "x").stdout == f"{Holder.token}\n"
    Holder.token = HOSTILE
    refused = stateful("token", "reveal", "x")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert refused.stderr == "error: the token has characters that are not printed: add --json\n"
    assert json.loads(stateful("token", "reveal", "x", "--json").stdout)["token"] == HOSTILE


# --- what was not understood --------------------------------------------------------------

CANARY = "canary"
TOKENS = (
    "sk_live_Canary0123456789",
    "c2tfbGl2ZV9/Canary+w==",
    f"eyJhbGciOiJIUzI1NiJ9.Canary{'a' * 300}.Canary",
    "-Canary0123456789",
    "https://user:Canary@Canary:Canary/Canary?Canary#Canary",
    "CANARY012345:CANARY@[CANARY012345]",
)
"""In the forms that tokens have, and in those of what the options take."""

UNDERSTOOD = {
    "codec-server --host-name",
    "dev --db",
    "dev --namespace",
    "dev --ui-codec-endpoint",
    "keys init path",
    "keys export target",
    "keys add-issuer --names",
    "keys add-issuer --roots",
    "keys add-reader --audience",
}
"""Where such a text is as good as any other: it is done, and told."""


def leaves(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The commands that have none below them, by their words."""
    if not hasattr(command, "commands"):
        yield path, command
    for name, below in getattr(command, "commands", {}).items():
        yield from leaves(below, (*path, name))


def ways() -> Iterator[tuple[str, list[str]]]:
    """Each place where a token could be given, and how."""
    for group in ((), ("token",), ("keys",), ("audit",)):
        yield f"{' '.join(group)} TOKEN", [*group, "{}"]
        yield f"{' '.join(group)} --TOKEN", [*group, "--{}"]
    for path, command in leaves(get_command(app)):
        name = " ".join(path)
        needed = [p for p in command.params if p.param_type_name == "argument" and p.required]
        rest = ["x" for _ in needed]
        yield f"{name} one more", [*path, *rest, *(["--"] if rest else []), "{}"]
        for unknown in ("--{}", "--token={}", "-{}"):
            yield f"{name} {unknown}", [*path, *rest, unknown]
        for param in command.params:
            option = param.opts[0]
            if f"{name} {option}" in UNDERSTOOD or param.name == "mistaken":
                continue
            if param.param_type_name == "argument":
                yield f"{name} {option}", [*path, "--", "{}"]
            else:
                yield f"{name} {option}", [*path, *rest, f"{option}={{}}"]


WAYS = dict(ways())


def test_there_are_many_ways_to_misplace_a_token() -> None:
    assert len(WAYS) > 150
    assert {"token set --origin", "token set one more", "token TOKEN", "tree --token={}"} < {*WAYS}


@pytest.mark.parametrize("way", WAYS)
def test_what_is_not_understood_is_not_repeated(way: str) -> None:
    """Not even in part, nor in other case; and no error is one that nobody expected."""
    for token in TOKENS:
        result = stateful(*(argument.format(token) for argument in WAYS[way]))
        assert isinstance(result.exception, SystemExit), result.exception
        assert result.exit_code in (1, 2)
        assert CANARY not in result.output.lower()
        assert result.stderr.startswith("error: ")
        assert unprintable(result.output) == set()


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["token", "rotate", "x", "--timeout", "soon"], 2, "--timeout takes SECONDS"),
        (["token", "set", "x", "--expires-in", "0"], 2, "--expires-in takes SECONDS"),
        (["dev", "--port", "any"], 2, "--port takes a number: "),
        (["token", "set", "x", "--orign", "y"], 2, "there is no such option, command or"),
        (["token", "set", "x", "--orign", "y"], 2, "(--origin or"),
        (["token", "sett"], 2, "see `stateful token --help`"),
        (["token", "set"], 2, "Missing argument 'ID'"),
        (["token", "set", "x", "--name"], 2, "Option '--name' requires an argument"),
        (["token", "set", "x", "--from-env", "NOT_SET_HERE"], 2, "the variable of --from-env"),
        (["token", "set", "x", "--origin", "http://a.example"], 2, "--origin: plain http is"),
        (["audit", "review", "x", "--since", "yesterday"], 2, "--since takes a time as in ISO"),
        (["keys", "list", "--keyring", "not-there"], 1, "the keyring <--keyring> cannot be read"),
        (["keys", "revoke", "unknown-key"], 1, "0 keys of this keyring begin with <key>"),
        (["tree", "x", "--address", "not-there"], 1, "no Temporal server at <--address> ("),
        (["tree", "x", "--address", NOWHERE], 1, f"no Temporal server at {NOWHERE} ("),
    ],
)
def test_an_error_names_the_option_and_what_it_takes(
    arguments: list[str], status: int, said: str
) -> None:
    result = stateful(*arguments)
    assert (result.exit_code, result.stdout) == (status, "")
    assert said in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_configuration_that_cannot_be_read_is_not_quoted(tmp_path: Path) -> None:
    (tmp_path / "temporal.toml").write_text("[profile.default]\napi_key = Canary\n")
    result = stateful("tree", "x")
    assert result.exit_code == 1
    assert "line 2" in result.stderr
    assert CANARY not in result.output.lower()
