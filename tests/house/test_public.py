"""The public names and their signatures: a change here is one for users, and goes to CHANGELOG.

`python -m tests.house.test_public` writes the file anew.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Final, cast

import stateful_workflow
import stateful_workflow.aiohttp
import stateful_workflow.audit
import stateful_workflow.requests

PINNED: Final = Path(__file__).with_name("public.txt")


def signatures() -> str:
    """A line for each public name, and for each public member of a public class."""
    package = stateful_workflow
    modules = (package, package.aiohttp, package.audit, package.requests)
    return "".join(f"{line}\n" for module in modules for line in _of_module(module))


def _of_module(module: ModuleType) -> Iterator[str]:
    for name in sorted(module.__all__):
        value: object = getattr(module, name)
        full = f"{module.__name__}.{name}"
        if isinstance(value, type):
            bases = ", ".join(base.__name__ for base in value.__bases__)
            yield f"class {full}({bases}){_signature(value)}"
            for member, of in sorted(vars(value).items()):
                if not member.startswith("_"):
                    yield f"    {member}{_member(of)}"
        else:
            yield f"{full}{_signature(value) if inspect.isfunction(value) else ''}"


def _member(value: object) -> str:
    if isinstance(value, property):
        return ": property"
    if isinstance(value, (classmethod, staticmethod)):
        return _signature(getattr(cast("object", value), "__func__", None))
    return _signature(value) if inspect.isfunction(value) else ""


def _signature(value: object) -> str:
    try:
        signature = str(inspect.signature(value))  # pyright: ignore[reportArgumentType]
        return re.sub(r"<object object at \w+>", "...", signature)
    except (TypeError, ValueError):
        return ""


def test_the_public_names_and_signatures_are_the_pinned_ones() -> None:
    assert signatures() == PINNED.read_text("utf-8")


if __name__ == "__main__":
    PINNED.write_text(signatures(), "utf-8")
