"""The architecture that docs/design.md draws: a room may import what stands below it, no more."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

import pytest

import stateful_workflow

PACKAGE: Final = Path(stateful_workflow.__file__).parent

BELOW: Final[dict[str, set[str]]] = {
    "errors": set(),
    "text": set(),
    "sealed": {"text", "errors"},
    "record": {"sealed", "text", "errors"},
    "audit": {"record"},
    "node": {"record", "sealed", "text", "errors"},
    "use": {"node", "record", "sealed", "text", "errors"},
    "worker": {"use", "node", "record", "sealed", "text", "errors"},
    "client": {"use", "node", "record", "sealed", "text", "errors"},
    "web": {"node", "sealed", "text", "errors"},
    "engine": {"errors"},
    "demo": {
        *("audit", "client", "engine", "errors", "node", "record", "sealed", "use"),
        *("text", "web", "worker"),
    },
    "cli": {
        *("audit", "client", "demo", "engine", "errors", "node", "record", "sealed"),
        *("text", "web"),
    },
}
"""For each room, and each module beside the rooms, what it may import of the others."""

PUBLIC: Final = {"__init__"}
"""Imports from any room: the public names."""

MODULES: Final = sorted(
    path.relative_to(PACKAGE).with_suffix("").as_posix() for path in PACKAGE.rglob("*.py")
)
"""Every module, in every folder, as ``node/ledger``."""


@cache
def tree(module: str) -> ast.Module:
    return ast.parse((PACKAGE / f"{module}.py").read_text("utf-8"))


def room(module: str) -> str:
    return module.partition("/")[0]


def imported(module: str) -> set[str]:
    """The modules of the package that one imports when it runs, as ``node/ledger``."""
    only_typing = {
        id(node)
        for block in ast.walk(tree(module))
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    found: set[str] = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.ImportFrom) and node.level and id(node) not in only_typing:
            folder = module.split("/")[: -node.level]
            target = [*folder, *(node.module or "").split(".")]
            found |= set(_resolved([part for part in target if part], node.names))
    return found - {module}


def _resolved(target: list[str], names: list[ast.alias]) -> Iterator[str]:
    """A module, or those of a package that are imported by name, or else the package itself."""
    path = "/".join(target)
    if path in MODULES:
        yield path
        return
    for alias in names:
        inner = "/".join((*target, alias.name))
        package = "/".join((*target, "__init__"))
        yield inner if inner in MODULES else package


def third_party(module: str) -> set[str]:
    """The packages that a module imports, of others and of Python."""
    found: set[str] = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            found.add(node.module.split(".")[0])
    return found


def test_each_module_stands_in_a_room_that_is_drawn() -> None:
    assert {room(module) for module in MODULES} - PUBLIC == BELOW.keys()


@pytest.mark.parametrize("module", [m for m in MODULES if room(m) not in PUBLIC])
def test_a_room_imports_only_what_stands_below_it(module: str) -> None:
    others = {room(target) for target in imported(module)} - {room(module)}
    assert others <= BELOW[room(module)]


def test_no_arrow_leads_back() -> None:
    def reaches(start: str, goal: str, seen: set[str]) -> bool:
        return any(
            nearer == goal or (nearer not in seen and reaches(nearer, goal, seen | {nearer}))
            for nearer in BELOW[start]
        )

    assert [name for name in BELOW if reaches(name, name, set())] == []


def test_no_module_imports_itself_through_others() -> None:
    graph = {module: imported(module) for module in MODULES}
    done: set[str] = set()

    def walk(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " -> ".join((*above, module))
        if module not in done:
            for target in sorted(graph[module]):
                walk(target, (*above, module))
            done.add(module)

    for module in MODULES:
        walk(module, ())


def test_what_is_sealed_and_what_a_ledger_does_knows_nothing_of_temporal() -> None:
    pure = [m for m in MODULES if room(m) == "sealed"]
    pure += [f"node/{name}" for name in ("ledger", "contract", "status", "answers", "describe")]
    for module in pure:
        assert "temporalio" not in third_party(module), module


def test_one_module_imports_joserfc() -> None:
    assert [m for m in MODULES if "joserfc" in third_party(m)] == ["sealed/crypto"]


LOCAL_ACTIVITY: Final = ("execute_local_activity", "start_local_activity")


def test_no_local_activity_is_the_librarys_own() -> None:
    """One would run in the workflow's own worker and keep its workflow task open meanwhile.

    The interceptor gives those of users their header, and hands them on.
    """
    named = [
        (module, ast.unparse(node))
        for module in MODULES
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Attribute | ast.Name)
        and ast.unparse(node).split(".")[-1].startswith(LOCAL_ACTIVITY)
    ]

    assert named == [("node/interceptors", "super().start_local_activity")]
