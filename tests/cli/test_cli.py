"""The command without a server: what it does, what it prints, and what it does not repeat."""

from __future__ import annotations

import json
import re
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text
from typer.main import get_command
from typer.testing import CliRunner, Result

import stateful_workflow
from stateful_workflow.cli import common
from stateful_workflow.cli import token as token_commands
from stateful_workflow.cli import tree as tree_command
from stateful_workflow.cli.app import app
from stateful_workflow.cli.common import IN_OPTIONS, in_options
from stateful_workflow.cli.tree import render
from stateful_workflow.errors import NoWorkerAnswers, StatefulError, TokenNotSet, WorkflowNotFound
from stateful_workflow.node.renewal import RetiringStatus, SourceStatus
from stateful_workflow.node.status import TokenStatus, TokenTree, TreeNode
from stateful_workflow.sealed.keyring import Keyring
from stateful_workflow.sealed.message import MAX_VERSION
from stateful_workflow.text.output import Escaped, Output, out
from tests.support.terminal import HOSTILE, VISIBLE, unprintable

PACKAGE = Path(stateful_workflow.__file__).parent
NOWHERE = "127.0.0.1:1"


@pytest.fixture(autouse=True)
def keyring_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    path = tmp_path / "keyring.json"
    Keyring.generate().save(path)
    for name in ("TEMPORAL_NAMESPACE", "TEMPORAL_PROFILE", "STATEFUL_AUDIT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("STATEFUL_KEYRING", str(path))
    monkeypatch.setenv("TEMPORAL_ADDRESS", NOWHERE)
    monkeypatch.setenv("TEMPORAL_CONFIG_FILE", str(tmp_path / "temporal.toml"))
    monkeypatch.setenv("NO_COLOR", "1")
    (tmp_path / "temporal.toml").touch()
    monkeypatch.chdir(tmp_path)
    return path


def stateful(*arguments: str | Path, stdin: str | bytes = "secret") -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)


def program(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable,
            "-c",
            f"{code}; from stateful_workflow.cli import main; main()",
            *arguments,
        ],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


# --- keys ---------------------------------------------------------------------------------


def test_keys_init_makes_a_file_of_ones_own_and_never_overwrites(tmp_path: Path) -> None:
    path = tmp_path / "new.json"
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


def test_keys_list_shows_no_private_half(keyring_file: Path) -> None:
    shown, data = stateful("keys", "list"), stateful("keys", "list", "--json")
    kinds = [(key["kind"], key["private"]) for key in json.loads(data.stdout)]
    assert kinds == [("issuer", True), ("reader", True)]
    for key in json.loads(keyring_file.read_text())["keys"]:
        assert key["d"] not in shown.output + data.output


def test_keys_public_prints_a_keyring_without_private_halves(keyring_file: Path) -> None:
    keyring = Keyring.from_json(stateful("keys", "public").stdout)
    assert [key.private for key in keyring.keys()] == [False, False]
    assert keyring.trusted() == Keyring.load(keyring_file).trusted()


