"""Programs that some tests need and a machine may lack, such as a browser."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from typing import Any

import pytest

Test = Callable[..., Any]


def needs(program: str, *, package: str | None = None) -> Callable[[Test], Test]:
    """Skip a test where a program is missing; with ``$STATEFUL_REQUIRE_TOOLS=1`` fail it.

    The outermost decorator, since it takes the place of a test that cannot be run.

    Args:
        program: as it is found on PATH.
        package: Debian's package that has it; None where it has the program's name.
    """

    def mark(test: Test) -> Test:
        if shutil.which(program) is not None:
            return test
        reason = f"{program} is missing (Debian: apt-get install {package or program})"
        if os.environ.get("STATEFUL_REQUIRE_TOOLS") != "1":
            return pytest.mark.skip(reason=reason)(test)

        def missing() -> None:
            pytest.fail(reason)

        missing.__name__ = test.__name__
        return missing

    return mark
