"""The architecture that docs/design.md draws: arrows go one way, and few modules touch much."""

from __future__ import annotations

import ast
from pathlib import Path

import stateful_workflow

PACKAGE = Path(stateful_workflow.__file__).parent


def imports() -> dict[str, set[str]]:
    """For each module of the core the modules of the core it imports."""
    names = {path.stem for path in PACKAGE.glob("*.py")}
    graph: dict[str, set[str]] = {}
    for path in PACKAGE.glob("*.py"):
        tree = ast.parse(path.read_text())
        typing_only = {
            id(node)
            for block in ast.walk(tree)
            if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
            for node in ast.walk(block)
        }
        graph[path.stem] = {
            target
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.level == 1 and id(node) not in typing_only
            for target in ([node.module] if node.module else [alias.name for alias in node.names])
            if target in names
        }
    return graph


def third_party(module: str) -> set[str]:
    """The packages a module imports."""
    tree = ast.parse((PACKAGE / f"{module}.py").read_text())
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found


def test_no_module_imports_itself_through_others() -> None:
    graph = imports()

    def reaches(start: str, goal: str, seen: set[str]) -> bool:
        return any(
            nearer == goal or (nearer not in seen and reaches(nearer, goal, seen | {nearer}))
            for nearer in graph[start]
        )

    assert [name for name in graph if reaches(name, name, set())] == []


def test_the_pure_core_knows_nothing_of_temporal() -> None:
    for module in (
        "messages",
        "origins",
        "ledger",
        "describe",
        "status",
        "keyring",
        "issuers",
        "tokens",
        "printable",
    ):
        assert "temporalio" not in third_party(module), module


def test_one_module_imports_joserfc() -> None:
    assert [m for m in imports() if "joserfc" in third_party(m)] == ["jose"]


def test_nothing_below_the_command_line_knows_of_it() -> None:
    for module in imports():
        if module != "__main__":
            text = (PACKAGE / f"{module}.py").read_text()
            assert "from .cli " not in text, module
            assert "from .demo " not in text, module
