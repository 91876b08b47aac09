"""All that is printed: what others chose is escaped, and what is not understood is not repeated."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NoReturn, cast

import typer
from rich.console import Console
from rich.segment import Segment
from rich.style import Style
from rich.text import Text
from typer.core import TyperCommand, TyperGroup

from .printable import printable

_ADDRESS: Final = re.compile(r"[\w.:\[\]-]+:\d{1,5}")
_UsageError: Any = typer.BadParameter.__base__  # it has no public name


class Escaped(Text):
    """One line of strings, of strings with a style, and of such lines."""

    def __init__(self, *parts: str | Text | tuple[str, str], **options: Any) -> None:
        super().__init__(**options)
        for part in parts:
            self.append(*part) if isinstance(part, tuple) else self.append(part)

    def append(self, text: Text | str, style: str | Style | None = None) -> Escaped:
        """Add a part."""
        super().append(printable(text) if isinstance(text, str) else text, style)
        return self


class Output(Console):
    """Escapes strings as `Escaped` does, and whatever it prints, but line ends and rich's codes."""

    def render_str(self, text: str, **options: Any) -> Text:
        """A string, before it is laid out."""
        return super().render_str(printable(text), **options)

    def render(self, *what: Any, **options: Any) -> Iterable[Segment]:
        """What is about to be printed."""
        for text, style, control in super().render(*what, **options):
            yield Segment(text if control else printable(text, keep="\n"), style, control)


def out(*, err: bool = False) -> Output:
    """The terminal; where stdout is none, plain text of any width. $NO_COLOR is obeyed.

    Square brackets and colons are text, not rich's markup: workflow ids may hold them.
    """
    width = None if (sys.stderr if err else sys.stdout).isatty() else 100_000
    return Output(stderr=err, width=width, markup=False, emoji=False, highlight=False)


def say(*lines: str, err: bool = False) -> None:
    """Print lines as they are, but for what does not print."""
    for line in lines:
        typer.echo(printable(line), err=err)


def print_json(data: object) -> None:
    """Print one line of JSON on stdout."""
    say(json.dumps(data))


class Failed(typer.BadParameter):
    """Ends a command with a text and status 1; `typer.BadParameter` does with status 2."""

    exit_code = 1


class Command(TyperCommand):
    """A command whose usage does not show an argument that is taken to be refused."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """What it is called with."""
        shown = [one for one in self.get_params(ctx) if not getattr(one, "hidden", False)]
        pieces = [piece for param in shown for piece in param.get_usage_pieces(ctx)]
        return [self.options_metavar or "", *pieces]


class Commands(TyperGroup):
    """The commands, the errors of which are told here, the parser's too."""

    def main(self, *args: Any, **options: Any) -> NoReturn:
        """Run one and exit."""
        try:
            status = super().main(*args, **{**options, "standalone_mode": False})
        except typer.Abort:
            say("aborted", err=True)
            status = 1
        except _UsageError as error:
            status = error.exit_code
            if type(error).__name__ != "NoArgsIsHelpError":  # that has shown the help
                say(f"error: {_told(error)}", err=True)
        sys.exit(status)


def _told(error: Any) -> str:
    ctx, kind, param = error.ctx, type(error).__name__, getattr(error, "param", None)
    # The parser's own texts hold what was given, but for these two.
    if kind in ("MissingParameter", "BadOptionUsage"):
        return str(error.format_message())
    if param is not None:
        least = "" if getattr(param, "min", None) is None else f" from {param.min}"
        what = "a value" if param.metavar == _called(param) else param.metavar or "a number"
        return f"{_called(param)} takes {what}{least}: {param.help}"
    if isinstance(error, typer.BadParameter):
        given = {
            _called(param): ctx.params[param.name]
            for param in ctx.command.params
            # What is said of a workflow comes from the server.
            if param.name != "workflow_id"
            and ctx.get_parameter_source(param.name).name == "COMMANDLINE"
        }
        return unrepeated(error.message, given)
    near = " or ".join(getattr(error, "possibilities", None) or ())
    see = f"; see `{ctx.command_path} --help`"
    return f"there is no such option, command or further argument{near and f' ({near}?)'}{see}"


def _called(param: Any) -> str:
    """An option, or an argument by what it is called in the help."""
    return str(param.opts[0] if param.opts[0].startswith("-") else param.metavar or param.opts[0])


def unrepeated(text: str, given: Mapping[str, object]) -> str:
    """Put what an option is called in the place of what was given for it, which may be a token.

    A file that is there stays, and host:port, and what is too short for a token.
    """
    for name, values in given.items():
        for value in cast("Iterable[object]", values if isinstance(values, list) else [values]):
            is_there = isinstance(value, Path) and os.path.exists(value)  # noqa: PTH110 - any name
            for form in (str(value), Path(str(value)).name):
                if len(form) >= 8 and not is_there and not _ADDRESS.fullmatch(form):
                    text = text.replace(form, name)
    return text
