"""The architecture that docs/design.md draws: a room may import what stands below it, no more."""

from __future__ import annotations

import ast
from functools import cache
from graphlib import TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path
from typing import Final

import pytest

import stateful_workflow

PACKAGE: Final = Path(stateful_workflow.__file__).parent
PUBLIC: Final = PACKAGE.name
"""The public names, which are imported from any room."""

BELOW: Final[dict[str, set[str]]] = {
    "errors": set(),
    "text": set(),
    "sealed": {"text", "errors"},
    "record": {"sealed", "text", "errors"},
    "audit": {"record"},
    "node": {"record", "sealed", "text", "errors"},
    "use": {"node", "record", "sealed", "text", "errors"},
    "source": {"sealed", "text", "errors"},
    "requests": {"use", "sealed"},
    "aiohttp": {"use", "sealed"},
    "worker": {"client", "source", "use", "node", "record", "sealed", "text", "errors"},
    "client": {"source", "use", "node", "record", "sealed", "text", "errors"},
    "web": {"node", "sealed", "text", "errors"},
    "engine": {"errors"},
    "demo": {
        *(PUBLIC, "audit", "client", "engine", "errors", "node", "record", "sealed"),
        *("source", "text", "use", "web", "worker"),
    },
    "cli": {
        *("audit", "client", "demo", "engine", "errors", "node", "record", "sealed"),
        *("text", "web"),
    },
}
"""For each room, and each module beside the rooms, what it may import of the others."""

MODULES: Final = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
"""The file of every module, in every folder, by its name with dots."""


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else PUBLIC


def inner(room: str, *modules: str) -> list[str]:
    return [f"{PUBLIC}.{room}.{module}" for module in modules]


@cache
def nodes(module: str) -> list[ast.AST]:
    """What a module consists of when it runs: all but what the type checker alone sees."""
    todo: list[ast.AST] = [ast.parse(MODULES[module].read_text("utf-8"))]
    for node in todo:  # which grows
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            todo += ast.iter_child_nodes(node)
    return todo


@cache
def imported(module: str) -> set[str]:
    """What a module imports: modules of the package, and of others the packages."""
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found: set[str] = set()
    for node in nodes(module):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            origin = resolve_name("." * node.level + (node.module or ""), package)
            names = {f"{origin}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else origin for name in names}
    return {name if name in MODULES else name.split(".")[0] for name in found} - {module}


def test_each_module_stands_in_a_room_that_is_drawn() -> None:
    assert {room(module) for module in MODULES} - {PUBLIC} == BELOW.keys()


@pytest.mark.parametrize("module", [m for m in MODULES if m != PUBLIC])
def test_a_room_imports_only_what_stands_below_it(module: str) -> None:
    others = {room(target) for target in imported(module) & MODULES.keys()} - {room(module)}
    assert others <= BELOW[room(module)]


def test_no_arrow_leads_back() -> None:
    TopologicalSorter(BELOW).prepare()  # raises where one does


def test_no_module_imports_itself_through_others() -> None:
    TopologicalSorter({module: imported(module) for module in MODULES}).prepare()


def test_what_is_sealed_and_what_a_ledger_does_knows_nothing_of_temporal() -> None:
    pure = [m for m in MODULES if room(m) == "sealed"]
    pure += inner("node", "ledger", "children", "contract", "status", "answers", "describe")
    for module in pure:
        assert "temporalio" not in imported(module), module


def test_one_module_imports_joserfc() -> None:
    assert [m for m in MODULES if "joserfc" in imported(m)] == inner("sealed", "crypto")


LOCAL_ACTIVITY: Final = ("execute_local_activity", "start_local_activity")


def test_no_local_activity_is_the_librarys_own() -> None:
    """One would run in the workflow's own worker and keep its workflow task open meanwhile.

    The interceptor gives those of users their header, and hands them on.
    """
    named = [
        (module, ast.unparse(node))
        for module in MODULES
        for node in nodes(module)
        if isinstance(node, ast.Attribute | ast.Name)
        and ast.unparse(node).split(".")[-1].startswith(LOCAL_ACTIVITY)
    ]

    (interceptors,) = inner("node", "interceptors")
    assert named == [(interceptors, "super().start_local_activity")]
