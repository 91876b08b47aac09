"""docs/design.md is one page, docs/decisions/ one short file a decision, and code names those."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

PROJECT: Final = Path(__file__).parents[2]
DECISIONS: Final = sorted((PROJECT / "docs" / "decisions").glob("[0-9][0-9]-*.md"))
SECTIONS: Final = ["Context", "Decision", "What it costs"]


@pytest.mark.parametrize("path", DECISIONS, ids=lambda path: path.stem)
def test_a_decision_says_why_what_and_at_what_cost_in_250_words(path: Path) -> None:
    text = path.read_text("utf-8")
    assert text.startswith(f"# {int(path.name[:2])}. ")
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == SECTIONS
    assert len(text.split()) <= 250


def test_the_index_has_each_decision_once_under_its_title() -> None:
    index = (PROJECT / "docs" / "decisions" / "README.md").read_text("utf-8")
    titles = [path.read_text("utf-8").splitlines()[0].partition(". ")[2] for path in DECISIONS]
    expected = [
        f"- [{path.name[:2]}]({path.name}) {title}"
        for path, title in zip(DECISIONS, titles, strict=True)
    ]
    assert sorted(line for line in index.splitlines() if line.startswith("- ")) == expected
    numbers = [int(path.name[:2]) for path in DECISIONS]
    assert numbers == sorted(set(numbers))


def test_the_overview_is_one_page() -> None:
    assert len((PROJECT / "docs" / "design.md").read_text("utf-8").split()) <= 700


def test_what_code_names_in_docs_is_there() -> None:
    for path in [*(PROJECT / "src").rglob("*.py"), *(PROJECT / "tests").rglob("*.py")]:
        for document in re.findall(r"docs/[\w/-]+\.md", path.read_text("utf-8")):
            assert (PROJECT / document).exists(), f"{path.name} names {document}"