@pytest.mark.parametrize(
    "command",
    ["keys list", "keys public", "token set x", "token reveal x", "token revoke x"],
)
def test_what_needs_keys_says_how_to_give_them(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STATEFUL_KEYRING")
    result = stateful(*command.split())
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: no keyring: ")
    assert "$STATEFUL_KEYRING" in result.stderr


# --- the server ---------------------------------------------------------------------------


def test_the_address_comes_from_temporals_own_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporal.toml").write_text('[profile.far]\naddress = "127.0.0.1:2"\n')
    monkeypatch.setenv("TEMPORAL_PROFILE", "far")
    monkeypatch.delenv("TEMPORAL_ADDRESS")
    assert "at 127.0.0.1:2 (" in stateful("tree", "x").stderr
    monkeypatch.setenv("TEMPORAL_ADDRESS", "127.0.0.1:3")
    assert "at 127.0.0.1:3 (" in stateful("tree", "x").stderr
    for command in (("tree", "x"), ("token", "status", "x")):
        result = stateful(*command, "--address", NOWHERE)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith(f"error: no Temporal server at {NOWHERE} (")
        assert "stateful dev" in result.stderr


def test_a_configuration_that_cannot_be_read_is_not_quoted(tmp_path: Path) -> None:
    (tmp_path / "temporal.toml").write_text("[profile.default]\napi_key = Canary\n")
    result = stateful("tree", "x")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: Temporal's environment configuration: ")
    assert "line 2" in result.stderr
    assert CANARY not in result.output.lower()


# --- usage --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "stdin"),
    [
        (["x", "secret"], ""),
        (["x"], ""),
        (["x"], "\n"),
        (["x"], "two\nlines"),
        (["x"], b"\xff\xfe"),
        (["x", "--from-env", "NOT_SET_ANYWHERE"], "secret"),
        (["x", "--origin", "https://api.example.com/path"], "secret"),
    ],
)
def test_wrong_usage_of_set_is_status_2(arguments: list[str], stdin: str | bytes) -> None:
    assert stateful("token", "set", *arguments, stdin=stdin).exit_code == 2


@pytest.mark.parametrize(
    ("options", "stdin", "said"),
    [
        ([], "", "no grant on stdin"),
        ([], "canary", "a grant is a JSON object, "),
        ([], '{"a": "canary", "a": 1}', "it names a member twice"),
        (["canary"], "{}", "a grant is not taken from the command line: "),
        (["--refresh-token"], "canary\ncanary", "has several lines"),
        (["--no-grant", "--refresh-token"], "canary", "--no-grant stands without a grant"),
        (["--grant-from-env", "NOT_SET_HERE"], "", "the variable of --grant-from-env is not set"),
        (["--renew-every", "canary"], "{}", "--renew-every takes TIME: "),
        (["--renew-every", "0d"], "{}", "--renew-every takes TIME: "),
        (["--by", "canary-0123456789"], '{"a": "canary-0123456789"}', "never a secret"),
    ],
)
def test_a_grant_that_is_not_understood_is_not_repeated(
    options: list[str], stdin: str, said: str
) -> None:
    result = stateful("token", "authorize", "x", "--source", "own", *options, stdin=stdin)
    assert (result.exit_code, said in result.stderr) == (2, True), result.stderr
    assert CANARY not in result.output


def test_help_shows_every_command_and_completion() -> None:
    text = stateful("--help").stdout
    for word in ("dev", "demo", "keys", "token", "tree", "--install-completion"):
        assert word in text


