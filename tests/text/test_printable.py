"""What others chose is shown with an escape for whatever does not print, in programs and logs."""

from __future__ import annotations

import ast
import sys
import unicodedata
from pathlib import Path

import pytest

import stateful_workflow
from stateful_workflow.text.printable import printable
from tests.support.terminal import HOSTILE, VISIBLE, unprintable

PACKAGE = Path(stateful_workflow.__file__).parent
LEVELS = ("debug", "info", "warning", "error", "exception", "critical", "log")
ESCAPED = {"self._name", "_said(error)", "said", "error.strerror", "what", "KEYRING_VARIABLE"}
"""What a call of a logger may hold beside `printable(…)`: escaped before, or nobody's choice."""


@pytest.mark.parametrize(
    "text", ["tenant-acme", "Zürich №1 – 東京 👍", r"C:\new", "[red] :key:", ""]
)
def test_what_prints_stays_as_it_is(text: str) -> None:
    assert printable(text) == text


def test_what_does_not_print_is_a_visible_escape() -> None:
    assert printable(HOSTILE) == VISIBLE
    assert printable("two\nlines\r\n", keep="\n") == "two\nlines\\r\n"


@pytest.mark.parametrize("category", ["Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"])
def test_no_character_of_a_category_that_shows_nothing_is_left(category: str) -> None:
    characters = [
        chr(n) for n in range(sys.maxunicode + 1) if unicodedata.category(chr(n)) == category
    ]
    assert characters
    assert unprintable(printable("".join(characters))) == set()
    assert printable("".join(characters)).isascii()


def test_every_logger_is_given_what_others_chose_escaped() -> None:
    """Of a message with a value in it all is escaped, else each value that is filled in.

    Workflow and activity code has the SDK's loggers, which append to the message: a per cent sign
    in an id would take a value's place, so that they are given a message alone.
    """
    calls = 0
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            logger = ast.unparse(node.func.value)
            if node.func.attr not in LEVELS or not logger.endswith(("_log", "logger")):
                continue
            calls += 1
            if path.name == "sinks.py":  # which escapes the event first
                continue
            where = f"{path.name}:{node.lineno}"
            assert len(node.args) == 1 or not logger.endswith(".logger"), where
            for argument in node.args:
                is_escaped = ast.unparse(argument).startswith("printable(")
                is_ours = isinstance(argument, ast.Constant) or ast.unparse(argument) in ESCAPED
                assert is_escaped or is_ours, f"{where}: {ast.unparse(argument)}"
    assert calls > 5
