"""What a package is for that an extra brings."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from ..errors import StatefulError


@contextmanager
def needing(what: str, extra: str) -> Generator[None, None, None]:
    """Raise `StatefulError` where an import in the block lacks a package, with its extra."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("stateful_workflow"):
            raise
        install = f'pip install "stateful-workflow[{extra}]"'
        raise StatefulError(f"{what} needs the package {error.name}: {install}") from None