@pytest.mark.parametrize(
    ("package", "arguments", "extra"),
    [("typer", [], "cli"), ("starlette", ["codec-server"], "cli,codec")],
)
def test_without_the_extra_it_says_what_to_install(
    package: str, arguments: list[str], extra: str
) -> None:
    done = program(f"import sys; sys.modules['{package}'] = None", *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert f'pip install "stateful-workflow[{extra}]"' in done.stderr


# --- a tree -------------------------------------------------------------------------------


def drawn(*nodes: TreeNode) -> list[str]:
    console = Console(width=300, markup=False)
    with console.capture() as captured:
        console.print(render(TokenTree("apiToken", nodes), now=130))
    return [line.strip(" │├└─") for line in captured.get().splitlines()]


def held(node_id: str, parent: str | None, *, behind: bool = False) -> TreeNode:
    return TreeNode(node_id, "Sync", parent, "held", 100_000, "aa" * 8, current=not behind)


def test_a_node_that_is_asleep_is_drawn_so_and_counted() -> None:
    asleep = TreeNode(
        "r", "Node", None, "told", version=1_000, fingerprint="f1", asleep_until=1_800_000_000
    )

    assert drawn(asleep) == [
        "apiToken converged · 1 asleep",
        "r Node told f1 2 min old, asleep until 2027-01-15T08:00:00Z",
    ]


def test_a_tree_is_drawn_with_what_each_node_holds() -> None:
    assert drawn(
        TreeNode("tenant", "Tenant", None, "held", 100_000, "aa" * 8, undelivered=("old",)),
        TreeNode("[red]sync", "Sync", "tenant", "held", 40_000, "bb" * 8, current=False),
        TreeNode("cleanup", "Cleanup", "tenant", withheld=True, closed=True),
        TreeNode("full", "Sync", "tenant", "held", 40_000, "bb" * 8, signals=8042),
        TreeNode("lost", "Sync", "tenant", "unknown", problem="no worker answers", current=False),
    ) == [
        "apiToken not converged · 1 behind · 1 unreachable",
        f"tenant Tenant held {'aa' * 8} 30 s old undelivered: old",
        f"[red]sync Sync held {'bb' * 8} 2 min old behind",
        "cleanup Cleanup withheld closed",
        f"full Sync held {'bb' * 8} 2 min old 8,042 of 10,000 signals: continue as new",
        "lost Sync unknown no worker answers",
    ]


def test_many_siblings_that_look_alike_are_one_line_and_those_that_do_not_are_seen() -> None:
    nodes = [held("tenant", None)]
    for n in range(20):
        nodes.append(held(f"sync-{n}", "tenant"))
        # The eighth's last one is behind, and so the eighth does not look as the others do.
        nodes += [held(f"sync-{n}-{m}", f"sync-{n}", behind=n == 7 and m == 14) for m in range(15)]

    what = f"Sync held {'aa' * 8} 30 s old"
    assert drawn(*nodes) == [
        "apiToken not converged · 1 behind",
        f"tenant {what}",
        f"19 × {what}: sync-0 … sync-19, each with",
        f"15 × {what}: sync-0-0 … sync-0-14",
        f"sync-7 {what}",
        f"14 × {what}: sync-7-0 … sync-7-13",
        f"sync-7-14 {what} behind",
    ]


def test_of_many_children_that_could_not_be_told_the_first_are_named() -> None:
    children = tuple(f"sync-{n}" for n in range(2000))
    (_, line) = drawn(TreeNode("tenant", "Tenant", None, undelivered=children))
    assert line.endswith("sync-8, sync-9 and 1990 more")


def test_a_home_is_drawn_with_what_is_known_of_its_source() -> None:
    home = held("tenant", None)
    fresh = SourceStatus("apiToken", "own", "fresh", "f1", next_at=3_730_000)
    slow = SourceStatus(
        *("apiToken", "own", "stale", "f1"), failures=2, outcome="unreachable", detail="no route"
    )
    dead = SourceStatus(
        "billing", "own", "needs_authorization", "f1", outcome="refused_grant", after_lost=True
    )
    for source, said in (
        (fresh, "fresh, renews it in 1 h"),
        (slow, "stale: 2 exchanges failed, the last: unreachable: no route"),
        (
            dead,
            "needs authorization: the provider refuses the grant after an answer to it was lost; "
            "run `stateful token authorize tenant --source own --name billing`",
        ),
    ):
        assert drawn(replace(home, source=source))[1].endswith(f"old source own {said}")


# --- nothing goes around what escapes -------------------------------------------------------

AROUND = re.compile(
    r"(?<![.\w])print\(|echo\(|\.write(lines)?\(|sys\.(__)?std(out|err)|(?:from|import) click|"
    r"import (logging|rich)|from typer|from rich\S* import (?!(Group|Live|Table|Tree)\b)"
)


def test_the_commands_and_the_demo_print_through_one_module() -> None:
    """`text/output.py`; `cli/__init__.py` has the streams alone: a traceback, and flushes."""
    paths = {*PACKAGE.glob("cli/*.py"), *PACKAGE.glob("demo/*.py")} - {PACKAGE / "cli/__init__.py"}
    lines = [line for path in paths for line in path.read_text().splitlines()]
    assert [line for line in lines if AROUND.search(line)] == []


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
    done = program(
        "from stateful_workflow import Keyring\n"
        "def fail(*_): raise RuntimeError('\\x1b]0;evil\\x07')\n"
        "Keyring.load = fail",
        "keys",
        "list",
    )
    assert r"RuntimeError: \x1b]0;evil\x07" in done.stderr
    assert unprintable(done.stderr) == set()


# --- what others chose --------------------------------------------------------------------

MINTED = SourceStatus(
    HOSTILE,
    HOSTILE,
    "stale",
    HOSTILE,
    next_at=1,
    counts={HOSTILE: 1},
    failures=1,
    outcome="malformed",
    detail=HOSTILE,
    retiring=(RetiringStatus(1, HOSTILE, (HOSTILE,), HOSTILE),),
    retired=HOSTILE,
)
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
    source=MINTED,
)
STATUS = TokenStatus(
    HOSTILE,
    HOSTILE,  # pyright: ignore[reportArgumentType]
    version=MAX_VERSION,
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
    token = ""
    values: Mapping[str, str] = {}

    def __init__(self, *_: object, **__: object) -> None:
        self.asked = 0

    async def tree(self, *_: object, **__: object) -> TokenTree:
        self.asked += 1
        if self.error is not None:
            raise self.error
        if self.asked > 2:
            raise TokenNotSet("enough")
        many = [replace(NODE, id=f"{HOSTILE}{n}", parent=HOSTILE) for n in range(11)]
        return TokenTree(HOSTILE, (replace(NODE, signals=self.asked), *many))

    async def status(self, *_: object, **__: object) -> TokenStatus:
        if self.error is not None:
            raise self.error
        return STATUS

    async def source(self, *_: object) -> SourceStatus:
        return MINTED

    async def get(self, *_: object) -> Any:
        return self

    def reveal(self) -> str:
        return self.token

    rotate, set = tree, status


@pytest.fixture
def liar(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Liar]]:
    async def connect(*_: object) -> None: ...

    async def ask(*_: object) -> None:
        raise NoWorkerAnswers("the status has told it")

    monkeypatch.setattr(tree_command, "_LOOK_EVERY_SECONDS", 0.01)
    monkeypatch.setattr(common.AtWorkflow, "connect", connect)
    for module in (token_commands, tree_command):
        monkeypatch.setattr(module, "TokenClient", Liar)
    monkeypatch.setattr(token_commands, "ask", ask)
    yield Liar
    Liar.error = None


