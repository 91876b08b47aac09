"""A token that stands in a file, such as a secret that Kubernetes mounts."""

from __future__ import annotations

import asyncio
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..errors import AnswerUnusable, GrantRefused, ProviderUnreachable
from .clock import now as unix_now
from .exchange import TIMEOUT
from .protocol import Grant, Minted
from .secret import minted, named

MAX_BYTES: Final = 65_536


@dataclass(frozen=True)
class FileSource:
    """Gives what a file holds at each mint, without the line ends after it.

    It is opened anew each time, so that it may be written anew, renamed over or reached through
    links that change, as Kubernetes' do. A file that is missing or cannot be read is no refused
    grant: a mount comes late, and a mode is mended without anybody who authorizes. Of JSON the
    grant names the field, as `stateful_workflow.source.secret.minted` reads it.

    Args:
        path: the file; or a directory in which the grant names the file, as ``{"path": "acme"}``.
            One that leads out of it, by a link too, is a refused grant.
        margin: as `EnvironmentSource`.
    """

    path: str | Path
    margin: float = 0

    async def mint(self, grant: Grant) -> Minted:
        """Read the file."""
        path, within = Path(self.path), None
        if "path" in grant:
            path, within = path / named(grant, "path"), path
        try:
            text = await asyncio.wait_for(asyncio.to_thread(read_text, path, within), TIMEOUT)
        except (TimeoutError, asyncio.TimeoutError):
            text = None
        if text is None:
            raise ProviderUnreachable(f"the file system did not answer within {TIMEOUT:g} s")
        return minted(text, grant, self.margin, unix_now())


def read_text(path: Path, within: Path | None = None) -> str:
    """Read a secret's file, through whatever links lead to it now.

    Args:
        path: the file.
        within: the directory that it has to be in when all links are followed.

    Raises:
        GrantRefused: it is elsewhere.
        ProviderUnreachable: it is missing or cannot be read.
        AnswerUnusable: it is no text of a secret. No error names the file: a grant may have.
    """
    raw, problem = b"", ""
    for _ in range(5):  # a link may change between two steps
        try:
            real = path.resolve()
            if within is not None and not real.is_relative_to(within.resolve()):
                raise GrantRefused("the grant's path leads out of the source's directory")
            raw, problem = _read(real), ""
            break
        except FileNotFoundError:
            problem = "there is no file where the source looks for it"
        except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: links in a circle
            problem = f"the source's file cannot be read ({type(error).__name__})"
            break
    if problem:
        raise ProviderUnreachable(problem)
    try:
        text = raw.decode("utf-8")
    except ValueError:
        text = None
    if text is None or len(raw) > MAX_BYTES:
        raise AnswerUnusable(f"the file is no text in UTF-8 of at most {MAX_BYTES} bytes")
    return text


def _read(path: Path) -> bytes:
    # Opening a pipe would wait for somebody who writes.
    careful = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)
    descriptor = os.open(path, os.O_RDONLY | careful)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise AnswerUnusable("what the source looks for is no regular file")
        return file.read(MAX_BYTES + 1)