@pytest.mark.parametrize(
    "command",
    ["tree x", "tree x --watch", "token status x", "token set x", "token rotate x"],
)
def test_what_workflows_say_is_escaped(liar: type[Liar], command: str) -> None:
    shown, data = stateful(*command.split()), stateful(*command.split(), "--json")
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


def test_a_token_is_revealed_as_it_is_or_not_at_all(liar: type[Liar]) -> None:
    for liar.token in ("sk-live", "-----BEGIN-----\nkey:key: [red]\n-----END-----"):
        assert stateful("token", "reveal", "x").stdout == f"{liar.token}\n"
    liar.token = HOSTILE
    refused = stateful("token", "reveal", "x")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert refused.stderr == "error: the token has characters that are not printed: add --json\n"
    assert json.loads(stateful("token", "reveal", "x", "--json").stdout)["token"] == HOSTILE


def test_what_belongs_to_a_token_is_in_json_alone(
    liar: type[Liar], monkeypatch: pytest.MonkeyPatch
) -> None:
    liar.token = "sk-live"
    monkeypatch.setattr(liar, "values", {"user": "ann"})
    assert stateful("token", "reveal", "x").stdout == "sk-live\n"
    whole = json.loads(stateful("token", "reveal", "x", "--json").stdout)
    assert whole == {"name": "apiToken", "token": "sk-live", "values": {"user": "ann"}}


def test_a_reference_and_a_variable_are_not_given_together() -> None:
    result = stateful("token", "set", "x", "--reference", "prod:a", "--from-env", "HOME")
    assert result.exit_code == 2
    assert "give either --reference or --from-env" in result.stderr


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
    "keys add-issuer --name",
    "keys add-issuer --root",
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
        (["keys", "list", "--keyring", "not-there"], 1, "the keyring --keyring cannot be read"),
        (["keys", "revoke", "unknown-key"], 1, "0 keys of this keyring begin with KEY"),
        (["tree", "x", "--address", "not-there"], 1, "no Temporal server at --address ("),
        (["audit", "verify", "not-there"], 1, "FILE is not there: there is no audit file"),
        (["tree", ""], 2, "ID takes a value: Workflow id."),
        (["token", "set", ""], 2, "ID takes a value: Workflow id."),
        (["token", "set", "x", "--type", ""], 2, "--type takes TYPE: Whose activities may open"),
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


# --- what a command says of itself ----------------------------------------------------------


def test_the_usage_shows_no_argument_that_is_only_taken_to_be_refused() -> None:
    for command in ("set", "rotate"):
        assert "mistaken" not in stateful("token", command, "--help").stdout
        refused = stateful("token", command, "x", "secret")
        assert "a token is not taken from the command line" in refused.stderr


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("give origins=[…]: where it may be sent", "give --origin: where it may be sent"),
        ("or allow_http= where a token", "or --allow-http where a token"),
        ("no keyring: give a path or set $X", "no keyring: give --keyring or set $X"),
        ("by api_url= or --api-url; nothing", "by --api-url; nothing"),
    ],
)
def test_an_error_names_the_options_of_the_command(said: str, told: str) -> None:
    assert in_options(said) == told


def test_the_library_says_what_the_command_puts_into_its_own_words() -> None:
    """Else `in_options` would look for texts that nobody writes."""
    library = "\n".join(path.read_text() for path in PACKAGE.rglob("*.py"))
    for argument in IN_OPTIONS:
        assert library.count(argument) > 1, argument


def test_plain_http_is_taken_where_the_host_is_named() -> None:
    set_it = ("token", "set", "x", "--origin", "http://api.internal:8080")
    refused = stateful(*set_it, stdin="secret")
    assert "or --allow-http where a token may go to that host in clear text" in refused.stderr
    local = stateful("token", "set", "x", "--origin", "http://localhost:8080", stdin="secret")
    assert "write 127.0.0.1" in local.stderr
    taken = stateful(*set_it, "--allow-http", "api.internal", "--keyring", "none", stdin="secret")
    assert "keyring" in taken.stderr, "it goes on to the next thing"


def test_a_token_that_goes_out_in_clear_text_is_seen() -> None:
    node = TreeNode("a", "Sync", None, "held", 40_000, "bb" * 8, http=("http://api.internal:8080",))
    line = drawn(node)[1]
    assert line.endswith("in clear text to http://api.internal:8080")


def test_in_a_tree_it_is_said_what_was_set_here_or_failed() -> None:
    assert drawn(
        held("tenant", None),
        TreeNode("own", "Sync", "tenant", "held", 40_000, "bb" * 8, set_here=True),
        TreeNode("old", "Sync", "tenant", "key_revoked", 40_000, "cc" * 8),
        TreeNode("f", "Sync", "tenant", "failed", closed=True, current=False, problem="why"),
        TreeNode("b", "Sync", "tenant", beside=True, current=False, problem="beside this tree"),
    ) == [
        "apiToken not converged · 1 failed · 1 beside · 1 set here · 1 key revoked",
        f"tenant Sync held {'aa' * 8} 30 s old",
        f"own Sync held {'bb' * 8} 2 min old set here",
        f"old Sync key revoked {'cc' * 8} 2 min old",
        "f Sync failed closed why",
        "b Sync none beside this tree",
    ]
